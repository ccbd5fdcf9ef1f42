import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ball_tracking_example import sequential
from ball_tracking_example.sequential import WIDTH, find_circle, shrink

from .conftest import Ball, disc, write_video

PROJECT = Path(__file__).parents[2]


def polygon(points: list[tuple[float, float]]) -> np.ndarray:
    return np.array(points, np.float64).round().astype(np.int32).reshape(-1, 1, 2)


def star(points: int, outer: float, inner: float) -> np.ndarray:
    steps = [(math.pi * i / points, outer if i % 2 else inner) for i in range(2 * points)]
    return polygon([(200 + r * math.cos(a), 200 + r * math.sin(a)) for a, r in steps])


def ellipse(width: float, height: float, degrees: int = 360) -> np.ndarray:
    angles = np.radians(np.arange(0, degrees, 4))
    return polygon([(200 + width * math.cos(a), 200 + height * math.sin(a)) for a in angles])


class TestFindCircle:
    def test_a_disc_is_a_ball(self) -> None:
        x, y, radius = find_circle([ellipse(30, 30)])
        assert math.hypot(x - 200, y - 200) < 1
        assert radius == pytest.approx(30, abs=1)

    @pytest.mark.parametrize(
        ("what", "contour"),
        [
            ("moving", ellipse(30, 18)),
            ("two thirds of it behind nothing", ellipse(30, 30, 250)),
            ("far away", ellipse(9, 9)),
        ],
    )
    def test_a_ball_may_be(self, what: str, contour: np.ndarray) -> None:
        assert find_circle([contour]), what

    @pytest.mark.parametrize(
        ("what", "contour"),
        [
            ("a speck", ellipse(4, 4)),
            ("a leaf", ellipse(30, 9)),
            ("grass", star(12, 40, 22)),
            ("a square sign", polygon([(0, 0), (50, 0), (50, 50), (0, 50)])),
            ("a box seen askew", polygon([(50, 0), (110, 40), (60, 110), (0, 70)])),
            ("a lawn", polygon([(0, 250), (499, 245), (499, 281), (0, 281)])),
            ("a single point", polygon([(7, 7)])),
            ("a line", polygon([(7, 7), (90, 90)])),
        ],
    )
    def test_no_ball_is(self, what: str, contour: np.ndarray) -> None:
        assert find_circle([contour]) is None, what

    def test_the_roundest_wins_over_a_larger_one(self) -> None:
        _, _, radius = find_circle([ellipse(60, 40), ellipse(20, 20)])
        assert radius == pytest.approx(20, abs=1)

    def test_no_contours(self) -> None:
        assert find_circle([]) is None


@pytest.mark.parametrize(
    "size", [(640, 360), (640, 480), (1280, 720), (1919, 1079), (500, 281), (320, 240), (360, 640)]
)
def test_shrink_keeps_the_picture_and_tells_the_scale(size: tuple[int, int]) -> None:
    width, height = size
    frame, (scale_x, scale_y) = shrink(np.zeros((height, width, 3), np.uint8))
    assert frame.shape[1] == WIDTH
    assert scale_x == width / WIDTH
    assert scale_y == height / frame.shape[0]
    assert abs(scale_y / scale_x - 1) < 0.004, "round stays round"


@pytest.mark.parametrize("size", [(640, 360), (640, 480), (1280, 720), (1920, 1080), (320, 240)])
def test_the_ball_is_reported_in_pixels_of_the_source(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    x, y, radius = 0.7 * width, 0.8 * height, 0.07 * width
    video = write_video(tmp_path / "disc.mp4", [disc(width, height, x, y, radius)] * 3)
    balls = [ball for _, ball in sequential.track(str(video))]
    assert len(balls) == 3
    for ball in balls:
        pixel = max(1.0, width / WIDTH)
        assert ball is not None
        assert math.hypot(ball["x"] - x, ball["y"] - y) < 0.75 * pixel
        assert ball["radius"] == pytest.approx(radius, abs=2 * pixel), "the blur widens it before a grey wall"


def test_the_clip_against_its_truth(clip_balls: list[Ball], truth: list[dict[str, float | None]]) -> None:
    """Tolerance: a ball counts as found if its centre is within half of its radius of the true one.

    Measured with OpenCV 4.11 and 5.0 alike: precision 0.96, recall 0.82 for balls that are at least 0.9 visible (what
    is missing there flies across grass, crate or green shade), none in the 193 frames without a ball; where at least
    0.9 of the ball is visible, its centre is off by 1.2 pixels in the median (2.5 in the worst tenth).
    """
    assert len(clip_balls) == len(truth) == 480
    right, wrong, in_empty, errors, visible = 0, 0, 0, [], 0
    for ball, true in zip(clip_balls, truth, strict=True):
        clear = true["visible"] >= 0.9
        visible += clear
        if ball is None:
            continue
        if true["x"] is None:
            in_empty += 1
            continue
        error = math.hypot(ball["x"] - true["x"], ball["y"] - true["y"])
        if error > true["radius"] / 2:
            wrong += 1
        elif clear:
            right += 1
            errors.append(error)
    found = sum(ball is not None for ball in clip_balls)
    print(f"found {found}, right and clear {right} of {visible}, wrong {wrong}, in empty frames {in_empty}")
    assert visible > 200
    assert in_empty == 0
    assert 1 - wrong / found >= 0.95, "precision"
    assert right / visible >= 0.80, "recall"
    assert np.median(errors) < 1.5
    assert np.percentile(errors, 90) < 4


def test_a_real_ball_is_found(footage: Path) -> None:
    """The ball is in 874 of the 1,004 frames, some of them nearly behind the hand or half out of the frame."""
    balls = [ball for _, ball in sequential.track(str(footage / "hand_and_green_ball.mp4"))]
    assert len(balls) == 1004
    found = [ball for ball in balls if ball is not None]
    assert len(found) >= 0.85 * len(balls)
    assert len(found) <= 874, "the black box on the door is no ball"
    assert not any(balls[:20]), "the first frames are empty"
    assert all(15 < ball["radius"] < 50 for ball in found)


def test_no_ball_is_found_among_cars(footage: Path) -> None:
    balls = [ball for _, ball in sequential.track(str(footage / "cars_from_above.mp4"))]
    assert len(balls) == 377
    assert not any(balls)


@pytest.mark.parametrize("how", [["ball_tracking_example/sequential.py"], ["-m", "ball_tracking_example.sequential"]])
def test_it_runs_as_a_script(how: list[str], tmp_path: Path) -> None:
    empty = np.full((360, 640, 3), 150, np.uint8)
    video = write_video(tmp_path / "few.mp4", [empty, disc(640, 360, 300, 200, 40), empty])
    done = subprocess.run(
        [sys.executable, *how, str(video)], cwd=PROJECT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 frames, a ball in 1 of them\n", "")


def test_it_needs_nothing_of_the_framework() -> None:
    code = "import sys, ball_tracking_example.sequential; print([n for n in sys.modules if n.startswith('task_off')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "[]\n"


def test_a_source_that_does_not_open_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.mp4: it does not open"):
        next(sequential.track(str(tmp_path / "none.mp4")))


def test_the_ball_is_drawn_into_the_frame() -> None:
    frame = disc(640, 360, 300, 200, 40)
    before = frame.copy()
    sequential.draw(frame, (300.0, 200.0, 40.0))
    assert tuple(frame[200, 300]) == (0, 0, 255)
    assert tuple(frame[160, 300]) == (0, 255, 255)
    changed = cv2.absdiff(frame, before).max(axis=2) > 0
    assert not changed[:150].any()
