"""The chain: its counts against the truth, and the same results at every split."""

import csv
import json
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from task_offload.errors import SourceError
from task_offload.picture import Picture
from task_offload.runner import Kind, Runner, States
from task_offload.task import Chain, Contract, Item, load_app
from traffic_example import CLIP, CLIP_TRUTH, taskified

REAL_CLIP = Path(__file__).parents[3] / "shared" / "data" / "cars_from_above.mp4"
Ended = list[tuple[Any, np.ndarray]]  # each result, and the picture that was published with it

LATEST_FRAMES = 4  # a vehicle is counted so many frames after its centre crossed, at most; two before, at most
EARLIEST_FRAMES = -2


@pytest.fixture(scope="module")
def chain() -> Chain:
    return load_app("traffic_example.taskified")


@pytest.fixture(scope="module", autouse=True)
def no_window() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taskified, "show", lambda _title, _frame: True)
        yield


def frames_of(clip: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(clip)), []
    while (grabbed := video.read())[0]:
        frames.append(grabbed[1])
    return frames


def run(chain: Chain, frames: list[np.ndarray], split: int, carry: Callable[[Any], Any] = lambda args: args) -> Ended:
    """Frames through the chain from task 2 on, cut at `split`, where `carry` is the way between the sides."""
    runner, cloud = Runner(chain), States()

    def on_device(sequence: int, frame: np.ndarray) -> tuple[Item, Any]:
        item = Item("camera", "0" * 32, sequence, 0.0, split)
        args: tuple[Any, ...] = (frame.copy(),)
        return item, runner.run(item, States(), args, 1, split).value if split > 1 else args

    ended = []
    with ThreadPoolExecutor(os.cpu_count()) as cores:  # the device's tasks are pure, and denoising takes its time
        for item, args in cores.map(on_device, range(len(frames)), frames):
            outcome = runner.run(item, cloud, carry(args), split, len(chain.tasks))
            assert outcome.kind is Kind.COMPLETED, outcome.value
            ended.append((outcome.value, item.published))
    return ended


def crossings(results: Ended) -> dict[str, list[int]]:
    """The frames in which vehicles were counted, for each direction."""
    found: dict[str, list[int]] = {"up": [], "down": []}
    for number, (result, _) in enumerate(results):
        for _, direction in result["crossed"]:
            found[direction].append(number)
    return found


def test_the_counts_on_the_clip_are_exact(chain: Chain) -> None:
    """Every vehicle is counted once, in its direction, within a few frames of when its centre crossed the line."""
    with CLIP_TRUTH.open(newline="", encoding="utf-8") as file:
        rows = [(row["direction"], int(row["crosses_at_frame"])) for row in csv.DictReader(file)]
    truth = {each: sorted(frame for direction, frame in rows if direction == each) for each in ("up", "down")}

    results = run(chain, frames_of(CLIP), 3)

    last = results[-1][0]
    assert (last["up"], last["down"]) == (len(truth["up"]), len(truth["down"])) == (7, 7)
    found = crossings(results)
    for direction in ("up", "down"):
        late = np.subtract(found[direction], truth[direction])
        assert late.min() >= EARLIEST_FRAMES
        assert late.max() <= LATEST_FRAMES


@pytest.mark.skipif(not REAL_CLIP.exists(), reason="the real footage of cars is not beside the project")
def test_the_counts_on_real_footage_are_exact(chain: Chain) -> None:
    """The truth is by eye: a white car goes up, a light blue one down beside a red one up, and a white one down.

    The frames between them, in which the road is empty, are left out.
    """
    frames = frames_of(REAL_CLIP)
    assert len(frames) == 377
    kept = [number for begin, end in ((40, 115), (170, 243), (306, 352)) for number in range(begin, end)]
    results = run(chain, [frames[number] for number in kept], 3)
    found = {direction: [kept[each] for each in when] for direction, when in crossings(results).items()}
    assert [len(found["up"]), len(found["down"])] == [2, 2]
    by_eye = {"up": [(74, 86), (204, 220)], "down": [(200, 214), (326, 338)]}
    for direction, spans in by_eye.items():
        for when, (begin, end) in zip(found[direction], spans, strict=True):
            assert begin <= when <= end


@pytest.fixture(scope="module")
def excerpt() -> list[np.ndarray]:
    """An empty road, then two vehicles of which one crosses the line."""
    frames = frames_of(CLIP)
    return frames[:3] + frames[46:58]


@pytest.fixture(scope="module")
def whole(chain: Chain, excerpt: list[np.ndarray]) -> Ended:
    """What comes of the excerpt where nothing travels."""
    return run(chain, excerpt, 1)


def over_the_wire(args: Any) -> Any:
    return pickle.loads(pickle.dumps(tuple(each.image if type(each) is Picture else each for each in args)))


def without_pictures(args: Any) -> Any:
    return tuple(np.full_like(each.image, 77) if type(each) is Picture else each for each in args)


def test_results_and_pictures_are_equal_at_every_split(chain: Chain, excerpt: list[np.ndarray], whole: Ended) -> None:
    assert chain.splits == (1, 2, 3)
    assert whole[-1][0]["down"] == 1
    assert len(whole[-1][0]["vehicles"]) == 2
    for split in chain.splits:
        carried = run(chain, excerpt, split, over_the_wire)
        assert [result for result, _ in carried] == [result for result, _ in whole]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(carried, whole, strict=True))


def test_no_task_computes_with_a_picture(chain: Chain, excerpt: list[np.ndarray], whole: Ended) -> None:
    for split in (2, 3):
        carried = run(chain, excerpt, split, without_pictures)
        assert [result for result, _ in carried] == [result for result, _ in whole]


def test_results_are_plain_data(whole: Ended) -> None:
    for result, _ in whole:
        assert json.loads(json.dumps(result)).keys() == {"up", "down", "crossed", "vehicles"}


def test_drawing_shows_line_counts_and_boxes(excerpt: list[np.ndarray], whole: Ended) -> None:
    result, drawn = whole[-1]
    height, width = drawn.shape[:2]
    assert np.array_equal(drawn[height // 2, width - 1], taskified.YELLOW)
    for vehicle in result["vehicles"]:
        x, y, _, _ = vehicle["box"]
        assert np.array_equal(drawn[y, x], taskified.GREEN)
    changed = np.any(drawn != excerpt[-1], axis=2)
    assert changed[height - 28 : height - 5, 8:160].mean() > 0.05


def test_new_counts_are_printed(chain: Chain, excerpt: list[np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    run(chain, excerpt, 3)
    assert capsys.readouterr().out == "camera: vehicle 1 goes down; 0 up, 1 down until now\n"


def test_what_denoise_is_given_is_not_changed(chain: Chain, excerpt: list[np.ndarray]) -> None:
    runner, item, states = Runner(chain), Item("camera", "0" * 32, 0, 0.0, 3), States()
    given = runner.run(item, states, (excerpt[-1],), 1, 2).value
    before = given[1].copy()
    clean = runner.run(item, states, given, 2, 3).value[1]
    assert np.array_equal(given[1], before)
    assert clean.shape == before.shape
    roughness = [np.median(np.abs(cv2.Laplacian(each, cv2.CV_32F))) for each in (clean, before)]
    assert roughness[0] < 0.5 * roughness[1]


def test_a_camera_that_comes_back_in_another_size_is_followed_on(chain: Chain, excerpt: list[np.ndarray]) -> None:
    narrow = [np.ascontiguousarray(frame[:200]) for frame in excerpt[:2]]
    assert len(run(chain, excerpt[:2] + narrow, 3)) == 4


def test_the_heavy_task_is_free_to_move_and_the_state_is_not(chain: Chain) -> None:
    contracts = {each.name: each.contract for each in chain.tasks}
    assert contracts["denoise"] == Contract()
    assert contracts["find_foreground"] == contracts["track"] == Contract("cloud", stateful=True)


def test_the_clip_is_the_default_source() -> None:
    assert taskified.open_source(None) == 15.0
    to_continue, frame = taskified.get_frame()
    assert to_continue
    assert frame.shape == (270, 480, 3)


def test_the_source_ends() -> None:
    taskified.open_source(str(CLIP))
    ends = [taskified.get_frame() for _ in range(271)]
    assert ends[270] is False
    assert all(each is not False for each in ends[:270])


def test_a_source_that_is_not_there_is_refused() -> None:
    with pytest.raises(SourceError, match="does not exist"):
        taskified.open_source("no_such_clip.mp4")
