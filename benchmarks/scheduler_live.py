"""Automatic mode on real weak devices and links, beside every fixed split and beside the simulation.

    python3 -m benchmarks.scheduler_live --json live.json                three chains, six scenarios
    python3 -m benchmarks.scheduler_live --chain ball --scenario "quota 0.1" --rounds 1
    python3 -m benchmarks.scheduler_live --json live.json --table        only prints what the file holds

It drives the project's `device-lab` (CPU quotas, a shaped link, network namespaces; root on Linux), see
`device_lab.py`. Device and cloud are real processes; pictures as JPEG, TLS and recording as usual. For each chain and
scenario:

1. A sweep over all fixed splits (manual mode, `--codec auto`) finds the fastest, and the cheapest that meets a target.
   The target is `TARGET_SHARE` of what the best fixed split reaches in its worst phase.
2. In turn with these two, automatic mode runs from a bad start (the slowest fixed split): asked for more than can be
   reached, it must have at least 0.95 of the fastest one's FPS; asked for the target, it must meet it with at most 1.05
   times the cheapest one's CPU in the cloud for an item. Ratios are taken round by round; their medians count.
3. The simulation predicts each fixed split in a world of the same quota and link, whose chain is as measured here.

What counts are windows of 3 s of the device's report: after a warm-up of 4 windows (a fixed split's: 1, but on a
recorded link 4, so that the same seconds of it count), and without those in which the quota or the link has just
changed. A target is met with `MEETS` of it in the worst phase.

`--json` keeps every run. A later call with the same file goes on where it ended: with the scenarios that are not there
yet, and with the rounds that `--rounds` asks for beyond those that are.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import synthetic_chain
from benchmarks.device_lab import SCRIPT, Conditions, JobError, Lab, why_not
from benchmarks.harness import in_turn, median_ratio, print_table, verdict
from task_offload.run import WINDOW_S
from task_offload.scheduling.cost_model import Costs, Payload
from task_offload.scheduling.simulation import laboratory
from task_offload.scheduling.simulation.baselines import Fixed
from task_offload.scheduling.simulation.worlds import TLS_S_PER_BYTE, ChainModel, World, always

MEETS = 0.97  # of the target: what the scheduler itself tolerates, and what the simulation's judge takes
FASTEST_BAR, COST_BAR = 0.95, 1.05
TARGET_SHARE = 0.8
WARM_FIXED, WARM_AUTO, SETTLE = 1, 4, 1  # windows that do not count: at the start, and after a change
LATE_S = 0.7  # a change comes this much after a window begins: a device starts its clock when it is connected
UNREACHABLE_FPS = 100_000
CLOUD_CORES = 2
TRACE_BEGINS_S = 10
ITEM_S = 0.5e-3  # of the device for each item, beside tasks and encoding: threads, queues, acks, meters

FASTEST, CHEAPEST, MOST, TARGET = "fastest", "cheapest", "auto, all it can", "auto, target"


@dataclass(frozen=True)
class LiveChain:
    """A chain under test: its app, its source, and what both sides find in their environment."""

    name: str
    app: str
    splits: tuple[int, ...]
    source: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Cores of each device, and the uplink's Mbit/s: one rate, or one for each second."""

    cpu: float
    mbit: float | tuple[float, ...]


@dataclass(frozen=True)
class Scenario:
    """Phases one after the other, on some devices at once. `windows` of each phase count."""

    name: str
    phases: tuple[Phase, ...]
    windows: int = 2
    devices: int = 1

    @property
    def recorded(self) -> bool:
        """Whether a link is a recorded one: only the same seconds of it compare."""
        return any(isinstance(phase.mbit, tuple) for phase in self.phases)


def chains() -> tuple[LiveChain, ...]:
    """The three chains. The synthetic one's work is measured once, so that every process does the same."""
    rounds = {kind: synthetic_chain.calibrate(kind) for kind in ("free", "held")}
    parameters = {**json.loads(synthetic_chain.DEFAULT), "rounds_per_ms": rounds}
    environment = {synthetic_chain.VARIABLE: json.dumps(parameters)}
    return (
        LiveChain("ball", "benchmarks.ball_chain", (1, 2, 3, 4, 5, 6), "memory:"),
        LiveChain("traffic", "benchmarks.traffic_chain", (1, 2, 3)),
        LiveChain("synthetic", "benchmarks.synthetic_chain", (1, 2, 3, 4), environment=environment),
    )


def scenarios(trace: Sequence[float]) -> tuple[Scenario, ...]:
    """The six scenarios; `trace` is the recorded link, in Mbit/s for each second."""
    return (
        Scenario("quota 0.25, 40 Mbit/s", (Phase(0.25, 40.0),)),
        Scenario("quota 0.1, 100 Mbit/s", (Phase(0.1, 100.0),)),
        Scenario("quota 1, Verizon x3", (Phase(1.0, tuple(3.0 * rate for rate in trace)),), windows=4),
        Scenario("quota halves", (Phase(0.5, 40.0), Phase(0.25, 40.0))),
        Scenario("link to a fifth and back", (Phase(0.25, 100.0), Phase(0.25, 20.0), Phase(0.25, 100.0)), windows=1),
        Scenario("8 devices at 0.1", (Phase(0.1, 0.0),), devices=8),
    )


def load_trace(path: Path) -> tuple[float, ...]:
    """Mbit/s for each second of a CSV of seconds and Mbit/s."""
    with path.open() as file:
        return tuple(float(row[1]) for row in csv.reader(file) if row and row[0].isdigit())


@dataclass(frozen=True)
class Plan:
    """When the phases of a run begin, in windows of its report, and which of them count.

    Arguments:
        warm: windows at the start that do not count.
        counted: windows of each phase that count.
    """

    phases: int
    warm: int
    counted: int

    @property
    def begins(self) -> tuple[int, ...]:
        """The first window of each phase."""
        return (0, *(self.warm + self.counted + i * (SETTLE + self.counted) for i in range(self.phases - 1)))

    @property
    def windows(self) -> int:
        return self.begins[-1] + (self.warm if self.phases == 1 else SETTLE) + self.counted

    @property
    def seconds(self) -> float:
        return self.windows * WINDOW_S + LATE_S

    def conditions(self, phases: Sequence[Phase]) -> Conditions:
        cpu: list[tuple[float, float]] = []
        mbit: list[tuple[float, float]] = []
        for begin, phase in zip(self.begins, phases, strict=True):
            second = begin * WINDOW_S + (LATE_S if begin else 0.0)
            cpu.append((second, phase.cpu))
            rates = phase.mbit if isinstance(phase.mbit, tuple) else (phase.mbit,)
            mbit += [(second + i, rate) for i, rate in enumerate(rates)]
        return Conditions(tuple(cpu), tuple(mbit))

    def counted_windows(self, windows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        """Of a report's windows those that count, for each phase."""
        found = []
        for number, begin in enumerate(self.begins):
            first = begin + (SETTLE if number else self.warm)
            found.append(list(windows[first : first + self.counted]))
        return found


Run = dict[str, Any]
"""A run as `--json` keeps it: `fps`, `worst_fps`, `cloud_ms` (see `figures`), and the devices' `reports`."""


def figures(reports: Sequence[Mapping[str, Any]], plan: Plan) -> Run:
    """What the windows that count gave, over all devices.

    Returns:
        `fps`, items a second of one device on average; `worst_fps`, the same in the phase that has the least; and
        `cloud_ms`, CPU of the cloud for an item.

    Raises:
        JobError: a report has fewer windows than its run should have.
    """
    phases = [plan.counted_windows(report["windows"]) for report in reports]
    if any(len(windows) < plan.counted for device in phases for windows in device):
        raise JobError("a report has fewer windows than its run should have")
    of_phase = [fmean(window["fps"] for windows in each for window in windows) for each in zip(*phases, strict=True)]
    counted = [window for device in phases for windows in device for window in windows]
    items = sum(window["fps"] * WINDOW_S for window in counted)
    cloud_s = sum(window["cloud_cpu_s"] for window in counted)
    return {
        "fps": fmean(of_phase),
        "worst_fps": min(of_phase),
        "cloud_ms": 1e3 * cloud_s / items if items else float("inf"),
    }


@dataclass(frozen=True)
class Aims:
    """What a sweep says: the fixed splits to compare with, the target, and the worst split to start from."""

    fastest: int
    cheapest: int
    slowest: int
    target_fps: float

    @staticmethod
    def of(sweep: Mapping[int, Run]) -> Aims:
        target_fps = float(f"{TARGET_SHARE * max(run['worst_fps'] for run in sweep.values()):.3g}")
        meeting = [split for split, run in sweep.items() if run["worst_fps"] >= MEETS * target_fps]
        return Aims(
            max(sweep, key=lambda split: sweep[split]["fps"]),
            min(meeting, key=lambda split: sweep[split]["cloud_ms"]),
            min(sweep, key=lambda split: sweep[split]["fps"]),
            target_fps,
        )

    def contenders(self) -> dict[str, list[str]]:
        """What runs in turn, by name: the words of the device's command."""
        found = {
            FASTEST: [str(self.fastest)],
            MOST: [str(self.slowest), str(UNREACHABLE_FPS)],
            TARGET: [str(self.slowest), f"{self.target_fps:g}"],
        }
        if self.cheapest != self.fastest:
            found[CHEAPEST] = [str(self.cheapest)]
        return found


# -- the simulation beside it -------------------------------------------------------------------------------------


def chain_model(names: Sequence[str], costs: Costs, splits: Sequence[int]) -> ChainModel:
    """The simulation's chain with the costs that were measured here; TLS and `ITEM_S` by the project's numbers."""
    codecs = sorted({codec for _, codec in costs.payloads})
    none = Payload(0.0, 0.0, 0.0)
    of_codec = {}
    for codec in codecs:
        found = []
        for split in range(1, len(costs.device_s)):
            each = costs.payloads.get((split, codec), none)
            tls_s = each.size_bytes * TLS_S_PER_BYTE
            found.append(Payload(each.size_bytes, each.encode_s + tls_s + ITEM_S, each.decode_s + tls_s))
        of_codec[codec] = tuple(found)
    return ChainModel(
        tuple(names),
        tuple(costs.device_s),
        tuple(costs.survival),
        of_codec,
        tuple(costs.stateful),
        tuple(splits),
    )


def predict(model: ChainModel, scenario: Scenario) -> dict[int, float]:
    """FPS of each fixed split with its best codec, in the simulation: the mean over the phases."""
    found: dict[int, float] = {}
    codecs = tuple(model.payloads)
    for split in model.splits:
        of_phase = []
        for phase in scenario.phases:
            rates = phase.mbit if isinstance(phase.mbit, tuple) else (phase.mbit,)
            world = World(
                scenario.name,
                model,
                UNREACHABLE_FPS,
                always(1.0 / phase.cpu),
                link_mbit=tuple((float(i), rate or 10_000.0) for i, rate in enumerate(rates)),
                rtt_s=0.001,
                codecs=codecs,
                workers=always(CLOUD_CORES / scenario.devices),
                main_share=always(1.0 / scenario.devices),
                quota=phase.cpu < 1.0,
                duration_s=20.0,
            )
            of_phase.append(max(_simulated_fps(world, split, codec) for codec in codecs))
        found[split] = fmean(of_phase)
    return found


def _simulated_fps(world: World, split: int, codec: str) -> float:
    run = laboratory.run(world, lambda _: Fixed(split, codec), 1)
    return fmean(window.fps for window in run.windows[1:])


# -- runs ---------------------------------------------------------------------------------------------------------


class Bench:
    """Runs one chain in one scenario."""

    def __init__(self, lab: Lab, chain: LiveChain, scenario: Scenario, folder: Path) -> None:
        self._lab = lab
        self._chain = chain
        self._scenario = scenario
        self._folder = folder
        self._runs = 0

    def command(self, *more: str) -> list[str]:
        words = ["--app", self._chain.app, *more]
        return words + (["--source", self._chain.source] if self._chain.source is not None else [])

    def reports(self, words: Sequence[str], seconds: float, conditions: Conditions) -> list[dict[str, Any]]:
        """Runs every device with these words for some seconds."""
        self._runs += 1
        jobs, files = [], []
        for number in range(self._scenario.devices):
            report = self._folder / f"run-{self._runs}-{number}.json"
            files.append(report)
            more = [
                "--host",
                self._lab.cloud_host,
                "--report",
                str(report),
                "--duration",
                f"{seconds:g}",
                "--drain",
                "20",
            ]
            jobs.append(("coordinator", (self.command(*words, *more), str(report.with_suffix(".log")))))
        answers, _ = self._lab.run(jobs, conditions, seconds)
        for answer, report in zip(answers, files, strict=True):
            if answer.result != 0:
                raise JobError(f"a device ended with {answer.result}: {report.with_suffix('.log').read_text()[-2000:]}")
        found = [json.loads(report.read_text()) for report in files]
        for each in found:
            assert not any(each["items"]["dropped"].values()), each["items"]
        return found

    def run(self, words: Sequence[str], plan: Plan) -> Run:
        reports = self.reports(words, plan.seconds, plan.conditions(self._scenario.phases))
        return {**figures(reports, plan), "reports": reports}

    def costs(self) -> tuple[list[str], Costs]:
        """The chain's costs at full speed."""
        free = Conditions(((0.0, 1.0),), ((0.0, 0.0),))
        jobs: list[Any] = [("profile", (self.command("--items", "40"),))]
        jobs += [("pause", ())] * (self._scenario.devices - 1)
        answers, _ = self._lab.run(jobs, free, 60.0)
        return answers[0].result


def measure(
    lab_script: Path,
    chain: LiveChain,
    scenario: Scenario,
    folder: Path,
    rounds: int,
    found: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Adds to `found` what it lacks: the simulation's predictions, the sweep, and rounds. Saves after each run."""
    phases = len(scenario.phases)
    auto = fixed = sweep = Plan(phases, WARM_AUTO, scenario.windows)
    if not scenario.recorded:
        fixed = Plan(phases, WARM_FIXED, scenario.windows)
        sweep = Plan(phases, WARM_FIXED, max(1, scenario.windows // 2))
    with Lab(lab_script, chain.app, folder, scenario.devices, chain.environment, chain.source) as lab:
        bench = Bench(lab, chain, scenario, folder)
        if "sweep" not in found:
            names, costs = bench.costs()
            found["predicted"] = predict(chain_model(names, costs, chain.splits), scenario)
            found["sweep"] = {split: bench.run([str(split)], sweep) for split in chain.splits}
            save()
        contenders = Aims.of(found["sweep"]).contenders()
        runs: dict[str, list[Run]] = found.setdefault("runs", {name: [] for name in contenders})
        there = {name: len(each) for name, each in runs.items()}
        for name in in_turn(list(contenders), rounds):
            if there[name]:
                there[name] -= 1
                continue
            runs[name].append(bench.run(contenders[name], auto if name in (MOST, TARGET) else fixed))
            save()


# -- what is printed ----------------------------------------------------------------------------------------------


def complete(found: Mapping[str, Any], rounds: int) -> bool:
    """Whether all of a scenario's contenders have run so often."""
    return all(len(runs) >= rounds for runs in found.get("runs", {"": []}).values())


def verdicts(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """The bars: FPS by the fastest split's, FPS by the target, cloud CPU by the cheapest split's."""
    runs, aims = found["runs"], Aims.of(found["sweep"])
    fps = {name: [run["fps"] for run in runs[name]] for name in (FASTEST, MOST)}
    cloud_ms = {name: [run["cloud_ms"] for run in runs.get(name, runs[FASTEST])] for name in (TARGET, CHEAPEST)}
    worst_fps = median(run["worst_fps"] for run in runs[TARGET])
    return (
        verdict(median_ratio(fps[MOST], fps[FASTEST]), at_least=FASTEST_BAR),
        verdict(worst_fps / aims.target_fps, at_least=MEETS),
        verdict(median_ratio(cloud_ms[TARGET], cloud_ms[CHEAPEST]), at_most=COST_BAR),
    )


def off_by(found: Mapping[str, Any]) -> list[float]:
    """How far the simulation's FPS of each fixed split is from what was measured, relative."""
    return [found["predicted"][split] / run["fps"] - 1.0 for split, run in found["sweep"].items() if run["fps"]]


def print_results(results: Iterable[Mapping[str, Any]]) -> None:
    """The bars, and the sweep beside the simulation, of all that have a round."""
    results = [found for found in results if complete(found, 1)]
    bars, simulated, said = [], [], []
    for found in results:
        aims, runs, name = Aims.of(found["sweep"]), found["runs"], [found["chain"], found["scenario"]]
        speed, target, cost = verdicts(found)
        said += [speed, target, cost]
        fastest_fps = median(run["fps"] for run in runs[FASTEST])
        cheapest_ms = median(run["cloud_ms"] for run in runs.get(CHEAPEST, runs[FASTEST]))
        bars.append(
            [
                *name, f"{len(runs[FASTEST])}", f"{aims.slowest}", f"{aims.fastest}: {fastest_fps:.3g}", speed,
                f"{aims.target_fps:g}", target, f"{aims.cheapest}: {cheapest_ms:.3g}", cost,
            ]
        )  # fmt: skip
        of_splits = [
            f"{split}: {run['fps']:.3g} / {found['predicted'][split]:.3g}" for split, run in found["sweep"].items()
        ]
        off = off_by(found)
        simulated.append([*name, f"{median(off):+.0%}", f"{max(off, key=abs):+.0%}", ", ".join(of_splits)])
    print_table(
        ("chain", "scenario", "rounds", "start", "fastest: FPS", "auto by it", "target", "auto by it",
         "cheapest: cloud ms", "auto by it"),
        bars,
    )  # fmt: skip
    print_table(("chain", "scenario", "simulation off: median", "most", "split: FPS measured / simulated"), simulated)
    print(f"{sum('MISSED' not in text for text in said)} of {len(said)} bars met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, default=SCRIPT, help="the device-lab script (default: ../shared/lab)")
    parser.add_argument("--trace", type=Path, help="CSV of seconds and Mbit/s (default: Verizon's beside the lab)")
    parser.add_argument("--chain", action="append", default=[], help="only chains with this in their name; repeatable")
    parser.add_argument("--scenario", action="append", default=[], help="only scenarios with this in their name")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared, in turn (default 3)")
    parser.add_argument("--json", type=Path, help="file that keeps every run; a later call goes on with it")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text(), object_hook=_numbered)
    if not arguments.table:
        if (reason := why_not(arguments.lab)) is not None:
            print(f"skipped: {reason}")
            return
        run_all(arguments, results)
    print_results(results)


def run_all(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Adds to the results what is asked for and not there yet."""

    def save() -> None:
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results))

    trace_file = arguments.trace or arguments.lab.parent / "traces" / "verizon-lte-uplink.csv"
    trace = load_trace(trace_file)[TRACE_BEGINS_S:]
    apps = chains()
    wanted = [
        (chain, scenario)
        for scenario in scenarios(trace)
        for chain in apps
        if _named(chain.name, arguments.chain) and _named(scenario.name, arguments.scenario)
    ]
    for chain, scenario in wanted:
        name = {"chain": chain.name, "scenario": scenario.name}
        found = next((each for each in results if name.items() <= each.items()), None)
        if found is None:
            found = dict(name)
            results.append(found)
        if complete(found, arguments.rounds):
            continue
        with tempfile.TemporaryDirectory(prefix="live-") as folder:
            try:
                measure(arguments.lab, chain, scenario, Path(folder), arguments.rounds, found, save)
            except JobError as error:
                sys.exit(f"{chain.name}, {scenario.name}: {error}")
        print(f"{chain.name}, {scenario.name}: {', '.join(verdicts(found))}", flush=True)


def _named(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def _numbered(found: dict[str, Any]) -> dict[Any, Any]:
    """Splits are numbers again after JSON."""
    return {int(key) if key.isdigit() else key: value for key, value in found.items()}


if __name__ == "__main__":
    main()
