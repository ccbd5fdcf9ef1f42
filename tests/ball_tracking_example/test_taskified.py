import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ball_tracking_example import taskified
from task_offload.errors import SourceError
from task_offload.picture import Picture
from task_offload.runner import Kind, Outcome, Runner, States
from task_offload.task import Item, load_app

from .conftest import Ball, disc, write_video

PROJECT = Path(__file__).parents[2]
CHAIN = load_app("ball_tracking_example.taskified")


def item(sequence: int, split: int) -> Item:
    return Item("pi", "0" * 32, sequence, 0.0, split)


def on_device(sequence: int, split: int) -> Outcome:
    return Runner(CHAIN).run(item(sequence, split), States(), (), 0, split)


def in_cloud(sequence: int, split: int, args: tuple) -> Outcome:
    return Runner(CHAIN).run(item(sequence, split), States(), args, split, 7)


def travel(args: tuple, jpeg_quality: int | None) -> tuple:
    """What arrives of a payload: copies, and pictures as a JPEG."""
    arrived = []
    for arg in args:
        if isinstance(arg, Picture) and jpeg_quality is not None:
            _, data = cv2.imencode(".jpg", arg.image, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
            arrived.append(Picture(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)))
        elif isinstance(arg, Picture):
            arrived.append(Picture(arg.image.copy()))
        else:
            arrived.append(pickle.loads(pickle.dumps(arg)))
    return tuple(arrived)


def test_the_chain() -> None:
    assert CHAIN.names == (
        "get_frame",
        "calculate_hsv",
        "calculate_mask",
        "find_contours",
        "calculate_circle",
        "draw_circle",
        "show_frame",
    )
    assert CHAIN.splits == (1, 2, 3, 4, 5, 6)


def test_every_split_finds_what_the_plain_loop_finds(clip_balls: list[Ball]) -> None:
    """The whole clip, each frame at another split than the one before; poor JPEGs of the pictures change nothing."""
    taskified.open_source(None)
    balls = []
    for sequence in range(len(clip_balls)):
        split = 1 + sequence % 7
        outcome = on_device(sequence, split)
        if split < 7:
            assert outcome.kind is Kind.CONTINUED
            outcome = in_cloud(sequence, split, travel(outcome.value, (None, 30)[sequence // 7 % 2]))
        assert outcome.kind is Kind.COMPLETED, outcome.value
        balls.append(outcome.value)
    assert balls == clip_balls
    assert on_device(len(balls), 1)[:2] == (Kind.FILTERED, 0), "the stream ends"
    assert on_device(len(balls), 1)[:2] == (Kind.FILTERED, 0), "and stays at its end"


@pytest.mark.parametrize("split", range(1, 8))
def test_a_stretch_at_one_split(split: int, clip_balls: list[Ball]) -> None:
    """40 frames with a ball that comes in, is found, is lost in the grass, and is found again."""
    taskified.open_source(None)
    for _ in range(30):
        taskified.get_frame()
    balls = []
    for sequence in range(40):
        outcome = on_device(sequence, split)
        if split < 7:
            outcome = in_cloud(sequence, split, travel(outcome.value, jpeg_quality=90))
        balls.append(outcome.value)
    assert balls == clip_balls[30:70]
    assert any(balls)
    assert not all(balls)


class TestPayloads:
    """What travels after each task: the frame rides along, and is a picture once no task computes with it."""

    FRAME_BYTES = 500 * 281 * 3

    @pytest.fixture
    def payloads(self, tmp_path: Path) -> dict[int, tuple]:
        video = write_video(tmp_path / "disc.mp4", [disc(640, 360, 300, 200, 40)] * 8)
        taskified.open_source(str(video))
        return {split: on_device(0, split).value for split in range(1, 7)}

    def test_the_first_tasks_frame_is_computed_with(self, payloads: dict[int, tuple]) -> None:
        frame, scale = payloads[1]
        assert isinstance(frame, np.ndarray)
        assert frame.nbytes == self.FRAME_BYTES
        assert scale == (640 / 500, 360 / 281)

    def test_from_then_on_it_is_a_picture(self, payloads: dict[int, tuple]) -> None:
        for split in range(2, 7):
            assert isinstance(payloads[split][0], Picture)
            assert payloads[split][0].image.nbytes == self.FRAME_BYTES

    def test_the_rest_shrinks(self, payloads: dict[int, tuple]) -> None:
        hsv, mask, contours = payloads[2][1], payloads[3][1], payloads[4][1]
        assert (hsv.shape, hsv.dtype) == ((281, 500, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((281, 500), np.uint8)
        assert sum(contour.nbytes for contour in contours) < 2000
        assert len(pickle.dumps(payloads[5][1:])) < 200
        assert len(pickle.dumps(payloads[6][1:])) < 200

    def test_results_are_plain_data(self, payloads: dict[int, tuple]) -> None:
        result = in_cloud(0, 6, payloads[6]).value
        assert {key: type(value) for key, value in result.items()} == {"x": float, "y": float, "radius": float}


def test_the_cloud_sees_the_picture_and_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(taskified, "show", lambda title, frame: shown.append((title, frame)))
    frame = disc(500, 281, 200, 100, 30)
    last = item(0, 6)
    outcome = Runner(CHAIN).run(last, States(), (frame, None), 6, 7)
    assert outcome.kind is Kind.COMPLETED
    assert outcome.value is None, "no ball, no result"
    assert last.published is frame
    assert [title for title, _ in shown] == ["pi"]


def test_open_source_tells_a_files_rate(tmp_path: Path) -> None:
    assert taskified.open_source(None) == 24.0
    assert taskified.open_source(str(write_video(tmp_path / "a.mp4", [np.zeros((90, 160, 3), np.uint8)], 12.5))) == 12.5


def test_a_source_that_does_not_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        taskified.open_source(str(tmp_path / "none.mp4"))


def test_importing_opens_nothing() -> None:
    code = (
        "import cv2\n"
        "def refuse(*_): raise AssertionError('opened on import')\n"
        "cv2.VideoCapture = refuse\n"
        "import ball_tracking_example.taskified\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
