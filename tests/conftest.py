"""What every test may use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.processes import APPS, ROOT, Lab

# A shell's background job ignores Ctrl-C, and so would all that the tests start; they are about what it does.
signal.signal(signal.SIGINT, signal.default_int_handler)

# NumPy's BLAS has a thread for each core, which spins for a while in each process that starts; nothing here uses them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OFFLOAD_", "NOTIFY_", "WATCHDOG_")) or name in ("HOST", "PORT", "STATE_DIRECTORY"):
            monkeypatch.delenv(name)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Starts servers and devices in a folder of this test's own, and ends them after it."""
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture
def undo_imports(tmp_path: Path) -> Iterator[None]:
    """Undoes what loading an app of the tests leaves behind."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    folders = f"{tmp_path}{os.sep}", f"{APPS}{os.sep}"  # as text: a thousand paths for each test are slow to make
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folders):
            del sys.modules[name]


@pytest.fixture
def hand_clip() -> Path:
    clip = SHARED / "hand_and_green_ball.mp4"
    if not clip.exists():
        pytest.skip("the real footage is not here (../shared/data/hand_and_green_ball.mp4)")
    return clip


@pytest.fixture
def proxies() -> Iterator[Callable[..., FaultProxy]]:
    """Makes fault proxies, and closes them after the test."""
    made: list[FaultProxy] = []

    def make(target: int, seed: int = 0, tap: bool = True) -> FaultProxy:
        made.append(FaultProxy(target, seed, tap))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
