#!/usr/bin/env python3
"""Are results equal wherever the tasks run? In: a clip. Out: every split beside local-only, item by item.

    python3 -m benchmarks.equality ../shared/data/hand_and_green_ball.mp4

Real devices and a real server run ball tracking over the whole clip: at every split, with pictures as JPEG and
lossless. Each result in the store must be what the same chain gives on one machine, in order, and the books of both
sides must add up with nothing dropped. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, load_app
from tests.support.processes import Lab, check_report

APP = "ball_tracking_example.taskified"


def expected(clip: Path, items: int | None) -> list[Any]:
    """Every item's result, by the chain in one loop."""
    chain = load_app(APP)
    assert chain.open_source is not None
    chain.open_source(str(clip))
    runner, states = Runner(chain), States()
    results: list[Any] = []
    while items is None or len(results) < items:
        outcome = runner.run(Item("here", "0" * 32, len(results), 0.0, 7), states, (), 0, 7)
        if outcome.kind is not Kind.COMPLETED:
            break
        results.append(outcome.value)
    return results


def compare(lab: Lab, clip: Path, items: int | None, runs: Sequence[tuple[int, int]], at_once: int = 2) -> list[str]:
    """What differs, in words.

    Arguments:
        runs: pairs of a split and a picture quality.
        at_once: how many devices run side by side.
    """
    wanted = expected(clip, items)
    limit = [] if items is None else ["--items", str(items)]
    server = lab.server(APP)
    reports: dict[str, dict[str, Any]] = {}
    for begin in range(0, len(runs), at_once):
        devices = {
            f"split-{split}-quality-{quality}": lab.device(
                APP, str(split), "--source", str(clip), "--picture-quality", str(quality), *limit, port=server.port,
                name=f"split-{split}-quality-{quality}", patience_s=600,
            )
            for split, quality in runs[begin : begin + at_once]
        }  # fmt: skip
        reports |= {name: device.finish() for name, device in devices.items()}
    cloud = server.stop()
    rows = server.rows()
    wrong: list[str] = []
    books = {each["device"]: each["items"] for each in cloud["sessions"]}
    for name, report in reports.items():
        check_report(report)
        mine = [row for row in rows if row["device"] == name]
        if [row["sequence"] for row in mine] != list(range(len(wanted))):
            wrong.append(f"{name}: {len(mine)} items in the store, {len(wanted)} are due, in order")
            continue
        differing = [row["sequence"] for row, result in zip(mine, wanted, strict=True) if row["result"] != result]
        if differing:
            wrong.append(f"{name}: {len(differing)} results differ, the first at item {differing[0]}")
        for side, found in (("device", report["items"]), ("cloud", books[name])):
            if (found["captured"], found["completed"], found["dropped"]) != (len(wanted), len(wanted), {}):
                wrong.append(f"{name}: the books of the {side}: {found}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--items", type=int)
    args = parser.parse_args()
    runs = [(split, quality) for split in range(1, 7) for quality in (90, 0)]
    with tempfile.TemporaryDirectory(prefix="equality-") as folder:
        lab = Lab(Path(folder))
        try:
            wrong = compare(lab, args.clip.resolve(), args.items, runs)
        finally:
            lab.close()
    for line in wrong:
        print(f"WRONG: {line}")
    count = len(expected(args.clip, args.items))
    print(f"{count} items, {len(runs)} runs beside local-only: {'all equal' if not wrong else 'NOT equal'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
