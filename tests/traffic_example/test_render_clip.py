"""The clip is what the script renders, and its truth is what the script drove."""

import csv
from itertools import islice

import cv2
import numpy as np

from traffic_example import CLIP, CLIP_TRUTH
from traffic_example.render_clip import FPS, FRAMES, HEIGHT, VEHICLES, WIDTH, frames


def test_rendering_is_deterministic() -> None:
    once, again = (list(islice(frames(), 3)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_shipped_clip_is_the_rendered_one() -> None:
    video = cv2.VideoCapture(str(CLIP))
    assert video.get(cv2.CAP_PROP_FPS) == FPS
    decoded = []
    while (grabbed := video.read())[0]:
        decoded.append(grabbed[1])
    assert len(decoded) == FRAMES
    for number, rendered in enumerate(islice(frames(), 31)):
        if number % 10 == 0:
            difference = cv2.GaussianBlur(cv2.absdiff(decoded[number], rendered), (9, 9), 0)
            assert difference.shape == (HEIGHT, WIDTH, 3)
            assert difference.max() < 40  # an encoder's loss, and no car where there should be none


def test_the_truth_is_that_of_the_vehicles() -> None:
    with CLIP_TRUTH.open(newline="", encoding="utf-8") as file:
        rows = [(row["kind"], row["direction"], int(row["crosses_at_frame"])) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted((each.kind, each.direction, each.crosses) for each in VEHICLES)


def test_the_package_stays_small() -> None:
    assert CLIP.stat().st_size < 1_000_000
