"""The books of `chaos`: each kind of wrong is found, and nothing else is."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos_app
from benchmarks.chaos import Chaos, CloudProcess, Run

Rows = list[tuple[int, str, str | None, Any]]


@pytest.fixture
def chaos() -> Chaos:
    made = Chaos.__new__(Chaos)
    made.problems = []
    made.faults = Counter()
    made.folder = Path("/nonexistent")
    made.args = argparse.Namespace(tls=False)
    return made


def rows(count: int) -> Rows:
    return [(n, *chaos_app.expected(n)) for n in range(count)]


def report(captured: int, **dropped: int) -> dict[str, Any]:
    return {"items": {"captured": captured, "dropped": dropped, "left": {}}}


def problems(chaos: Chaos, run: Run, found: Rows) -> list[str]:
    chaos._check_session(run, found)
    return chaos.problems


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (Run("d", 0, "s", 20, report(20), 20), 20),
        (Run("d", 0, "s", 20, report(20, undelivered=8), 5), 12),
        (Run("d", 0, "s", 20, None, 5), 5),
        (Run("d", 0, "s", 20, None, 5), 19),
        (Run("d", 0, "s", 20, None, 5, (3, 17)), 17),
    ],
)
def test_right_books(chaos: Chaos, run: Run, count: int) -> None:
    assert problems(chaos, run, rows(count)) == []


def test_a_hole(chaos: Chaos) -> None:
    [problem] = problems(chaos, Run("d", 0, "s", 20, report(20)), rows(20)[:7] + rows(20)[8:])
    assert "item 8 where 7 was due" in problem


def test_out_of_order_and_twice(chaos: Chaos) -> None:
    swapped = rows(20)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    problems(chaos, Run("d", 0, "s", 20, report(20)), swapped)
    problems(chaos, Run("d", 0, "s", 20, report(20)), [*rows(20)[:5], *rows(20)[4:]])
    assert len(chaos.problems) == 2


@pytest.mark.parametrize(
    "run",
    [
        Run("d", 0, "s", 20, report(20), 10),
        Run("d", 0, "s", 20, report(20, overload=3), 10),
        Run("d", 0, "s", 20, report(20, undelivered=8), 19),
        Run("d", 0, "s", 20, None, 19),
        Run("d", 0, "s", 20, None, 5, (3, 19)),
    ],
)
def test_a_lost_end(chaos: Chaos, run: Run) -> None:
    [problem] = problems(chaos, run, rows(18))
    assert "18 items recorded" in problem


def test_more_than_there_was(chaos: Chaos) -> None:
    [problem] = problems(chaos, Run("d", 0, "s", 10, None), rows(11))
    assert "only 10 were captured" in problem


def test_anothers_result(chaos: Chaos) -> None:
    found = rows(20)
    found[2] = (2, *found[4][1:])
    [problem] = problems(chaos, Run("d", 0, "s", 20, report(20)), found)
    assert "item 2 ended as" in problem


def test_what_was_safe_may_not_be_told_to_be_lost(chaos: Chaos) -> None:
    found = rows(20)
    found[12] = (12, "dropped", "lost_on_device", None)
    assert problems(chaos, Run("d", 0, "s", 20, None, 12, (14, 20)), found) == []
    problems(chaos, Run("d", 0, "s", 20, None, 13, (14, 20)), found)
    problems(chaos, Run("d", 0, "s", 20, None, 3, (10, 20)), found)
    assert len(chaos.problems) == 2


@pytest.mark.parametrize(
    ("met_full_disk", "status", "wrong"), [(True, 1, 0), (False, 1, 1), (True, 2, 1), (True, 0, 1)]
)
def test_only_a_full_disk_may_end_a_server(chaos: Chaos, met_full_disk: bool, status: int, wrong: int) -> None:
    """Whether it is still full when somebody looks, or not."""
    chaos.devices, chaos._later = [], []
    chaos.cloud = CloudProcess.__new__(CloudProcess)
    chaos.cloud.met_full_disk = met_full_disk
    chaos.cloud.popen = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    chaos.cloud.popen.wait()
    started: list[bool] = []
    chaos._start_cloud = lambda: started.append(True)  # type: ignore[method-assign]
    chaos._look_after()
    assert len(chaos.problems) == wrong
    for _, action in chaos._later:
        action()
    assert started
