import subprocess

import numpy as np
import pytest

from ball_tracking_example.window import Trial, Windows

FRAME = np.zeros((2, 2, 3), np.uint8)


class FakeGui:
    def __init__(self) -> None:
        self.shown: list[str] = []
        self.open: set[str] = set()
        self.key = -1

    def imshow(self, title: str, frame: np.ndarray) -> None:
        self.shown.append(title)
        self.open.add(title)

    def waitKey(self, delay_ms: int) -> int:
        return self.key

    def getWindowProperty(self, title: str, prop: int) -> float:
        return 1.0 if title in self.open else -1.0

    def destroyWindow(self, title: str) -> None:
        self.open.remove(title)


class FakeClock:
    now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 0.05
        return self.now_s


def test_a_window_for_each_title() -> None:
    gui = FakeGui()
    windows = Windows(lambda: True, gui, FakeClock())
    assert windows.show("pi-1", FRAME)
    assert windows.show("pi-2", FRAME)
    assert windows.show("pi-1", FRAME)
    assert gui.shown == ["pi-1", "pi-2", "pi-1"]


@pytest.mark.parametrize("usable", [None, False])
def test_nothing_is_drawn_where_windows_do_not_work_or_it_is_not_known_yet(usable: bool | None) -> None:
    gui = FakeGui()
    assert Windows(lambda: usable, gui, FakeClock()).show("pi", FRAME)
    assert gui.shown == []


def test_frames_that_come_faster_than_people_see_are_not_drawn() -> None:
    gui = FakeGui()
    clock = iter([0.0, 0.001, 0.02, 0.04, 0.05])
    windows = Windows(lambda: True, gui, lambda: next(clock))
    assert all(windows.show("pi", FRAME) for _ in range(5))
    assert len(gui.shown) == 2


def test_q_closes_its_window_for_good() -> None:
    gui = FakeGui()
    windows = Windows(lambda: True, gui, FakeClock())
    gui.key = ord("q")
    assert not windows.show("pi", FRAME)
    assert gui.open == set()
    gui.key = -1
    assert not windows.show("pi", FRAME)
    assert gui.shown == ["pi"]
    assert windows.show("other", FRAME)


def test_a_window_that_somebody_closed_stays_closed() -> None:
    gui = FakeGui()
    windows = Windows(lambda: True, gui, FakeClock())
    assert windows.show("pi", FRAME)
    gui.open.clear()
    assert not windows.show("pi", FRAME)
    assert not windows.show("pi", FRAME)
    assert gui.shown == ["pi"]


class TestTrial:
    @pytest.fixture(autouse=True)
    def _no_display(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def test_without_a_display_nothing_is_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subprocess, "Popen", None)
        assert Trial()() is False

    @pytest.mark.parametrize("variable", ["DISPLAY", "WAYLAND_DISPLAY"])
    def test_a_display_that_leads_nowhere_costs_a_child_and_not_this_process(
        self, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, ":9876")
        trial = Trial()
        trial()
        assert trial.child is not None
        trial.child.wait(timeout=50)
        assert trial() is False
