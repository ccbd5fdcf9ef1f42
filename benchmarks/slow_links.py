"""`6 1000` on slow links, beside every split of the sequential design that came before.

    python3 -m benchmarks.slow_links
    python3 -m benchmarks.slow_links --rounds 1

Frames in memory; device and cloud are real processes under the project's `device-lab`, see `device_lab.py`. The
sequential design (`forerunner.py`) is given every split on the same link, and the best of them runs again beside each
of our runs, in turn. Ours are compared item by item with the results of the local-only chain. The first windows of a
run do not count (ours: 4 of 3 s, theirs: 1).
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.device_lab import SCRIPT, Conditions, Lab, why_not
from benchmarks.harness import median_ratio, print_table, verdict
from benchmarks.scheduler_live import WARM_AUTO, Bench, LiveChain, Phase, Plan, Scenario, chains, figures
from task_offload.run import WINDOW_S

WINDOWS = 3  # of 3 s, that count


@dataclass(frozen=True)
class SlowLink:
    """One of the figures: a quota, a rate, further options of the device, and how many times the forerunner's best."""

    cpu: float
    mbit: float
    options: tuple[str, ...]
    times: float


SLOW_LINKS = (
    SlowLink(0.1, 20.0, (), 6.0),
    SlowLink(0.1, 20.0, ("--picture-quality", "0"), 2.0),
    SlowLink(0.25, 100.0, (), 3.0),
)


def run_slow_links(lab_script: Path, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """`6 1000` of the ball chain beside every split of the forerunner on the same links, and its results."""
    chain = next(each for each in chains() if each.name == "ball")
    links = sorted({(each.cpu, each.mbit) for each in SLOW_LINKS})
    found = []
    auto = Plan(1, WARM_AUTO, WINDOWS)
    with Lab(lab_script, chain.app, folder, 1, chain.environment, chain.source) as lab:
        of_link = {}
        for cpu, mbit in links:
            conditions = Conditions(((0.0, cpu),), ((0.0, mbit),))
            of_link[cpu, mbit] = {
                split: forerunner_fps(lab, chain, split, conditions, WINDOWS * WINDOW_S) for split in chain.splits
            }
        for each in SLOW_LINKS:
            bench = Bench(lab, chain, Scenario("slow link", (Phase(each.cpu, each.mbit),)), folder)
            theirs = of_link[each.cpu, each.mbit]
            conditions = auto.conditions((Phase(each.cpu, each.mbit),))
            best = max(theirs, key=lambda split: theirs[split])
            ours, theirs_again, exact = [], [], True
            for _ in range(rounds):
                theirs_again.append(forerunner_fps(lab, chain, best, conditions, WINDOWS * WINDOW_S))
                reports = bench.reports(["6", "1000", *each.options], auto.seconds, conditions)
                ours.append(figures(reports, auto)["fps"])
                exact &= results_exact(lab, chain, reports[0]["items"]["completed"])
            found.append(
                {
                    "link": asdict(each), "forerunner": theirs, "forerunner_best": theirs_again, "fps": ours,
                    "exact": exact, "report": reports[0],
                }
            )  # fmt: skip
    return found


def forerunner_fps(lab: Lab, chain: LiveChain, split: int, conditions: Conditions, seconds: float) -> float:
    """Items a second through the forerunner's last task, after the first window."""
    job = ("forerunner_device", (chain.app, chain.source, split, lab.cloud_host, WINDOW_S + seconds))
    cloud_job = ("forerunner_cloud", (chain.app, lab.cloud_host))
    [device], cloud = lab.run([job], conditions, WINDOW_S + seconds, cloud_job)
    assert cloud is not None
    # What is still in the sockets' buffers when the device has ended does not count.
    begin = device.ended_at - seconds
    return sum(begin <= ended_at < device.ended_at for ended_at in cloud.result) / seconds


def results_exact(lab: Lab, chain: LiveChain, items: int) -> bool:
    """Whether the newest session's recorded results are those of the local-only chain, item by item."""
    with sqlite3.connect(lab.database) as store:
        newest = "SELECT session FROM items ORDER BY rowid DESC LIMIT 1"
        query = f"SELECT sequence, result FROM items WHERE session = ({newest}) ORDER BY sequence"
        recorded = store.execute(query).fetchall()
    free = Conditions(((0.0, 2.0),), ((0.0, 0.0),))
    [answer], _ = lab.run([("local_results", (chain.app, chain.source, items))], free, 60.0)
    local = [(sequence, result) for sequence, result in enumerate(json.loads(json.dumps(answer.result)))]
    return local == [(sequence, json.loads(result or "null")) for sequence, result in recorded]


def print_slow_links(found: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for each in found:
        link, theirs = each["link"], each["forerunner"]
        ratio = median_ratio(each["fps"], each["forerunner_best"])
        rows.append(
            [
                f"quota {link['cpu']:g}, {link['mbit']:g} Mbit/s", "6 1000 " + " ".join(link["options"]),
                " ".join(f"{fps:.3g}" for fps in theirs.values()), f"{median(each['fps']):.4g}",
                verdict(ratio, at_least=link["times"]), "yes" if each["exact"] else "NO: MISSED",
            ]
        )  # fmt: skip
    head = ("device and link", "asked for", "forerunner at split 1 to 6", "FPS", "by its best", "results exact")
    print_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, default=SCRIPT, help="the device-lab script (default: ../shared/lab)")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and their best, in turn (default 3)")
    parser.add_argument("--json", type=Path, help="file for all of it")
    arguments = parser.parse_args()
    if (reason := why_not(arguments.lab)) is not None:
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        found = run_slow_links(arguments.lab, arguments.rounds, Path(folder))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found))
    print_slow_links(found)


if __name__ == "__main__":
    main()
