"""The automatic scheduler. In: observations. Out: the cheapest mix of splits that meets the target, with its reason.

Each interval the estimates take the observation in, and the choice in force is judged. Every two seconds, and whenever
something has changed, the cost model evaluates every split and codec, and the cheapest choice that meets the target
with a margin is compared with the one in force. What keeps the target is done at once;
what only saves waits for its `patience`, which grows with every attempt that failed. What is not known, and would be
better if things are as good as they may be, is probed by single items, which count like all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Option
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.judgement import ENOUGH, JUDGED_S, TOLERANCE, Judgement
from task_offload.scheduling.known import LINK_MATTERS, Known
from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.scheduling.probing import GAIN, SURE, Probing
from task_offload.scheduling.reasons import LOSSY, Change

SHARE_STEP = 0.02  # smaller changes of a share are not worth a decision,
CAPACITY_STEP = 0.01  # unless they give so much more throughput: where one split takes many times longer
PATIENCE_S = 6.0  # over which a saving is averaged before it is taken
MAX_PATIENCE_S = 600.0
CAUTION = 0.5  # of the uncertainty of what it would cost, a saving must be larger than that too
LEAST_GAIN = 0.005  # and a saving at least so much of what running everything in the cloud costs
TAKEN_BACK = 0.1  # what a choice is worth that leaves fewer tasks to the cloud, changes nothing else, and saves at all
TRIAL_S = 60.0  # a saving that fails within this time was a mistake
MUCH_FASTER = 1.2  # than what was left for being slower: a mistake that need not be waited for
FAR_FASTER = 1.5  # than the choice in force, which need not be seen at work then
FORGIVE_S = 300.0  # after this time without a failure, patience halves
MOVING = 0.1  # a link with more unrest than this recovers as often as it falls: wait a little
MOST_UNREST = 0.3  # of a link that moves, at most so much of its mean is not counted on
LOOK_AROUND_S = 2.0  # between looks at all other choices, while the one in force holds
CATCH_UP = 0.7  # of what the last seconds lacked, the shares make up for in the next as many
CATCH_UP_LEAST, CATCH_UP_MOST = -0.15, 0.3
IN_TIME = 0.9  # of --max-latency, what items may take on average
LEAST_INSIDE = 2.0  # items, whatever --max-latency is: the device works on one while another is on its way
LEAST_FPS = 0.01  # a source that yields nothing for a while is not asked for nothing
MIN_SHARE = 0.002  # of either split of a mix


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


class _State(NamedTuple):
    """How the choice in force does.

    Attributes:
        demand_fps: throughput that is asked for and that the source gives; `aim_fps`: the same with a margin.
        current: the choice in force.
        kept: with the best shares for what is predicted; `trimmed`: and for what came of late.
        able_fps: throughput that it can give; `holds`: whether that and its latency do.
    """

    demand_fps: float
    aim_fps: float
    current: Choice
    kept: Choice
    trimmed: Choice
    able_fps: float
    holds: bool


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
        self._switched_s = -math.inf
        self._left: tuple[frozenset[int], str] | None = None  # splits and codec before the last switch
        self._saved_s = -math.inf
        self._patience_s = PATIENCE_S
        self._rest_s = 0.0  # least time between switches while the target is out of reach
        self._forgiven_s = 0.0
        self._looked_s = -math.inf
        self._looked_fps = math.inf
        self._learned = False  # a probe came back since
        self._short_s = 0.0  # how long the target is out of reach for the splits in force
        self._saving = 0.0  # mean of what the best choice would have saved of late, relative

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
        state = self._state(observation)
        worse = not state.holds and state.able_fps < (1.0 - TOLERANCE) * self._looked_fps
        if not (worse or self._learned or estimates.stepped) and now_s - self._looked_s < LOOK_AROUND_S:
            return self._trim(state)
        since_look_s = min(now_s - self._looked_s, LOOK_AROUND_S)
        self._looked_s, self._looked_fps, self._learned = now_s, state.able_fps, False

        known = estimates.known(estimates.routes)
        found = self._options(known, state.current)
        sure = [option for option in found if self._in_force(option) or known.spread(option) < SURE]
        best, meets = self._best(sure, state.demand_fps, state.aim_fps)
        probes = self._probing.choose(
            found,
            known,
            state.current,
            best,
            meets,
            lambda hopeful: self._best(hopeful, state.demand_fps, state.demand_fps),
            now_s - self._switched_s,
            now_s,
        )
        self._forgive(now_s)
        self._short_s = 0.0 if state.holds else self._short_s + since_look_s
        rested = meets or self._has_rested(best, state, now_s)
        least_gain_s = LEAST_GAIN * max(option.cloud_s for option in found) + CAUTION * known.mixed_cloud_spread_s(best)
        saves = self._saves(state, best, rested, least_gain_s, since_look_s)
        needed = self._needed(state, best, rested)
        if needed or saves:
            reason = self._reason(state, best, needed)
            self._switch(state.current, needed, observation)
            return self._decision(best, reason, probes)
        trim = self._trim(state)
        if not probes:
            return trim
        listed = ", ".join(f"{route.split} with {route.codec}" for route in probes)
        reason = f"one item each is tried at split {listed}: it may be better, and was not measured of late"
        return self._decision(state.trimmed if trim is not None else state.current, reason, probes, routine=True)

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

    def _state(self, observation: Observation) -> _State:
        judgement, current = self._judgement, self._current()
        demand_fps, aim_fps = self._demand_and_aim_fps()
        fps = judgement.add(observation, current, demand_fps, aim_fps)
        kept = self._kept(current, aim_fps, None)
        trimmed = kept if fps is None else self._kept(current, aim_fps, fps)
        able_fps = judgement.believe(fps, kept, demand_fps, observation.interval_s)
        holds = able_fps >= ENOUGH * demand_fps and self._in_time(current)
        return _State(demand_fps, aim_fps, current, kept, trimmed, able_fps, holds)

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
        """The cheapest choice that meets the demand, or else the fastest; and which of the two it is."""
        usable = [option for option in found if self._in_time(option)]
        if not usable:
            return cost_model.single(min(found, key=lambda option: option.latency_s)), False
        for fps in (aim_fps, demand_fps):
            choice = cost_model.cheapest(usable, fps)
            if choice is not None:
                return choice, True
        return cost_model.fastest(usable), False

    def _in_time(self, each: Choice | Option) -> bool:
        return self._judgement.latency_s(each) <= self._max_latency_s

    def _kept(self, current: Choice, aim_fps: float, fps: float | None) -> Choice:
        """The best shares for the splits in force. They make up for what the last seconds lacked or had too much."""
        first, second = current.first, current.second
        if first is second:
            return current
        share = cost_model.cheapest_share(first, second, aim_fps)
        if share is None:
            fastest = cost_model.mixed(first, second, cost_model.fastest_share(first, second))
            return fastest if fastest.capacity_fps > (1.0 + TOLERANCE) * current.capacity_fps else current
        if fps is not None:
            lift = self._judgement.lift
            lacking = min(max(CATCH_UP * (aim_fps - fps) / aim_fps, CATCH_UP_LEAST), CATCH_UP_MOST)
            caught_up = cost_model.cheapest_share(first, second, aim_fps * (1.0 + lift + lacking))
            if caught_up is not None:
                share = caught_up
            elif lift > TOLERANCE:
                share = cost_model.fastest_share(first, second)
        # The tie to one end is loose: leaving the set altogether is a switch, and needs its reason.
        return cost_model.mixed(first, second, min(max(share, MIN_SHARE), 1.0 - MIN_SHARE))

    def _trim(self, state: _State) -> Decision | None:
        current, new = state.current, state.trimmed
        faster = new.capacity_fps > (1.0 + CAPACITY_STEP) * current.capacity_fps
        if abs(new.share - current.share) < SHARE_STEP and not faster:
            return None
        split = min(new.splits)
        reason = f"{new.shares[split]:.0%} of the items at split {split}, the rest at {max(new.splits)}"
        return self._decision(new, f"{reason}: {state.demand_fps:.4g} FPS at the least cloud time", routine=True)

    # When to change

    def _has_rested(self, best: Choice, state: _State, now_s: float) -> bool:
        """Whether there may be a switch though the target is out of reach.

        There is time then: each attempt at better waits longer than the one before, unless it is far better.
        """
        rest_s = self._rest_s
        if best.capacity_fps > FAR_FASTER * state.able_fps:
            rest_s = min(rest_s, JUDGED_S)
        if (best.splits, best.codec) == self._left and best.capacity_fps < MUCH_FASTER * state.able_fps:
            rest_s = max(rest_s, TRIAL_S)  # it was worse than it looked a moment ago
        return now_s - self._switched_s >= rest_s

    def _needed(self, state: _State, best: Choice, rested: bool) -> bool:
        """Whether the best choice gives what is asked for, or more of it, and the one in force does not."""
        current = state.current
        if state.holds or _same(best, current):
            return False
        if self._in_time(current):
            better = rested and best.capacity_fps > (1.0 + GAIN) * state.able_fps
        else:
            better = self._in_time(best) or (rested and best.latency_s < (1.0 - GAIN) * current.latency_s)
        passing = current.limit == cost_model.RESOURCES[cost_model.LINK] and self._estimates.link.unrest > MOVING
        return better and (not passing or self._short_s > JUDGED_S)

    def _saves(self, state: _State, best: Choice, rested: bool, least_gain_s: float, since_look_s: float) -> bool:
        """Whether the best choice has cost less for long enough, and is as fast."""
        takes_back = self._only_takes_back(best, state.current)
        saving = 0.0
        if (
            rested
            and not _same(best, state.current)
            and self._told(state.current)
            and self._told(best)
            and best.capacity_fps >= min(state.aim_fps, ENOUGH * state.able_fps)
        ):
            saving = 1.0 - (best.cloud_s + (0.0 if takes_back else least_gain_s)) / max(state.kept.cloud_s, 1e-9)
            if takes_back and saving > 0.0:
                saving = max(saving, TAKEN_BACK)
        # A mean over time, so that noise does not start the wait again, and much is taken sooner than little.
        self._saving += min(1.0, since_look_s / self._patience_s) * (saving - self._saving)
        return min(saving, self._saving) > GAIN

    def _only_takes_back(self, best: Choice, current: Choice) -> bool:
        """Whether the cloud would run fewer tasks of every item, and nothing else would change."""
        fewer = best.first is best.second and best.first.split > max(current.splits)
        return fewer and best.codec == current.codec and (best.splits, best.codec) != self._left

    def _told(self, choice: Choice) -> bool:
        """Whether the cloud has told what it costs."""
        return all(self._estimates.told((each.split, each.codec)) for each in (choice.first, choice.second))

    def _forgive(self, now_s: float) -> None:
        if now_s - self._forgiven_s > FORGIVE_S:
            self._forgiven_s = now_s
            self._patience_s = max(PATIENCE_S, self._patience_s / 2)
            self._rest_s /= 2.0

    def _switch(self, old: Choice, needed: bool, observation: Observation) -> None:
        now_s = observation.now_s
        if needed and now_s - self._saved_s < TRIAL_S:
            self._patience_s = min(2.0 * self._patience_s, MAX_PATIENCE_S)
            self._forgiven_s = now_s
        self._saved_s = -math.inf if needed else now_s
        self._switched_s = now_s
        self._left = (old.splits, old.codec)
        self._saving = 0.0
        self._rest_s = min(2.0 * max(self._rest_s, JUDGED_S), MAX_PATIENCE_S)
        self._judgement.switched(observation.backlog)

    def _reason(self, state: _State, new: Choice, needed: bool) -> str:
        old, demand_fps = state.current, state.demand_fps
        return Change(
            old=old,
            new=new,
            needed=needed,
            demand_fps=demand_fps,
            able_fps=state.able_fps,
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


def _same(best: Choice, current: Choice) -> bool:
    """Whether nothing but shares would change, or the codec to one that makes no difference to the payloads."""
    return best.splits == current.splits and (best.codec == current.codec or _as_large(best, current))


def _as_large(one: Choice, other: Choice) -> bool:
    """Whether the codecs of two choices with the same splits make no difference to their payloads."""
    a, b = ({option.split: option.size_bytes for option in (each.first, each.second)} for each in (one, other))
    return all(abs(a[split] - b[split]) <= GAIN * b[split] for split in a)
