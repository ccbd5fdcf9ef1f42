"""A green ball, tracked: `sequential.py` is the plain loop, `taskified.py` the same loop as a chain of tasks."""

from pathlib import Path

CLIP = Path(__file__).with_name("ball.mp4")
CLIP_TRUTH = Path(__file__).with_name("ball.csv")
