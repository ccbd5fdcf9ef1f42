"""The automatic scheduler. In: observations. Out: the cheapest mix of splits that meets the target, with its reason.

Each interval the estimates take the observation in, and the choice in force is judged. Every two seconds, and whenever
something has changed, the cost model evaluates every split and codec, and the cheapest choice that meets the target
with a margin is compared with the one in force. What keeps the target is done at once; what only saves has to wait.
What is not known, and would be better if things are as good as they may be, is probed by single items, which count like
all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Option
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.hysteresis import Hysteresis, Rival, Standing
from task_offload.scheduling.judgement import ENOUGH, TOLERANCE, Judgement
from task_offload.scheduling.known import LINK_MATTERS, Known
from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.scheduling.probing import SURE, Probing
from task_offload.scheduling.reasons import LOSSY, Change
from task_offload.scheduling.shares import steered

SHARE_STEP = 0.02  # smaller changes of a share are not worth a decision,
CAPACITY_STEP = 0.01  # unless they give so much more throughput: where one split takes many times longer
CAUTION = 0.5  # of the uncertainty of what it would cost, a saving must be larger than that too
LEAST_GAIN = 0.005  # and a saving at least so much of what running everything in the cloud costs
MOVING = 0.1  # a link with more unrest than this recovers as often as it falls: wait a little
MOST_UNREST = 0.3  # of a link that moves, at most so much of its mean is not counted on
LOOK_AROUND_S = 2.0  # between looks at all other choices, while the one in force holds
IN_TIME = 0.9  # of --max-latency, what items may take on average
LEAST_INSIDE = 2.0  # items, whatever --max-latency is: the device works on one while another is on its way
LEAST_FPS = 0.01  # a source that yields nothing for a while is not asked for nothing


@dataclass(frozen=True)
class Goal:
    """What a policy is asked for.

    Attributes:
        tasks: the names of the chain's tasks, in order.
        stateful: for each task, whether it keeps state.
        splits: the splits that the pins allow, ascending.
        start: the split to begin with; the nearest allowed one is taken.
        target_fps: finished items a second that are wanted.
        codecs: the codecs that may be used; the first is in force at the start.
        max_latency_s: time from captured to finished that is allowed; None for any.
    """

    tasks: tuple[str, ...]
    stateful: tuple[bool, ...]
    splits: tuple[int, ...]
    start: int
    target_fps: float
    codecs: tuple[str, ...] = ("none",)
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        if not self.splits or not self.codecs or len(self.tasks) != len(self.stateful):
            raise ValueError("a goal needs splits, codecs, and the same number of names and states")
        if self.target_fps <= 0:
            raise ValueError(f"the target is {self.target_fps} FPS; it must be above 0")


class ModelPolicy:
    """Chooses by the cost model. One per session; it knows no time but the observations'."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._max_latency_s = math.inf if goal.max_latency_s is None else goal.max_latency_s
        self._estimates = Estimates(goal.splits, goal.stateful, goal.codecs)
        self._judgement = Judgement(self._estimates)
        self._probing = Probing()
        start = min(goal.splits, key=lambda split: abs(split - goal.start))
        self._shares: dict[int, float] = {start: 1.0}
        self._codec = goal.codecs[0]
        self._margin = 0.0  # capacity above the demand that a choice is to have
        self._hysteresis = Hysteresis(self._told)
        self._looked_s = -math.inf
        self._looked_fps = math.inf
        self._learned = False  # a probe came back since

    def start(self) -> Decision:
        (split,) = self._shares
        return Decision({split: 1.0}, f"starting with split {split}", self._codec)

    def predict(self) -> Choice | None:
        """What the model says of the choice in force; None before the first observation."""
        if not self._estimates.now_s:
            return None
        return self._current()

    @property
    def source_rate(self) -> float:
        """Items a second that the source yields, as it says or as was seen; infinite if nothing was."""
        return self._estimates.source_rate

    def most_inside(self) -> float:
        """How many items may be captured and not ended at a time, so that they keep to the latency that is allowed.

        Little's law: at a throughput of f, so many items inside take m / f each.
        """
        predicted = self.predict() if self._goal.max_latency_s is not None else None
        if predicted is None:
            return math.inf
        return max(LEAST_INSIDE, IN_TIME * self._max_latency_s * predicted.capacity_fps)

    def decide(self, observation: Observation) -> Decision | None:
        if observation.in_local_outage:
            self._judgement.interrupted(observation.backlog)
            return None
        now_s, estimates = observation.now_s, self._estimates
        estimates.add(observation)
        self._margin = self._judgement.margin
        self._learned |= self._probing.take_in(observation)
        if self._codec not in estimates.codecs:
            return self._change_codec(observation)
        if not self._shares.keys() <= set(estimates.splits):
            return self._leave_impossible(observation)
        standing = self._standing(observation)
        worse = not standing.holds and standing.able_fps < (1.0 - TOLERANCE) * self._looked_fps
        if not (worse or self._learned or estimates.stepped) and now_s - self._looked_s < LOOK_AROUND_S:
            return self._trim(standing)
        return self._look_around(standing, observation)

    def _look_around(self, standing: Standing, observation: Observation) -> Decision | None:
        """Compares the choice in force with all others."""
        now_s, estimates = observation.now_s, self._estimates
        since_s = min(now_s - self._looked_s, LOOK_AROUND_S)
        self._looked_s, self._looked_fps, self._learned = now_s, standing.able_fps, False
        known = estimates.known(estimates.routes)
        found = self._options(known, standing.current)
        sure = [option for option in found if self._in_force(option) or known.spread(option) < SURE]
        best, meets = self._best(sure, standing.demand_fps, standing.aim_fps)
        probes = self._probing.choose(
            found,
            known,
            standing.current,
            best,
            meets,
            lambda hopeful: cost_model.best(hopeful, self._in_time, standing.demand_fps),
            now_s - self._hysteresis.switched_s,
            now_s,
        )
        dearest_s = max(option.cloud_busy_s for option in found)
        least_gain_s = LEAST_GAIN * dearest_s + CAUTION * known.mixed_cloud_spread_s(best)
        rival = Rival(best, meets, self._in_time(best), least_gain_s)
        needed, saves = self._hysteresis.weigh(standing, rival, estimates.link.unrest > MOVING, now_s, since_s)
        if needed or saves:
            reason = self._reason(standing, best, needed)
            self._switch(standing.current, needed, observation)
            return self._decision(best, reason, probes)
        trim = self._trim(standing)
        if not probes:
            return trim
        listed = ", ".join(f"{route.split} with {route.codec}" for route in probes)
        reason = f"one item each is tried at split {listed}: it may be better, and was not measured of late"
        return self._decision(standing.trimmed if trim is not None else standing.current, reason, probes, routine=True)

    def _change_codec(self, observation: Observation) -> Decision:
        """Another cloud than before is connected, and has not the codec in force, or has again the one asked for."""
        old, new = self._codec, self._estimates.codecs[0]
        cause = f"cannot decode {old}" if old in self._goal.codecs else f"can decode {new}"
        self._codec = new
        self._judgement.switched(observation.backlog)
        reason = f"payloads encoded with {new} instead of {old}: the cloud {cause}"
        return self._decision(self._current(), reason)

    def _leave_impossible(self, observation: Observation) -> Decision:
        """A split in force is one where some item could not travel."""
        current = self._current()
        left = ", ".join(str(split) for split in sorted(self._shares.keys() - set(self._estimates.splits)))
        found = self._options(self._estimates.known(self._estimates.routes), current)
        best, _ = self._best(found, *self._demand_and_aim_fps())
        self._switch(current, True, observation)
        return self._decision(best, f"split {left} is not possible: what the next task takes cannot travel")

    def _demand_and_aim_fps(self) -> tuple[float, float]:
        """Throughput that is asked for and that the source gives, and the same with a margin."""
        demand_fps = max(LEAST_FPS, min(self._goal.target_fps, self.source_rate))
        return demand_fps, demand_fps * (1.0 + self._margin)

    def _standing(self, observation: Observation) -> Standing:
        judgement, current = self._judgement, self._current()
        demand_fps, aim_fps = self._demand_and_aim_fps()
        fps = judgement.add(observation, current, demand_fps, aim_fps)
        kept, trimmed = steered(current, aim_fps, fps, judgement.lift)
        able_fps = judgement.believe(fps, kept, demand_fps, observation.interval_s)
        in_time = self._in_time(current)
        holds = in_time and able_fps >= ENOUGH * demand_fps
        return Standing(demand_fps, aim_fps, current, kept, trimmed, able_fps, in_time, holds)

    def _decision(self, choice: Choice, reason: str, probes: tuple[Route, ...] = (), routine: bool = False) -> Decision:
        self._shares = {split: share for split, share in choice.shares.items() if share > 0}
        self._codec = choice.codec
        fps = min(choice.capacity_fps, self.source_rate)
        return Decision(dict(self._shares), reason, self._codec, probes, fps, routine)

    # What is known

    def _options(self, known: Known, current: Choice) -> list[Option]:
        """All options. Those that send more than the choice in force must do with less of a link that moves."""
        most_bytes = current.share * current.first.size_bytes + (1.0 - current.share) * current.second.size_bytes
        return cost_model.options(known.costs, margin=self._margin, doubt=self._doubt, trusted_bytes=most_bytes)

    @property
    def _doubt(self) -> float:
        """A link that moves is counted on for so much less than its mean."""
        return min(MOST_UNREST, self._estimates.link.unrest)

    def _in_force(self, option: Option) -> bool:
        return option.codec == self._codec and option.split in self._shares

    def _current(self) -> Choice:
        costs = self._estimates.costs([(split, self._codec) for split in sorted(self._shares)])
        found = cost_model.options(costs, margin=self._margin)
        return cost_model.mixed(found[0], found[-1], self._shares[found[0].split])

    # What is best

    def _best(self, found: Sequence[Option], demand_fps: float, aim_fps: float) -> tuple[Choice, bool]:
        """The best choice, with the margin if that can be, and whether it meets the demand."""
        return cost_model.best(found, self._in_time, aim_fps, demand_fps)

    def _in_time(self, each: Choice | Option) -> bool:
        return self._judgement.latency_s(each) <= self._max_latency_s

    def _trim(self, standing: Standing) -> Decision | None:
        current, new = standing.current, standing.trimmed
        faster = new.capacity_fps > (1.0 + CAPACITY_STEP) * current.capacity_fps
        if abs(new.share - current.share) < SHARE_STEP and not faster:
            return None
        split = min(new.splits)
        reason = f"{new.shares[split]:.0%} of the items at split {split}, the rest at {max(new.splits)}"
        return self._decision(new, f"{reason}: {standing.demand_fps:.4g} FPS at the least cloud time", routine=True)

    # When to change

    def _told(self, choice: Choice) -> bool:
        """Whether the cloud has told what it costs."""
        return all(self._estimates.told((each.split, each.codec)) for each in (choice.first, choice.second))

    def _switch(self, old: Choice, needed: bool, observation: Observation) -> None:
        self._hysteresis.switched(old, needed, observation.now_s)
        self._judgement.switched(observation.backlog)

    def _reason(self, standing: Standing, new: Choice, needed: bool) -> str:
        old, demand_fps = standing.current, standing.demand_fps
        return Change(
            old=old,
            new=new,
            needed=needed,
            demand_fps=demand_fps,
            able_fps=standing.able_fps,
            reaches=new.capacity_fps >= ENOUGH * demand_fps,
            old_latency_s=self._judgement.latency_s(old),
            new_latency_s=self._judgement.latency_s(new),
            allowed_s=self._max_latency_s,
            link_measured=math.isfinite(self._estimates.link.bytes_per_s),
            lossy_fps=self._lossy_fps(new),
        ).in_words(self._goal.tasks)

    def _lossy_fps(self, new: Choice) -> float:
        """Throughput if payloads were images and sent as JPEG, where the link matters and JPEG is not in use."""
        if new.use_s[cost_model.LINK] < LINK_MATTERS * max(new.use_s) or new.codec.startswith("jpeg"):
            return 0.0
        costs = self._estimates.known([(split, LOSSY) for split in self._estimates.splits]).costs
        found = cost_model.options(costs, doubt=self._doubt, trusted_bytes=0.0)
        return min(cost_model.fastest(found).capacity_fps, costs.source_rate)
