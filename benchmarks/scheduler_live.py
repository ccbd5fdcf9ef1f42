"""Automatic mode on real weak devices and links, beside every fixed split.

    python3 -m benchmarks.scheduler_live                         three chains, six scenarios
    python3 -m benchmarks.scheduler_live --chain ball --scenario "quota 0.1" --rounds 1
    python3 -m benchmarks.scheduler_live --forerunner            the slow-link figures beside the sequential design

It drives the project's `device-lab` (CPU quotas, a shaped link, network namespaces; root on Linux), see
`device_lab.py`. Device and cloud are real processes; pictures as JPEG, TLS and recording as usual. For each chain and
scenario:

1. A sweep over all fixed splits (manual mode, `--codec auto`) finds the fastest, and the cheapest that meets a target.
   The target is `--share` of what the best fixed split reaches in its worst phase.
2. In turn with these two, automatic mode runs from a bad start (the slowest fixed split): asked for more than can be
   reached, it must have at least 0.95 of the fastest one's FPS; asked for the target, it must meet it with at most 1.05
   times the cheapest one's CPU in the cloud for an item. Medians of the rounds count.
3. The simulation predicts each fixed split in a world of the same quota and link, whose chain is as measured here.

What counts are windows of 3 s of the device's report: after a warm-up of 2 windows (a fixed split's: 1), and without
those in which the quota or the link has just changed. A target is met with `MEETS` of it in the worst phase.
"""

from __future__ import annotations

import argparse
import csv
import json
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import synthetic_chain
from benchmarks.device_lab import SCRIPT, Conditions, JobError, Lab, why_not
from benchmarks.harness import in_turn, print_table, verdict
from task_offload.run import WINDOW_S
from task_offload.scheduling.cost_model import Costs, Payload
from task_offload.scheduling.simulation import laboratory
from task_offload.scheduling.simulation.baselines import Fixed
from task_offload.scheduling.simulation.worlds import TLS_S_PER_BYTE, ChainModel, World, always

MEETS = 0.97  # of the target: what the scheduler itself tolerates, and what the simulation's judge takes
FASTEST_BAR, COST_BAR = 0.95, 1.05
WARM_FIXED, WARM_AUTO, SETTLE = 1, 2, 1  # windows that do not count: at the start, and after a change
LATE_S = 0.7  # a change comes this much after a window begins: a device starts its clock when it is connected
UNREACHABLE_FPS = 100_000
CLOUD_CORES = 2


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
    """Phases one after the other, on some devices at once."""

    name: str
    phases: tuple[Phase, ...]
    devices: int = 1


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
        Scenario("quota 1, Verizon x3", (Phase(1.0, tuple(3.0 * rate for rate in trace)),)),
        Scenario("quota halves", (Phase(0.5, 40.0), Phase(0.25, 40.0))),
        Scenario("link to a fifth and back", (Phase(0.25, 100.0), Phase(0.25, 20.0), Phase(0.25, 100.0))),
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


@dataclass(frozen=True)
class Figures:
    """What a run gave, over all devices.

    Attributes:
        fps: items a second in the windows that count, of one device on average.
        worst_fps: in the phase that has the least.
        cloud_ms: CPU of the cloud for an item.
        least: the slowest device's share of the average.
        reports: the devices'.
    """

    fps: float
    worst_fps: float
    cloud_ms: float
    least: float = 1.0
    reports: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(reports: Sequence[Mapping[str, Any]], plan: Plan) -> Figures:
        phases = [plan.counted_windows(report["windows"]) for report in reports]
        if any(not windows for device in phases for windows in device):
            raise JobError("a report has fewer windows than its run should have")
        of_device = [[fmean(window["fps"] for window in windows) for windows in device] for device in phases]
        counted = [window for device in phases for windows in device for window in windows]
        items = sum(window["fps"] * WINDOW_S for window in counted)
        cloud_s = sum(window["cloud_cpu_s"] for window in counted)
        fps = [fmean(each) for each in of_device]
        return Figures(
            fmean(fps),
            min(fmean(each) for each in zip(*of_device, strict=True)),
            1e3 * cloud_s / items if items else float("inf"),
            min(fps) / fmean(fps) if any(fps) else 0.0,
            tuple(reports),
        )

    @staticmethod
    def median(of: Sequence[Figures]) -> Figures:
        return Figures(
            *(median(getattr(each, name) for each in of) for name in ("fps", "worst_fps", "cloud_ms", "least"))
        )


def fastest(sweep: Mapping[int, Figures]) -> int:
    """The split with the most FPS."""
    return max(sweep, key=lambda split: sweep[split].fps)


def target_of(sweep: Mapping[int, Figures], share: float) -> float:
    """A target that a fixed split meets in every phase: `share` of what the best of them reaches in its worst."""
    return float(f"{share * max(each.worst_fps for each in sweep.values()):.3g}")


def cheapest(sweep: Mapping[int, Figures], target_fps: float) -> int:
    """The split with the least cloud CPU for an item among those that meet the target."""
    meeting = [split for split, each in sweep.items() if each.worst_fps >= MEETS * target_fps]
    return min(meeting, key=lambda split: sweep[split].cloud_ms)


# -- the simulation beside it -------------------------------------------------------------------------------------


def chain_model(names: Sequence[str], costs: Costs, splits: Sequence[int]) -> ChainModel:
    """The simulation's chain with the costs that were measured here; sending and TLS by the project's numbers."""
    codecs = sorted({codec for _, codec in costs.payloads})
    none = Payload(0.0, 0.0, 0.0)
    of_codec = {}
    for codec in codecs:
        found = []
        for split in range(1, len(costs.device_s)):
            each = costs.payloads.get((split, codec), none)
            tls_s = each.size_bytes * TLS_S_PER_BYTE
            found.append(Payload(each.size_bytes, each.encode_s + tls_s, each.decode_s + tls_s))
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

    def run(self, words: Sequence[str], plan: Plan) -> Figures:
        reports = self.reports(words, plan.seconds, plan.conditions(self._scenario.phases))
        return Figures.of(reports, plan)

    def costs(self) -> tuple[list[str], Costs]:
        """The chain's costs at full speed."""
        free = Conditions(((0.0, 1.0),), ((0.0, 0.0),))
        jobs: list[Any] = [("profile", (self.command("--items", "40"),))]
        jobs += [("pause", ())] * (self._scenario.devices - 1)
        answers, _ = self._lab.run(jobs, free, 60.0)
        return answers[0].result


def run_scenario(arguments: argparse.Namespace, chain: LiveChain, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """The sweep, the rounds and the verdicts of one chain in one scenario."""
    with Lab(arguments.lab, chain.app, folder, scenario.devices, chain.environment, chain.source) as lab:
        bench = Bench(lab, chain, scenario, folder)
        names, costs = bench.costs()
        count = len(scenario.phases)
        counted = arguments.windows
        if isinstance(scenario.phases[0].mbit, tuple):
            counted *= 2  # a recorded link has moods
        sweep_plan = Plan(count, WARM_FIXED, max(1, counted - 1) if count > 1 else counted)
        sweep = {split: bench.run([str(split)], sweep_plan) for split in chain.splits}
        best = fastest(sweep)
        worst = min(sweep, key=lambda split: sweep[split].fps)
        target_fps = target_of(sweep, arguments.share)
        cheap = cheapest(sweep, target_fps)
        fixed, auto = Plan(count, WARM_FIXED, counted), Plan(count, WARM_AUTO, counted)
        contenders: dict[str, tuple[list[str], Plan]] = {
            "fastest": ([str(best)], fixed),
            "auto, all it can": ([str(worst), str(UNREACHABLE_FPS)], auto),
            "auto, target": ([str(worst), f"{target_fps:g}"], auto),
        }
        if cheap != best:
            contenders["cheapest"] = ([str(cheap)], fixed)
        runs: dict[str, list[Figures]] = {name: [] for name in contenders}
        for name in in_turn(list(contenders), arguments.rounds):
            runs[name].append(bench.run(*contenders[name]))
        runs.setdefault("cheapest", runs["fastest"])
    return {
        "chain": chain.name,
        "scenario": scenario.name,
        "sweep": {split: asdict(each) for split, each in sweep.items()},
        "predicted": predict(chain_model(names, costs, chain.splits), scenario),
        "profile": {
            "device_ms": [1e3 * each for each in costs.device_s],
            "payloads": {f"{split} {codec}": list(each) for (split, codec), each in costs.payloads.items()},
        },
        "fastest_split": best,
        "cheapest_split": cheap,
        "start": worst,
        "target_fps": target_fps,
        "runs": {name: [asdict(each) for each in of] for name, of in runs.items()},
        "medians": {name: asdict(Figures.median(of)) for name, of in runs.items()},
    }


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """What the medians say beside their bars."""
    medians, target_fps = found["medians"], found["target_fps"]
    return {
        "speed": verdict(medians["auto, all it can"]["fps"] / medians["fastest"]["fps"], at_least=FASTEST_BAR),
        "target": verdict(medians["auto, target"]["worst_fps"] / target_fps, at_least=MEETS),
        "cost": verdict(medians["auto, target"]["cloud_ms"] / medians["cheapest"]["cloud_ms"], at_most=COST_BAR),
    }


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """The tables: the bars, and the sweep beside the simulation."""
    rows = []
    for found in results:
        said, medians = verdicts(found), found["medians"]
        rows.append(
            [
                found["chain"], found["scenario"], f"{found['start']}",
                f"{found['fastest_split']}: {medians['fastest']['fps']:.4g}", said["speed"],
                f"{found['target_fps']:g}", said["target"],
                f"{found['cheapest_split']}: {medians['cheapest']['cloud_ms']:.3g}", said["cost"],
            ]
        )  # fmt: skip
    print_table(
        ("chain", "scenario", "start", "fastest: FPS", "auto by it", "target", "auto by it", "cheapest: cloud ms",
         "auto by it"),
        rows,
    )  # fmt: skip
    rows = []
    for found in results:
        by_split = [
            f"{split}: {each['fps']:.3g} / {found['predicted'][split]:.3g}" for split, each in found["sweep"].items()
        ]
        off = [found["predicted"][split] / each["fps"] - 1.0 for split, each in found["sweep"].items() if each["fps"]]
        rows.append([found["chain"], found["scenario"], f"{median(off):+.0%}", f"{max(off, key=abs):+.0%}", *by_split])
    width = max(len(row) for row in rows)
    rows = [row + [""] * (width - len(row)) for row in rows]
    head = ("chain", "scenario", "simulation off: median", "at most", "split: FPS measured / simulated")
    print_table(head + ("",) * (width - len(head)), rows)
    said_all = [text for found in results for text in verdicts(found).values()]
    print(f"{sum('MISSED' not in text for text in said_all)} of {len(said_all)} bars met")


# -- beside the forerunner ----------------------------------------------------------------------------------------


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


def run_slow_links(arguments: argparse.Namespace, chain: LiveChain, folder: Path) -> list[dict[str, Any]]:
    """`6 1000` of the ball chain beside every split of the forerunner on the same links, and its results."""
    assert chain.source is not None
    links = sorted({(each.cpu, each.mbit) for each in SLOW_LINKS})
    found = []
    auto = Plan(1, WARM_AUTO, arguments.windows)
    with Lab(arguments.lab, chain.app, folder, 1, chain.environment, chain.source) as lab:
        of_link = {}
        for cpu, mbit in links:
            conditions = Conditions(((0.0, cpu),), ((0.0, mbit),))
            of_link[cpu, mbit] = {
                split: forerunner_fps(lab, chain, split, conditions, arguments.windows * WINDOW_S)
                for split in chain.splits
            }
        for each in SLOW_LINKS:
            bench = Bench(lab, chain, Scenario("slow link", (Phase(each.cpu, each.mbit),)), folder)
            theirs = of_link[each.cpu, each.mbit]
            conditions = auto.conditions((Phase(each.cpu, each.mbit),))
            best = max(theirs, key=lambda split: theirs[split])
            ours, theirs_again, exact = [], [], True
            for _ in range(arguments.rounds):
                theirs_again.append(forerunner_fps(lab, chain, best, conditions, arguments.windows * WINDOW_S))
                reports = bench.reports(["6", "1000", *each.options], auto.seconds, conditions)
                ours.append(Figures.of(reports, auto).fps)
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
    return local == [(sequence, json.loads(result)) for sequence, result in recorded]


def print_slow_links(found: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for each in found:
        link, theirs = each["link"], each["forerunner"]
        ratio = median(a / b for a, b in zip(each["fps"], each["forerunner_best"], strict=True))
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
    parser.add_argument("--trace", type=Path, help="CSV of seconds and Mbit/s (default: Verizon's beside the lab)")
    parser.add_argument("--from-second", type=int, default=10, help="where in the trace to begin (default 10)")
    parser.add_argument("--chain", action="append", default=[], help="only chains with this in their name; repeatable")
    parser.add_argument("--scenario", action="append", default=[], help="only scenarios with this in their name")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared, in turn (default 3)")
    parser.add_argument("--windows", type=int, default=2, help="windows of 3 s that count in each phase (default 2)")
    parser.add_argument("--share", type=float, default=0.8, help="the target, of what a fixed split reaches")
    parser.add_argument("--forerunner", action="store_true", help="the slow-link figures beside the sequential design")
    parser.add_argument("--json", type=Path, help="file for all of it; results that it holds already are kept")
    arguments = parser.parse_args()
    if (reason := why_not(arguments.lab)) is not None:
        print(f"skipped: {reason}")
        return
    results: list[dict[str, Any]] = []
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text(), object_hook=_numbered)
    by_name = {each.name: each for each in chains()}
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        if arguments.forerunner:
            print_slow_links(run_slow_links(arguments, by_name["ball"], Path(folder)))
            return
        trace_file = arguments.trace or arguments.lab.parent / "traces" / "verizon-lte-uplink.csv"
        trace = load_trace(trace_file)[arguments.from_second :]
        for scenario in scenarios(trace):
            for chain in by_name.values():
                if not (_named(chain.name, arguments.chain) and _named(scenario.name, arguments.scenario)):
                    continue
                if any((each["chain"], each["scenario"]) == (chain.name, scenario.name) for each in results):
                    continue
                own = Path(folder) / f"{len(results)}"
                own.mkdir()
                try:
                    found = run_scenario(arguments, chain, scenario, own)
                except JobError as error:
                    sys.exit(f"{chain.name}, {scenario.name}: {error}")
                results.append(found)
                print(f"{chain.name}, {scenario.name}: {verdicts(found)}", flush=True)
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps(results, indent=1))
    print()
    print_results(results)


def _named(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def _numbered(found: dict[str, Any]) -> dict[Any, Any]:
    """Splits are numbers again after JSON."""
    return {int(key) if key.isdigit() else key: value for key, value in found.items()}


if __name__ == "__main__":
    main()
