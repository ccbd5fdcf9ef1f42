"""Runs policies through worlds and judges them. In: a world, a policy. Out: a score, and the timeline behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from task_offload.scheduling.cost_model import Costs
from task_offload.scheduling.observation import Decision, Policy
from task_offload.scheduling.policy import Goal, ModelPolicy
from task_offload.scheduling.simulation.baselines import Fixed, Informed, LatencyMinimal, StepDown
from task_offload.scheduling.simulation.device import Interval, SimulatedDevice
from task_offload.scheduling.simulation.oracle import Best, best
from task_offload.scheduling.simulation.step_policy import StepPolicy
from task_offload.scheduling.simulation.worlds import World, value_at

INTERVAL_S = 0.5
WINDOW_INTERVALS = 10  # a window of 5 s: 50 items and more, so that the luck of single items averages out
MEETS = 0.97  # of the target; at 12 FPS one item more or less in a window is 2 %
CONVERGED_COST = 1.15  # at most so many times the oracle's cloud cost
CONVERGED_SLACK = 0.02  # or so much of the all-cloud cost above it, where the oracle's cost is next to nothing
CONVERGED_FPS = 0.95  # of the fastest, where the target is out of reach
CONVERGED_WINDOWS = 3  # in a row
FLIP_S = 60.0  # there and back again within this time is a flip

PolicyFactory = Callable[[World], Policy]


def goal_of(world: World) -> Goal:
    """What a user would ask for in this world."""
    chain = world.chain
    return Goal(
        tasks=chain.names,
        stateful=chain.stateful,
        splits=chain.splits,
        start=world.start if world.start is not None else chain.splits[-1],
        target_fps=world.target_fps,
        codecs=world.codecs,
        max_latency_s=world.max_latency_s,
    )


def policies(world: World) -> dict[str, PolicyFactory]:
    """Every policy that is judged in a world, by name. Fixed splits are there with each codec."""
    splits = world.chain.splits
    start = world.start if world.start is not None else splits[-1]
    found: dict[str, PolicyFactory] = {
        "model": lambda world: ModelPolicy(goal_of(world)),
        "two-way step": lambda world: StepPolicy(splits, start, world.target_fps),
        "one-way step": lambda world: StepDown(splits, start, world.target_fps),
        "least latency": LatencyMinimal,
        "informed": Informed,
    }
    for codec in world.codecs:
        for split in splits:
            found[f"fixed {split} {codec}"] = lambda _, split=split, codec=codec: Fixed(split, codec)  # type: ignore[misc]
    return found


@dataclass(frozen=True)
class Window:
    """What happened in one window, and what could have been.

    Attributes:
        second: its end.
        fps: finished items a second.
        cloud_s: cloud CPU seconds for each finished item.
        oracle_s: the same of the cheapest feasible mix; None where the target cannot be met.
        single_s: the same of the cheapest feasible single split.
        fastest_fps: throughput of the fastest choice from one interval to the next, the source's rate at most.
        all_cloud_s: the same when all that may is offloaded.
        shares, codec: in force at its end.
        link_mbit: the link's mean rate.
        p95_s: 95th percentile of latency.
    """

    second: float
    fps: float
    cloud_s: float
    oracle_s: float | None
    single_s: float | None
    fastest_fps: float
    all_cloud_s: float
    shares: dict[int, float]
    codec: str
    link_mbit: float
    p95_s: float


@dataclass
class Run:
    """One policy in one world.

    Attributes:
        windows: one after the other.
        decisions: (second, decision) of every decision that came after the start.
        latencies_s: of all items.
    """

    world: World
    windows: list[Window] = field(default_factory=list)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    items: int = 0
    first: Decision | None = None


class Recorder:
    """Gathers intervals into windows beside the oracle's judgement of them."""

    def __init__(self, world: World) -> None:
        self.run = Run(world)
        self._intervals: list[Interval] = []
        self._costs: list[Costs] = []
        self._known: dict[tuple[object, ...], Best] = {}

    def add(self, second: float, interval: Interval, costs: Costs, decision: Decision) -> None:
        self._intervals.append(interval)
        self._costs.append(costs)
        if len(self._intervals) < WINDOW_INTERVALS:
            return
        finished = sum(each.finished for each in self._intervals)
        cloud_s = sum(each.cloud_s for each in self._intervals)
        rate = sum(each.link_bytes_per_s for each in self._costs) / len(self._costs)
        possible = self._best(replace(costs, link_bytes_per_s=rate))
        # What a link that is dead for a second does not carry then, no knowledge of it carries before or after.
        fastest_fps = sum(min(self._best(each).fastest.capacity_fps, each.source_rate) for each in self._costs)
        fastest_fps /= len(self._costs)
        can = possible.mix is not None and fastest_fps >= self.run.world.target_fps
        latencies = sorted(latency for each in self._intervals for latency in each.latencies)
        self.run.latencies_s += latencies
        self.run.items += finished
        self.run.windows.append(
            Window(
                second=second,
                fps=finished / (WINDOW_INTERVALS * INTERVAL_S),
                cloud_s=cloud_s / finished if finished else 0.0,
                oracle_s=possible.mix.cloud_busy_s if can and possible.mix is not None else None,
                single_s=possible.single.cloud_busy_s if can and possible.single is not None else None,
                fastest_fps=fastest_fps,
                all_cloud_s=possible.all_cloud_s,
                shares=dict(decision.shares),
                codec=decision.codec or "none",
                link_mbit=rate / 125_000.0,
                p95_s=percentile(latencies, 0.95),
            )
        )
        self._intervals.clear()
        self._costs.clear()

    def _best(self, costs: Costs) -> Best:
        world = self.run.world
        key = (
            *costs.device_s,
            *costs.cloud_s,
            *costs.survival,
            costs.link_bytes_per_s,
            costs.workers,
            costs.main_share,
        )
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = best(costs, world.target_fps, world.max_latency_s)
        return found


def run(world: World, factory: PolicyFactory, seed: int) -> Run:
    """One device alone in its world."""
    device = SimulatedDevice(world, factory(world), seed, INTERVAL_S)
    recorder = Recorder(world)
    recorder.run.first = device.decision
    for tick in range(round(world.duration_s / INTERVAL_S)):
        step(device, recorder, world.costs(tick * INTERVAL_S), (tick + 1) * INTERVAL_S)
    return recorder.run


def run_fleet(world: World, devices: int, seed: int) -> list[Run]:
    """Many devices in like worlds that share one cloud, each under its own model policy.

    The world's `workers` are the whole cloud. It tells each device what it can count on: its even part, or what it
    uses now and an even part of what is free, whichever is more; less than it uses while the cloud is overloaded.
    """
    fleet = [SimulatedDevice(world, ModelPolicy(goal_of(world)), seed + i, INTERVAL_S) for i in range(devices)]
    recorders = [Recorder(world) for _ in fleet]
    used = [0.0] * devices
    for tick in range(round(world.duration_s / INTERVAL_S)):
        second = tick * INTERVAL_S
        truth = world.costs(second)
        workers = value_at(world.workers, second)
        total = sum(used)
        for i, (device, recorder) in enumerate(zip(fleet, recorders, strict=True)):
            spare = max(0.0, 0.9 * workers - total)
            own = used[i] * min(1.0, 0.9 * workers / total) if total else 0.0
            share = max(workers / devices, own + spare / devices)
            costs = replace(truth, workers=share)
            recorder.run.first = recorder.run.first or device.decision
            cloud_s = step(device, recorder, costs, second + INTERVAL_S)
            used[i] += 0.3 * (cloud_s / INTERVAL_S - used[i])
    return [recorder.run for recorder in recorders]


def step(device: SimulatedDevice, recorder: Recorder, costs: Costs, end_s: float) -> float:
    """One interval of one device. Returns the cloud CPU seconds that it cost."""
    interval, observation = device.advance(costs)
    recorder.add(end_s, interval, costs, device.decision)
    decision = device.policy.decide(observation)
    if decision is not None:
        device.decision = replace(decision, codec=decision.codec or device.decision.codec)
        device.mixer.follow(decision)
        recorder.run.decisions.append((end_s, device.decision))
    return interval.cloud_s


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in ascending order; not a number where there is none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


@dataclass(frozen=True)
class Score:
    """How well a policy did in one run.

    Attributes:
        feasible, met: windows in which the oracle meets the target, and those of them in which the policy did.
        cloud_s, oracle_s, single_s, all_cloud_s: cloud CPU seconds an item, summed over the feasible windows.
        speed: where the target is out of reach, mean throughput as a share of the fastest; None if nowhere.
        converge_decisions, converge_windows: after the start and after each change; infinite if never.
        switches_per_minute: changes of the set of splits or of the codec.
        flips: switches there and back within `FLIP_S`.
        p50_s, p95_s, p99_s: latency.
    """

    feasible: int
    met: int
    cloud_s: float
    oracle_s: float
    single_s: float
    all_cloud_s: float
    speed: float | None
    converge_decisions: tuple[float, ...]
    converge_windows: tuple[float, ...]
    switches_per_minute: float
    flips: int
    p50_s: float
    p95_s: float
    p99_s: float

    @property
    def met_share(self) -> float:
        return self.met / self.feasible if self.feasible else math.nan

    @property
    def cost_ratio(self) -> float:
        """Cloud cost as a multiple of the mixing oracle's."""
        return self.cloud_s / self.oracle_s if self.oracle_s else math.nan


def judge(run: Run) -> Score:
    """Scores a run."""
    world = run.world
    feasible = [window for window in run.windows if window.oracle_s is not None]
    beyond = [window for window in run.windows if window.oracle_s is None and window.fastest_fps > 0.1]
    changes = switches(run)
    events = (0.0, *world.changes_s)
    converged = [_converged(run, event, changes) for event in events]
    ordered = sorted(run.latencies_s)
    fastest = sum(window.fastest_fps for window in beyond)
    return Score(
        feasible=len(feasible),
        met=sum(meets(window, world) for window in feasible),
        cloud_s=sum(window.cloud_s for window in feasible),
        oracle_s=sum(window.oracle_s or 0.0 for window in feasible),
        single_s=sum(window.single_s or window.oracle_s or 0.0 for window in feasible),
        all_cloud_s=sum(window.all_cloud_s for window in feasible),
        speed=sum(min(window.fps, window.fastest_fps) for window in beyond) / fastest if beyond else None,
        converge_decisions=tuple(decisions for decisions, _ in converged),
        converge_windows=tuple(windows for _, windows in converged),
        switches_per_minute=60.0 * len(changes) / world.duration_s,
        flips=_flips(run, changes),
        p50_s=percentile(ordered, 0.5),
        p95_s=percentile(ordered, 0.95),
        p99_s=percentile(ordered, 0.99),
    )


def _state(decision: Decision) -> tuple[frozenset[int], str | None]:
    return frozenset(decision.shares), decision.codec


def switches(run: Run) -> list[tuple[float, tuple[frozenset[int], str | None]]]:
    """(second, new set and codec) of each change of them; the first entry is the start and no switch."""
    assert run.first is not None
    before = _state(run.first)
    found = []
    for second, decision in run.decisions:
        after = _state(decision)
        if after != before:
            found.append((second, after))
            before = after
    return found


def _flips(run: Run, changes: Sequence[tuple[float, tuple[frozenset[int], str | None]]]) -> int:
    assert run.first is not None
    states = [(0.0, _state(run.first)), *changes]
    return sum(a[1] == c[1] and c[0] - b[0] < FLIP_S for a, b, c in zip(states, states[1:], states[2:], strict=False))


def meets(window: Window, world: World) -> bool:
    """Whether throughput, and with `--max-latency` the latency of 19 items of 20, is as wanted."""
    in_time = world.max_latency_s is None or window.p95_s <= world.max_latency_s
    return in_time and window.fps >= MEETS * world.target_fps


def _good(window: Window, world: World) -> bool:
    if window.oracle_s is None:
        return window.fps >= CONVERGED_FPS * window.fastest_fps
    allowed_s = max(CONVERGED_COST * window.oracle_s, window.oracle_s + CONVERGED_SLACK * window.all_cloud_s)
    return meets(window, world) and window.cloud_s <= allowed_s


def _converged(
    run: Run, event_s: float, changes: Sequence[tuple[float, tuple[frozenset[int], str | None]]]
) -> tuple[float, float]:
    """After an event: how many switches, and how many windows, until the windows stay good."""
    after = [window for window in run.windows if window.second > event_s]
    for i in range(len(after) - CONVERGED_WINDOWS + 1):
        if all(_good(window, run.world) for window in after[i : i + CONVERGED_WINDOWS]):
            begin_s = after[i].second - WINDOW_INTERVALS * INTERVAL_S
            return sum(event_s <= second <= begin_s + 1e-9 for second, _ in changes), i
    return math.inf, math.inf
