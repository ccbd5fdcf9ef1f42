#!/usr/bin/env python3
"""Are results equal wherever the tasks run? In: a clip. Out: every split beside local-only, item by item.

    python3 -m benchmarks.equality ../shared/data/hand_and_green_ball.mp4
    python3 -m benchmarks.equality --devices 20 ../shared/data/*.mp4 ball_tracking_example/ball.mp4

Real devices and a real server run ball tracking over the whole clip: at every split, with pictures as JPEG and
lossless. Each result in the store must be what the same chain gives on one machine, in order, and the books of both
sides must add up with nothing dropped. With `--devices` so many run at once, each with a clip and a split of its turn,
and the server's memory and descriptors must be back near their start once they have left. Exit status 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, load_app
from tests.support.processes import Device, Lab, Row, check_report

APP = "ball_tracking_example.taskified"
MB = 1e6
GROWTH_BYTES = 32e6  # of the server after many devices,
SETTLES_S = 30.0  # once it has given back what it kept for their next messages


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
    wanted_of = dict.fromkeys(reports, wanted)
    return differences(wanted_of, reports, server.stop(), server.rows())


def compare_together(lab: Lab, clips: Sequence[Path], items: int | None, devices: int) -> list[str]:
    """What differs when so many devices run at once, in words; prints the server's memory."""
    wanted = {clip: expected(clip, items) for clip in clips}
    limit = [] if items is None else ["--items", str(items)]
    server = lab.server(APP)
    process = psutil.Process(server.pid)

    def start(name: str, number: int) -> Device:
        source = ["--source", str(clips[number % len(clips)])]
        return lab.device(APP, str(1 + number % 6), *source, *limit, port=server.port, name=name, patience_s=600)

    warm = start("first", 0).finish()
    server.wait_for("device first left")
    memory, descriptors = process.memory_info().rss, process.num_fds()
    running = {f"device-{number}": start(f"device-{number}", number) for number in range(devices)}
    reports = {"first": warm} | {name: device.finish() for name, device in running.items()}
    server.wait_for("device device-[0-9]+ left", devices)
    settled_at = time.monotonic() + SETTLES_S
    while process.memory_info().rss - memory > GROWTH_BYTES and time.monotonic() < settled_at:
        time.sleep(0.5)
    memory_after, descriptors_after = process.memory_info().rss, process.num_fds()
    print(
        f"the server's memory: {memory / MB:.0f} MB after one device, {memory_after / MB:.0f} MB after {devices} more"
    )
    wanted_of = {"first": wanted[clips[0]]}
    wanted_of |= {f"device-{number}": wanted[clips[number % len(clips)]] for number in range(devices)}
    wrong = differences(wanted_of, reports, server.stop(), server.rows())
    if memory_after - memory > GROWTH_BYTES:
        wrong.append(f"the server kept {(memory_after - memory) / MB:.0f} MB")
    if descriptors_after > descriptors:
        wrong.append(f"the server kept {descriptors_after - descriptors} descriptors")
    return wrong


def differences(
    wanted_of: Mapping[str, list[Any]], reports: Mapping[str, dict[str, Any]], cloud: dict[str, Any], rows: list[Row]
) -> list[str]:
    """What differs between each device's due results, the store, and the books of both sides, in words."""
    wrong: list[str] = []
    books = {each["device"]: each["items"] for each in cloud["sessions"]}
    for name, report in reports.items():
        check_report(report)
        wanted = wanted_of[name]
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


@contextmanager
def fresh_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="equality-") as folder:
        lab = Lab(Path(folder))
        try:
            yield lab
        finally:
            lab.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    parser.add_argument("--items", type=int)
    parser.add_argument("--devices", type=int, help="so many at once, instead of one split after another")
    args = parser.parse_args()
    clips = [clip.resolve() for clip in args.clips]
    runs = [(split, quality) for split in range(1, 7) for quality in (90, 0)]
    if args.devices:
        with fresh_lab() as lab:
            wrong = compare_together(lab, clips, args.items, args.devices)
        told = f"{args.devices} devices at once"
    else:
        wrong = []
        for clip in clips:
            with fresh_lab() as lab:
                wrong += compare(lab, clip, args.items, runs)
        count = sum(len(expected(clip, args.items)) for clip in clips)
        told = f"{count} items, {len(runs)} runs beside local-only"
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{told}: {'all equal' if not wrong else 'NOT equal'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
