import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from ball_tracking_example import CLIP, CLIP_TRUTH, sequential

FOOTAGE = Path(__file__).parents[3] / "shared" / "data"

Ball = dict[str, float] | None


@pytest.fixture(scope="session")
def clip_balls() -> list[Ball]:
    """What `sequential.py` finds in the clip, frame by frame."""
    return [ball for _, ball in sequential.track(str(CLIP))]


@pytest.fixture(scope="session")
def truth() -> list[dict[str, float | None]]:
    with CLIP_TRUTH.open() as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def footage() -> Path:
    """The folder of real clips."""
    if not FOOTAGE.is_dir():
        pytest.skip("the real footage (../shared/data) is not here")
    return FOOTAGE


def write_video(path: Path, frames: list[np.ndarray], fps: float = 20.0) -> Path:
    """An mp4 of these frames."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def disc(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    """A grey frame with a green disc whose edge is smooth."""
    ys, xs = np.mgrid[0:height, 0:width]
    cover = np.clip(radius + 0.5 - np.hypot(xs - x, ys - y), 0, 1)[..., None]
    return (150 * (1 - cover) + np.array((60, 200, 150)) * cover).astype(np.uint8)
