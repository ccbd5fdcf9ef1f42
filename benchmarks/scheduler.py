"""Judges schedulers in simulated worlds, beside an oracle that knows them.

    python3 benchmarks/scheduler.py                      every world, a table for each scheduler
    python3 benchmarks/scheduler.py --seeds 5 --plots out   more luck, and plots (needs matplotlib)
    python3 benchmarks/scheduler.py --worlds link --all     worlds by name, and every fixed split
    python3 benchmarks/scheduler.py --worlds drawn --drawn 40   only worlds drawn at random, which nobody tuned on

Links are replayed from the CSV files of seconds and Mbit/s in --traces; where there are none, look-alikes serve.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from task_offload.scheduling.observation import Decision, Observation, Policy
from task_offload.scheduling.simulation import laboratory
from task_offload.scheduling.simulation.drawn import draw
from task_offload.scheduling.simulation.laboratory import Run, Score
from task_offload.scheduling.simulation.worlds import SYNTHETIC, Steps, World, always, worlds

TRACES = Path(__file__).resolve().parents[2] / "shared" / "lab" / "traces"
SCHEDULERS = ("model", "two-way step", "one-way step", "least latency", "all-cloud", "all-local")
BOUND = "informed"  # the oracle's choice, one decision late: not a scheduler to beat, but what a world allows
README_TIMELINE = "traffic, device is shared"
TIMELINES = ("link falls to a fifth", "traffic, device is shared", "verizon x3, traffic")


def load_traces(folder: Path) -> dict[str, Steps] | None:
    """Recorded links by the first word of their file's name; None if there are none."""
    found: dict[str, Steps] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            rows = [row for row in csv.reader(file) if row and row[0].replace(".", "", 1).isdigit()]
        found[path.stem.partition("-")[0]] = tuple((float(second), float(rate)) for second, rate in rows)
    return found if {"verizon", "att"} <= set(found) else None


class Timed:
    """A policy whose own CPU time is counted."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.cpu_s = 0.0

    def start(self) -> Decision:
        return self.policy.start()

    def decide(self, observation: Observation) -> Decision | None:
        begin = time.thread_time()
        try:
            return self.policy.decide(observation)
        finally:
            self.cpu_s += time.thread_time() - begin


def run_one(world: World, name: str, seed: int) -> tuple[Run, Score, float]:
    """One scheduler in one world; with its CPU seconds."""
    fixed = [each for each in laboratory.policies(world) if each.startswith("fixed")]
    named = {"all-cloud": fixed[0], "all-local": fixed[len(world.chain.splits) - 1]}
    factory = laboratory.policies(world)[named.get(name, name)]
    timed: list[Timed] = []

    def make(world: World) -> Policy:
        timed.append(Timed(factory(world)))
        return timed[0]

    run = laboratory.run(world, make, seed)
    return run, laboratory.judge(run), timed[0].cpu_s


def _job(arguments: tuple[World, str, int]) -> tuple[World, str, Score, float, int, float]:
    world, name, seed = arguments
    run, score, cpu_s = run_one(world, name, seed)
    return world, name, score, cpu_s, run.items, world.duration_s


def mean(values: Iterable[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return statistics.fmean(kept) if kept else math.nan


def summary(rows: Sequence[tuple[World, str, Score, float, int, float]]) -> dict[str, float]:
    """One scheduler over all worlds. Cloud costs are shares of all-cloud, so that every world weighs the same."""
    scores = [score for _, _, score, _, _, _ in rows]
    steady = [(world, score) for world, _, score, _, _, _ in rows if world.steady]
    feasible = [score for score in scores if score.feasible]
    cost = sum(score.cloud_s / score.all_cloud_s for score in feasible)
    oracle = sum(score.oracle_s / score.all_cloud_s for score in feasible)
    decisions = [value for score in scores for value in score.converge_decisions]
    windows = [value for score in scores for value in score.converge_windows]
    return {
        "met": sum(score.met for score in feasible) / max(1, sum(score.feasible for score in feasible)),
        "cost_ratio": cost / oracle if oracle else math.nan,
        "cost_share": cost / max(1, len(feasible)),
        "single_ratio": cost / sum(score.single_s / score.all_cloud_s for score in feasible) if feasible else math.nan,
        "speed": mean(score.speed for score in scores if score.speed is not None),
        "decisions_median": statistics.median(decisions),
        "within_2_decisions": sum(value <= 2 for value in decisions) / len(decisions),
        "windows_median": statistics.median(windows),
        "never": sum(not math.isfinite(value) for value in decisions) / len(decisions),
        "switches_per_minute": mean(score.switches_per_minute for _, score in steady),
        "switches_worst": max((score.switches_per_minute for _, score in steady), default=0.0),
        "flips": sum(score.flips for _, score in steady),
        "p50_ms": 1e3 * mean(score.p50_s for score in scores),
        "p95_ms": 1e3 * mean(score.p95_s for score in scores),
        "p99_ms": 1e3 * mean(score.p99_s for score in scores),
        "overhead_us": 1e6 * sum(cpu_s for _, _, _, cpu_s, _, _ in rows) / max(1, sum(items for *_, items, _ in rows)),
        "overhead_worst_us": 1e6 * max(cpu_s / max(1, items) for _, _, _, cpu_s, items, _ in rows),
    }


def print_summary(found: dict[str, dict[str, float]]) -> None:
    print(
        f"{'scheduler':<16}{'met':>7}{'cost':>7}{'x all':>7}{'speed':>7}{'conv <=2':>9}{'windows':>8}{'never':>7}"
        f"{'sw/min':>8}{'worst':>7}{'flips':>6}{'p50':>7}{'p95':>7}{'p99 ms':>8}{'us/item':>9}{'worst':>7}"
    )
    for name, each in found.items():
        print(
            f"{name:<16}{each['met']:>7.1%}{each['cost_ratio']:>7.2f}{each['cost_share']:>7.2f}{each['speed']:>7.2f}"
            f"{each['within_2_decisions']:>9.0%}{each['windows_median']:>8.0f}{each['never']:>7.0%}"
            f"{each['switches_per_minute']:>8.2f}{each['switches_worst']:>7.2f}{each['flips']:>6.0f}{each['p50_ms']:>7.0f}"
            f"{each['p95_ms']:>7.0f}{each['p99_ms']:>8.0f}{each['overhead_us']:>9.1f}{each['overhead_worst_us']:>7.1f}"
        )
    print(
        "\nmet: windows of 5 s with at least 97 % of the target, of those in which the oracle can meet it."
        "\ncost: cloud CPU an item, as a multiple of the mixing oracle's; x all: as a share of all-cloud."
        "\nspeed: where the target is out of reach, throughput as a share of the fastest."
        "\nconv: starts and changes after which at most 2 switches led to windows that stay good; windows: how"
        "\nmany it took (median); never: those after which none did."
        "\nsw/min (mean, worst) and flips: in worlds in which nothing moves."
        "\ninformed: the oracle's choice, with a margin, told when each interval of half a second has passed."
    )


def print_worlds(rows: Sequence[tuple[World, str, Score, float, int, float]]) -> None:
    print(
        f"\n{'world':<34}{'met':>7}{'informed':>10}{'cost':>7}{'single':>8}{'speed':>7}{'sw/min':>8}{'flips':>6}"
        f"{'p95 ms':>8}{'us/item':>9}"
    )
    grouped = defaultdict(list)
    bounds = defaultdict(list)
    for row in rows:
        if row[1] == "model":
            grouped[row[0].name].append(row)
        elif row[1] == BOUND:
            bounds[row[0].name].append(row)
    for name, group in grouped.items():
        each = summary(group)
        single = sum(s.single_s for _, _, s, *_ in group) / max(1e-12, sum(s.oracle_s for _, _, s, *_ in group))
        feasible = any(score.feasible for _, _, score, *_ in group)
        print(
            f"{name[:33]:<34}"
            + (
                f"{each['met']:>7.1%}{summary(bounds[name])['met']:>10.1%}{each['cost_ratio']:>7.2f}{single:>8.2f}"
                if feasible
                else f"{'-':>7}{'-':>10}{'-':>7}{'-':>8}"
            )
            + f"{each['speed']:>7.2f}{mean(s.switches_per_minute for _, _, s, *_ in group):>8.2f}"
            f"{sum(s.flips for _, _, s, *_ in group):>6}{each['p95_ms']:>8.0f}{each['overhead_us']:>9.1f}"
        )
    print("single: the cheapest feasible single split's cost, as a multiple of the mixing oracle's")


def print_hindsight(rows: Sequence[tuple[World, str, Score, float, int, float]]) -> None:
    """Whether a baseline, or a fixed split that nobody could have known before, would have done as well for less."""
    print("\nbaselines that met the target as often as the model and cost less cloud CPU, best in hindsight:")
    by_world: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for world, name, score, *_ in rows:
        by_world[world.name][name].append(score)
    none = True
    for world_name, by_name in by_world.items():

        def total(scores: list[Score]) -> tuple[float, float]:
            return sum(s.met for s in scores) / max(1, sum(s.feasible for s in scores)), sum(s.cloud_s for s in scores)

        if not any(score.feasible for score in by_name["model"]):
            continue
        met, cost = total(by_name["model"])
        better = [
            (total(s)[1] / cost, n) for n, s in by_name.items() if n not in ("model", BOUND) and total(s)[0] >= met
        ]
        if better and min(better)[0] < 1.0:
            none = False
            print(f"  {world_name}: {min(better)[1]} at {min(better)[0]:.2f} of the model's cost")
    if none:
        print("  none")


def print_fleet(devices: int, seed: int) -> None:
    """Many devices that share a cloud, which for a while is too small for all they would like to offload."""
    enough, little = 0.08 * devices, 0.025 * devices
    world = World(
        f"fleet of {devices}", SYNTHETIC, 25.0, always(5.0), link_mbit=always(60),
        workers=((0.0, enough), (150.0, little), (300.0, enough)), duration_s=450.0, steady=False,
    )  # fmt: skip
    runs = laboratory.run_fleet(world, devices, seed)
    print(f"\n{devices} devices that want {world.target_fps:g} FPS of one cloud, by halves of a minute:")
    print(f"{'seconds':>10}{'workers':>9}{'in use':>8}{'FPS':>7}{'least':>7}{'most':>7}  switches a minute, each")
    for begin in range(0, 450, 30):
        windows = [w for run in runs for w in run.windows if begin < w.second <= begin + 30]
        fps = [mean(w.fps for w in run.windows if begin < w.second <= begin + 30) for run in runs]
        used = devices * mean(w.fps * w.cloud_s for w in windows)
        switches = sum(begin < second <= begin + 30 for run in runs for second, _ in laboratory.switches(run))
        print(
            f"{begin:>10}{little if 150 <= begin < 300 else enough:>9.2f}{used:>8.2f}{mean(fps):>7.1f}{min(fps):>7.1f}"
            f"{max(fps):>7.1f}{2 * switches / devices:>25.2f}"
        )


BLUE, ORANGE, GREY = "#1f5fa8", "#e08214", "#777777"
COLOURS = dict(zip(SCHEDULERS, (BLUE, ORANGE, "#b2182b", "#5aae61", GREY, "#9970ab"), strict=True))


def pyplot() -> Any:
    """matplotlib's, without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw_timeline(axes: Sequence[Any], world: World, seed: int) -> None:
    """FPS, splits, link and cost over time in one world: the model beside the two-way step scheduler."""
    model, step = (run_one(world, name, seed)[0] for name in ("model", "two-way step"))
    seconds = [window.second - 2.5 for window in model.windows]
    top, middle, third, bottom = axes
    top.axhline(world.target_fps, color="black", linewidth=1, linestyle="--", label=f"target, {world.target_fps:g} FPS")
    top.plot(seconds, [w.fps for w in step.windows], color=ORANGE, linewidth=1.2, label="two-way step scheduler")
    top.plot(seconds, [w.fps for w in model.windows], color=BLUE, linewidth=1.8, label="this scheduler")
    top.set_ylabel("FPS")
    top.set_ylim(0, 1.35 * max(world.target_fps, *(w.fps for run in (model, step) for w in run.windows)))
    splits = sorted({split for window in model.windows for split in window.shares})
    shades = pyplot().get_cmap("viridis_r")
    shares = [[window.shares.get(split, 0.0) for window in model.windows] for split in splits]
    names = world.chain.names
    middle.stackplot(
        seconds, shares, step="mid",
        colors=[shades(0.1 + 0.8 * i / max(1, len(splits) - 1)) for i in range(len(splits))],
        labels=[f"split {split}: device runs up to {names[split - 1]}" for split in splits],
    )  # fmt: skip
    middle.set_ylabel("share of\nthe items")
    middle.set_ylim(0, 1)
    third.plot(seconds, [w.link_mbit for w in model.windows], color=GREY, label="what the link carries")
    third.set_ylabel("Mbit/s")
    third.set_ylim(bottom=0)
    everything = [1e3 * w.all_cloud_s for w in model.windows]
    bottom.plot(seconds, everything, color=GREY, linewidth=1, label="everything in the cloud")
    bottom.plot(
        seconds, [1e3 * w.cloud_s for w in step.windows], color=ORANGE, linewidth=1.2, label="two-way step scheduler"
    )
    oracle = [math.nan if w.oracle_s is None else 1e3 * w.oracle_s for w in model.windows]
    bottom.plot(seconds, oracle, color="black", linewidth=1.2, linestyle="--", label="least possible (oracle)")
    bottom.plot(seconds, [1e3 * w.cloud_s for w in model.windows], color=BLUE, linewidth=1.8, label="this scheduler")
    bottom.set_ylabel("cloud CPU,\nms an item")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("seconds")
    for change, words in world.changes:
        top.text(
            change + 0.005 * world.duration_s, 0.98, textwrap.fill(words, 24),
            transform=top.get_xaxis_transform(), va="top", fontsize=8,
        )  # fmt: skip
    for axis in axes:
        for change in world.changes_s:
            axis.axvline(change, color="black", linewidth=0.6, alpha=0.4)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    top.set_title(
        f"{world.name}: meet {world.target_fps:g} FPS with the least cloud work (windows of 5 s)", fontsize=11
    )


def draw_summary(axis: Any, rows: Sequence[tuple[World, str, Score, float, int, float]]) -> None:
    """Target met against cloud cost, each scheduler over all worlds; each world a dot behind it."""
    grouped: dict[str, list[tuple[World, str, Score, float, int, float]]] = defaultdict(list)
    for row in rows:
        if row[1] in SCHEDULERS:
            grouped[row[1]].append(row)
    for name, group in grouped.items():
        feasible = [score for _, _, score, *_ in group if score.feasible]
        axis.scatter(
            [score.cloud_s / score.all_cloud_s for score in feasible], [100 * score.met_share for score in feasible],
            color=COLOURS[name], s=12, alpha=0.3, linewidths=0,
        )  # fmt: skip
        each = summary(group)
        axis.scatter(each["cost_share"], 100 * each["met"], color=COLOURS[name], s=130, edgecolors="black", zorder=3)
        right = each["cost_share"] > 0.8  # the label would leave the picture
        axis.annotate(
            "this scheduler" if name == "model" else name, (each["cost_share"], 100 * each["met"]),
            xytext=(-9 if right else 9, -14), textcoords="offset points", fontsize=10, zorder=4,
            ha="right" if right else "left", weight="bold" if name == "model" else "normal",
        )  # fmt: skip
    feasible = [score for _, _, score, *_ in grouped["model"] if score.feasible]
    oracle = statistics.fmean(score.oracle_s / score.all_cloud_s for score in feasible)
    axis.scatter(oracle, 100, marker="*", s=260, color="gold", edgecolors="black", zorder=3)
    axis.annotate("oracle", (oracle, 100), xytext=(-44, 6), textcoords="offset points", fontsize=10, zorder=4)
    axis.set_xlabel("cloud CPU an item, as a share of running everything in the cloud (left is cheaper)")
    axis.set_ylabel("windows that meet the target,\n% of those in which it is possible (up is better)")
    axis.set_xlim(-0.03, 1.15)
    axis.set_ylim(-4, 108)
    axis.spines[["top", "right"]].set_visible(False)
    worlds_ = len({row[0].name for row in rows})
    axis.set_title(f"Schedulers in {worlds_} simulated worlds. Large: mean over all. Small: one world.", fontsize=11)


def plot_timeline(world: World, folder: Path, seed: int) -> Path:
    plt = pyplot()
    figure, axes = plt.subplots(4, 1, figsize=(10, 9), sharex=True, layout="constrained", height_ratios=(3, 3, 1.4, 3))
    draw_timeline(axes, world, seed)
    path = folder / f"timeline-{world.name.replace(',', '').replace(' ', '-')}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plot_summary(rows: Sequence[tuple[World, str, Score, float, int, float]], folder: Path) -> Path:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    draw_summary(axis, rows)
    path = folder / "summary.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plot_readme(
    rows: Sequence[tuple[World, str, Score, float, int, float]], world: World, path: Path, seed: int
) -> Path:
    """One world over time, and all of them below it."""
    plt = pyplot()
    figure = plt.figure(figsize=(10, 12), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(7, 5), hspace=0.04)
    draw_timeline(above.subplots(4, 1, sharex=True, height_ratios=(3, 2, 1.2, 3)), world, seed)
    draw_summary(below.subplots(), rows)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each world with different luck (default 2)")
    parser.add_argument("--worlds", default="", help="only worlds with this in their name")
    parser.add_argument("--all", action="store_true", help="every fixed split with every codec too")
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of CSV files: seconds,Mbit/s")
    parser.add_argument("--plots", type=Path, help="folder for plots")
    parser.add_argument("--json", type=Path, help="file for every score")
    parser.add_argument("--drawn", type=int, default=0, metavar="COUNT", help="worlds drawn at random, too")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of these and of all luck (default 0)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="the README's picture, PNG or SVG")
    parser.add_argument("--fleet", type=int, default=0, help="devices on one cloud, as a further world")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    traces = load_traces(arguments.traces)
    if traces is None:
        print(f"no recorded links in {arguments.traces}; look-alikes are used")
    known = [*worlds(traces), *(draw(arguments.first + i) for i in range(arguments.drawn))]
    chosen = [world for world in known if arguments.worlds in world.name]
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    jobs = []
    for world in chosen:
        fixed = [name for name in laboratory.policies(world) if name.startswith("fixed")] if arguments.all else []
        jobs += [(world, name, seed) for name in (*SCHEDULERS, BOUND, *fixed) for seed in seeds]
    begin = time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(_job, jobs, chunksize=1))
    hours = sum(row[5] for row in rows) / 3600
    print(
        f"{len(chosen)} worlds, {len(rows)} runs, {hours:.0f} simulated hours in {time.perf_counter() - begin:.0f} s\n"
    )
    print_summary({name: summary([row for row in rows if row[1] == name]) for name in (*SCHEDULERS, BOUND)})
    print_worlds(rows)
    if arguments.all:
        print_hindsight(rows)
    if arguments.fleet:
        print_fleet(arguments.fleet, arguments.first)
    if arguments.json:
        scores = [{"world": world.name, "scheduler": name, "cpu_s": cpu_s, "items": items, **asdict(score)}
                  for world, name, score, cpu_s, items, _ in rows]  # fmt: skip
        arguments.json.write_text(json.dumps(scores, indent=1))
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        print(plot_summary(rows, arguments.plots))
        for world in chosen:
            if world.name in TIMELINES:
                print(plot_timeline(world, arguments.plots, arguments.first))
    if arguments.readme:
        shown = next((world for world in chosen if world.name == README_TIMELINE), chosen[0])
        print(plot_readme(rows, shown, arguments.readme, arguments.first))


if __name__ == "__main__":
    main()
