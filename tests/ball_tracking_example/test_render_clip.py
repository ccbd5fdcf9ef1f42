from pathlib import Path

import cv2
import numpy as np
import pytest

from ball_tracking_example import CLIP, render_clip
from ball_tracking_example.render_clip import Scene, Truth
from ball_tracking_example.video_source import VideoSource


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def test_a_frame_is_the_same_each_time(scene: Scene) -> None:
    image, truth = scene.frame(40)
    scene.frame(7)
    again, truth_again = Scene().frame(40)
    assert np.array_equal(image, again)
    assert truth == truth_again


def test_noise_differs_from_frame_to_frame(scene: Scene) -> None:
    one, other = scene.frame(1)[0].astype(int), scene.frame(2)[0].astype(int)
    assert 0.5 < np.abs(one - other).mean() < 8


def test_the_clip_is_what_the_script_renders(scene: Scene, truth: list[dict[str, float | None]]) -> None:
    assert CLIP.stat().st_size < 2_000_000
    video = VideoSource(str(CLIP))
    for index in range(61):
        shipped = video.read()
        if index % 20 == 0:
            image, true = scene.frame(index)
            assert shipped.shape == image.shape
            assert np.abs(shipped.astype(int) - image).mean() < 4
            row = truth[index]
            assert (row["x"], row["y"], row["radius"], row["visible"]) == pytest.approx(
                (true.x, true.y, true.radius, true.visible), abs=0.02
            )


def test_the_truth_is_where_the_ball_is(scene: Scene) -> None:
    """The ball against the same frame without it."""
    index = 41
    image, true = scene.frame(index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render_clip, "_ball", lambda _: None)
        without, nothing = scene.frame(index)
    assert nothing == Truth(None, None, None, 0.0)
    difference = cv2.absdiff(image, without).max(axis=2)
    difference[250:] = 0  # its shadow on the ground
    moments = cv2.moments((difference > 30).astype(np.uint8), binaryImage=True)
    assert moments["m10"] / moments["m00"] == pytest.approx(true.x, abs=1.5)
    assert moments["m01"] / moments["m00"] == pytest.approx(true.y, abs=1.5)
    assert true.visible == pytest.approx(1, abs=0.02)


def test_behind_the_post_less_of_it_is_visible(truth: list[dict[str, float | None]]) -> None:
    shares = [row["visible"] for row in truth[50:70]]
    assert min(shares) < 0.3
    assert max(shares) > 0.95


def test_main_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_clip, "FRAMES", 3)
    render_clip.main(tmp_path / "a.mp4", tmp_path / "a.csv")
    video = VideoSource(str(tmp_path / "a.mp4"))
    assert video.fps == 24.0
    assert [video.read() is None for _ in range(4)] == [False, False, False, True]
    assert (tmp_path / "a.csv").read_text() == "frame,x,y,radius,visible\n0,,,,0.0\n1,,,,0.0\n2,,,,0.0\n"
