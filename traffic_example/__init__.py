"""An example with a heavy middle: vehicles on a road are counted. See `taskified.py`."""

from pathlib import Path

CLIP = Path(__file__).with_name("traffic.mp4")
CLIP_TRUTH = Path(__file__).with_name("traffic_truth.csv")
