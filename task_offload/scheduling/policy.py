"""The automatic scheduler. In: observations. Out: the cheapest mix of splits that meets the target, with its reason.

Each interval the estimates take the observation in, the cost model evaluates every split and codec, and the cheapest
choice that meets the target with a margin is compared with the one in force. What keeps the target is done at once;
what only saves waits for its `patience`, which grows with every attempt that failed. What is not known, and would be
better if things are as good as they may be, is probed by single items, which count like all others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option
from task_offload.scheduling.estimates import Estimates, Known
from task_offload.scheduling.observation import Decision, Observation, Route

TOLERANCE = 0.03  # a stretch of `JUDGED_S` seconds below the target by less than this still meets it
JUDGED_S = 3.0
SIGMAS = 1.5  # standard deviations of the throughput that the margin covers, with what is tolerated
LEAST_MARGIN, MOST_MARGIN = 0.005, 0.09  # capacity above the target that a choice aims at; more where items differ more
ENOUGH = 0.98  # below this share of the target, the choice in force has to go
GAIN = 0.05  # a change of the set of splits must save or gain at least this
SHARE_STEP = 0.02  # smaller changes of a share are not worth a decision,
CAPACITY_STEP = 0.01  # unless they give so much more throughput: where one split takes many times longer
PATIENCE_S = 6.0  # over which a saving is averaged before it is taken
MAX_PATIENCE_S = 600.0
CAUTION = 0.5  # of the uncertainty of what it would cost, a saving must be larger than that too
LEAST_GAIN = 0.005  # and a saving at least so much of what running everything in the cloud costs
TRIAL_S = 60.0  # a saving that fails within this time was a mistake
MUCH_FASTER = 1.2  # than what was left for being slower: a mistake that need not be waited for
FORGIVE_S = 300.0  # after this time without a failure, patience halves
SURE = 0.35  # relative uncertainty up to which a cost counts as known
PROBES_AT_ONCE = 4
PROBE_WAIT_S = 4.0  # a probe that has not come back by then is lost
PROBE_PAUSE_S = 5.0  # between probes while the target is met
PROBE_SHARE = 0.1  # of the time since the last switch, what probes may cost beside what they give
MOVING = 0.1  # a link with more unrest than this recovers as often as it falls: wait a little
MOST_UNREST = 0.3  # of a link that moves, at most so much of its mean is not counted on
LOOK_AROUND_S = 2.0  # between looks at all other choices, while the one in force holds
CATCH_UP = 0.7  # of what the last seconds lacked, the shares make up for in the next as many
CATCH_UP_LEAST, CATCH_UP_MOST = -0.15, 0.3
DOUBT_S = 0.5  # a throughput that is too low, and lower than predicted, for longer makes old costs doubtful
LASTING_S = 8.0  # a throughput that is too low for so long is believed before the model
IN_TIME = 0.9  # of --max-latency, what items may take on average
LEAST_INSIDE = 2.0  # items, whatever --max-latency is: the device works on one while another is on its way
LATE_SHARE, LATE_PACE = 0.05, 0.1  # of the items may be later than --max-latency
LATENCY_UP, LATENCY_DOWN, MOST_LATENCY_FACTOR = 1.02, 0.999, 3.0  # at each interval with more, or fewer, too late
LEAST_FPS = 0.01  # a source that yields nothing for a while is not asked for nothing
MIN_SHARE = 0.002  # of either split of a mix
LOSSY = "jpeg:90"  # what a link that is too slow for all lossless payloads would need
LINK_MATTERS = 0.5  # of its busiest resource's use, an option's use of the link
HOPE = 0.9  # of its uncertainty, a cost may turn out to be lower
LEARN = 0.03  # of a difference between prediction and throughput, at each interval
LEARN_FIRST = 0.3  # of the first difference that was seen, a half of it of the second, and so on until `LEARN`


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


class _Past(NamedTuple):
    """One interval: its length, items finished, items predicted at full capacity, whether something held them up."""

    seconds: float
    finished: int
    predicted: float
    held: bool


class ModelPolicy:
    """Chooses by the cost model. One per session; it knows no time but the observations'."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._estimates = Estimates(goal.splits, goal.stateful, goal.codecs)
        start = min(goal.splits, key=lambda split: abs(split - goal.start))
        self._shares: dict[int, float] = {start: 1.0}
        self._codec = goal.codecs[0]
        self._pending: dict[tuple[int, str], float] = {}
        self._switched_s = -math.inf
        self._left: tuple[frozenset[int], str] | None = None  # splits and codec before the last switch
        self._before = 0  # items captured before the last switch and not finished yet
        self._saved_s = -math.inf
        self._patience_s = PATIENCE_S
        self._rest_s = 0.0  # least time between switches while the target is out of reach
        self._forgiven_s = 0.0
        self._probed_s = -math.inf
        self._looked_s = -math.inf
        self._looked_fps = math.inf
        self._learned = False  # a probe came back since
        self._latency_factor = 1.0  # of what waiting in queues makes of a latency
        self._late = 0.0  # share of the items that were too late of late
        self._recent: deque[_Past] = deque()  # the last intervals, JUDGED_S together
        self._short_s = 0.0  # how long the target is out of reach for the splits in force
        self._saving = 0.0  # mean of what the best choice would have saved of late, relative
        self._lift = 0.0  # of the aim: what a mix has lacked all the time, where its unequal items wait for each other
        self._judged = 0  # intervals that corrected the model
        self._lacking_s = 0.0  # how long the throughput has been too low, whatever is predicted
        self._unrest = 0.0  # variance of throughput over JUDGED_S, relative

    def start(self) -> Decision:
        (split,) = self._shares
        return Decision({split: 1.0}, f"starting with split {split}", self._codec)

    def predict(self) -> Choice | None:
        """What the model says of the choice in force; None before the first observation."""
        if not self._estimates.now_s:
            return None
        in_force = [(split, self._codec) for split in sorted(self._shares)]
        return self._current(cost_model.options(self._estimates.costs(in_force)))

    def most_inside(self) -> float:
        """How many items may be captured and not ended at a time, so that they keep to the latency that is allowed.

        Little's law: at a throughput of f, so many items inside take m / f each.
        """
        predicted = self.predict() if self._goal.max_latency_s is not None else None
        if predicted is None:
            return math.inf
        return max(LEAST_INSIDE, IN_TIME * self._max_latency_s * predicted.capacity_fps)

    def decide(self, observation: Observation) -> Decision | None:
        now_s = observation.now_s
        if observation.in_local_outage:
            self._recent.clear()
            return None
        estimates = self._estimates
        estimates.add(observation)
        for route, since_s in list(self._pending.items()):
            cost = observation.payloads.get(route)
            if (cost is not None and cost.decoded) or now_s - since_s > PROBE_WAIT_S:
                del self._pending[route]
                self._learned = True
        in_force = [(split, self._codec) for split in sorted(self._shares)]
        current = self._current(cost_model.options(estimates.costs(in_force)))
        demand_fps = max(LEAST_FPS, min(self._goal.target_fps, estimates.source_rate))
        aim_fps = demand_fps * (1.0 + self._margin())
        fps = self._check(observation, current, demand_fps, aim_fps)
        kept = self._kept(current, aim_fps, None)
        trimmed = kept if fps is None else self._kept(current, aim_fps, fps)
        lacks = fps is not None and fps < ENOUGH * demand_fps
        self._lacking_s = self._lacking_s + observation.interval_s if lacks else 0.0
        if fps is not None and self._lacking_s > DOUBT_S and kept.capacity_fps > (1.0 + GAIN) * fps:
            estimates.doubt(JUDGED_S * fps)
        able_fps = max(kept.capacity_fps, fps or 0.0)  # what was seen is possible, whatever is predicted
        if fps is not None and self._lacking_s > LASTING_S:
            able_fps = fps  # and so is what was not, after a while
        holds = able_fps >= ENOUGH * demand_fps and self._in_time(current)
        worse = not holds and able_fps < (1.0 - TOLERANCE) * self._looked_fps
        if not (worse or self._learned or estimates.stepped) and now_s - self._looked_s < LOOK_AROUND_S:
            return self._trim(current, trimmed, demand_fps)
        since_look_s = min(now_s - self._looked_s, LOOK_AROUND_S)
        self._looked_s, self._looked_fps, self._learned = now_s, able_fps, False

        known = self._cautious(estimates.known(estimates.routes))
        found = cost_model.options(known.costs)
        uncertain = _Uncertainty(known)
        sure = [o for o in found if self._in_force(o) or uncertain.of(o) < SURE]
        best, meets = self._best(sure, demand_fps, aim_fps)
        probes = self._probes(found, known, uncertain, best, meets, demand_fps, now_s)
        dearest_s = max(option.cloud_s for option in found)
        why = self._why(
            current,
            kept,
            able_fps,
            best,
            meets,
            holds,
            aim_fps,
            now_s,
            since_look_s,
            LEAST_GAIN * dearest_s + CAUTION * uncertain.cloud_s(best),
        )
        if why:
            self._left = (current.splits, current.codec)
            self._switch(why, observation)
            return self._decision(best, self._reason(current, best, why, demand_fps, known.costs), probes)
        trim = self._trim(current, trimmed, demand_fps)
        if not probes:
            return trim
        listed = ", ".join(f"{route.split} with {route.codec}" for route in probes)
        reason = f"one item each is tried at split {listed}: it may be better, and was not measured of late"
        return self._decision(trimmed if trim is not None else current, reason, probes, routine=True)

    def _decision(self, choice: Choice, reason: str, probes: tuple[Route, ...] = (), routine: bool = False) -> Decision:
        self._shares = {split: share for split, share in choice.shares.items() if share > 0}
        self._codec = choice.codec
        fps = min(choice.capacity_fps, self._estimates.source_rate)
        return Decision(dict(self._shares), reason, self._codec, probes, fps, routine)

    # What is known

    def _cautious(self, known: Known) -> Known:
        """For what is not in force yet, a link that moves is counted on for less than its mean."""
        unrest = min(MOST_UNREST, self._estimates.link.unrest)
        rate = known.costs.link_bytes_per_s * (1.0 - unrest)
        return replace(known, costs=replace(known.costs, link_bytes_per_s=rate))

    def _in_force(self, option: Option) -> bool:
        return option.codec == self._codec and option.split in self._shares

    def _current(self, found: Sequence[Option]) -> Choice:
        own = [option for option in found if self._in_force(option)]
        return cost_model.mixed(own[0], own[-1], self._shares[own[0].split])

    def _check(self, observation: Observation, current: Choice, demand_fps: float, aim_fps: float) -> float | None:
        """Compares what was predicted with what came, and corrects the model for the resource that is the limit.

        Returns:
            Throughput over the last `JUDGED_S`, or None if the splits in force are younger.
        """
        if self._goal.max_latency_s is not None and observation.finished:
            self._late += LATE_PACE * (observation.late / observation.finished - self._late)
            pace = LATENCY_UP if self._late > LATE_SHARE else LATENCY_DOWN
            self._latency_factor = min(max(self._latency_factor * pace, 1.0), MOST_LATENCY_FACTOR)
        recent = self._recent
        if self._estimates.stepped:
            recent.clear()
        if self._before > 0:
            self._before -= observation.finished
            return None
        recent.append(
            _Past(
                observation.interval_s,
                observation.finished,
                current.capacity_fps * observation.interval_s,
                self._estimates.held(observation),
            )
        )
        seconds = sum(past.seconds for past in recent)
        if seconds < JUDGED_S:
            return None
        finished = sum(past.finished for past in recent)
        predicted = sum(past.predicted for past in recent)
        held = any(past.held for past in recent)
        recent.popleft()
        fps = finished / seconds
        if not held:
            self._lift *= 1.0 - LEARN
            return min(fps, aim_fps)  # more was not possible, since there was no more
        off = finished / predicted - 1.0
        self._lift = min(max(self._lift + LEARN * (1.0 - fps / demand_fps), 0.0), CATCH_UP_MOST)
        # The shares of a mix steer towards the aim, so there only what they could not level out counts.
        rest = off if current.first is current.second else min(abs(off), abs(fps / aim_fps - 1.0))
        self._unrest += LEARN * (rest * rest - self._unrest)
        self._correct(current, min(max(off, -0.5), 0.5))
        return fps

    def _correct(self, current: Choice, off: float) -> None:
        """The throughput was so much off what the limit of the choice in force allows."""
        saturated = self._estimates.saturated(current.limit)
        if not saturated and current.first is not current.second:
            return  # it is not that limit: the items of a mix wait for each other, and the shares make up for it
        learn = LEARN
        if saturated and current.limit == cost_model.RESOURCES[cost_model.DEVICE]:
            # What no task's time holds (threads, encryption, acks) shows at once, and noise evens out.
            self._judged += 1
            learn = max(LEARN, LEARN_FIRST / self._judged)
        self._estimates.correct(current.limit, 1.0 + learn * off)

    def _margin(self) -> float:
        """`SIGMAS` standard deviations of the throughput, less what is tolerated."""
        return min(max(SIGMAS * math.sqrt(self._unrest) - TOLERANCE, LEAST_MARGIN), MOST_MARGIN)

    # What is best

    def _best(self, found: Sequence[Option], demand_fps: float, aim_fps: float) -> tuple[Choice, bool]:
        """The cheapest choice that meets the demand, or else the fastest; and which of the two it is."""
        usable = [option for option in found if option.latency_s * self._latency_factor <= self._max_latency_s]
        if not usable:
            return cost_model.single(min(found, key=lambda option: option.latency_s)), False
        for fps in (aim_fps, demand_fps):
            choice = cost_model.cheapest(usable, fps)
            if choice is not None:
                return choice, True
        return cost_model.fastest(usable), False

    @property
    def _max_latency_s(self) -> float:
        return math.inf if self._goal.max_latency_s is None else self._goal.max_latency_s

    def _in_time(self, choice: Choice) -> bool:
        return choice.latency_s * self._latency_factor <= self._max_latency_s

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
            lacking = self._lift + min(max(CATCH_UP * (aim_fps - fps) / aim_fps, CATCH_UP_LEAST), CATCH_UP_MOST)
            caught_up = cost_model.cheapest_share(first, second, aim_fps * (1.0 + lacking))
            if caught_up is not None:
                share = caught_up
            elif self._lift:
                share = cost_model.fastest_share(first, second)
        # The tie to one end is loose: leaving the set altogether is a switch, and needs its reason.
        return cost_model.mixed(first, second, min(max(share, MIN_SHARE), 1.0 - MIN_SHARE))

    def _trim(self, current: Choice, kept: Choice, demand_fps: float) -> Decision | None:
        faster = kept.capacity_fps > (1.0 + CAPACITY_STEP) * current.capacity_fps
        if abs(kept.share - current.share) < SHARE_STEP and not faster:
            return None
        split = min(kept.splits)
        reason = f"{kept.shares[split]:.0%} of the items at split {split}, the rest at {max(kept.splits)}"
        return self._decision(kept, f"{reason}: {demand_fps:.4g} FPS at the least cloud time", routine=True)

    def _why(
        self,
        current: Choice,
        kept: Choice,
        able_fps: float,
        best: Choice,
        meets: bool,
        holds: bool,
        aim_fps: float,
        now_s: float,
        since_look_s: float,
        least_gain_s: float,
    ) -> Literal["", "need", "save"]:
        """Why to leave the splits or the codec in force for the best choice; empty to stay."""
        if now_s - self._forgiven_s > FORGIVE_S:
            self._forgiven_s = now_s
            self._patience_s = max(PATIENCE_S, self._patience_s / 2)
            self._rest_s /= 2.0
        same = best.splits == current.splits and (best.codec == current.codec or _as_large(best, current))
        self._short_s = 0.0 if holds else self._short_s + since_look_s
        rested = True
        if not meets:
            # There is time then: each attempt at better waits longer than the one before, unless something changed.
            rest_s = min(self._rest_s, JUDGED_S) if self._estimates.stepped else self._rest_s
            if (best.splits, best.codec) == self._left and best.capacity_fps < MUCH_FASTER * able_fps:
                rest_s = max(rest_s, TRIAL_S)  # it was worse than it looked a moment ago
            rested = now_s - self._switched_s >= rest_s
        faster = rested and best.capacity_fps > (1.0 + GAIN) * able_fps
        late = not self._in_time(current)
        quicker = self._in_time(best) or (rested and best.latency_s < (1.0 - GAIN) * current.latency_s)
        if not same and not holds and ((late and quicker) or (faster and not late)):
            passing = current.limit == cost_model.RESOURCES[cost_model.LINK] and self._estimates.link.unrest > MOVING
            if not passing or self._short_s > JUDGED_S:
                return "need"
        saving = 0.0
        told = all(
            self._estimates.told((each.split, each.codec))
            for each in (current.first, current.second, best.first, best.second)
        )
        if rested and told and not same and best.capacity_fps >= min(aim_fps, ENOUGH * able_fps):
            saving = 1.0 - (best.cloud_s + least_gain_s) / max(kept.cloud_s, 1e-9)
        # A mean over time, so that noise does not start the wait again, and much is taken sooner than little.
        self._saving += min(1.0, since_look_s / self._patience_s) * (saving - self._saving)
        return "save" if min(saving, self._saving) > GAIN else ""

    def _switch(self, why: str, observation: Observation) -> None:
        now_s = observation.now_s
        if why == "need" and now_s - self._saved_s < TRIAL_S:
            self._patience_s = min(2.0 * self._patience_s, MAX_PATIENCE_S)
            self._forgiven_s = now_s
        self._saved_s = now_s if why == "save" else -math.inf
        self._switched_s = now_s
        self._before = max(1, observation.backlog)
        self._saving = 0.0
        self._rest_s = min(2.0 * max(self._rest_s, JUDGED_S), MAX_PATIENCE_S)
        self._recent.clear()
        self._lift = 0.0

    # What is worth a probe

    def _probes(
        self,
        found: Sequence[Option],
        known: Known,
        uncertain: _Uncertainty,
        best: Choice,
        meets: bool,
        demand_fps: float,
        now_s: float,
    ) -> tuple[Route, ...]:
        """Options that are not known, and would be chosen if they were as good as they may be."""
        if self._pending or (meets and now_s - self._probed_s < PROBE_PAUSE_S):
            return ()
        reach = self._reach(known.costs)
        hopeful: list[Option] = []
        unsure: set[tuple[int, str]] = set()
        for option in found:
            if self._in_force(option):
                hopeful.append(option)
                continue
            hopeful.append(uncertain.hopeful(option))
            if max(uncertain.of(option), uncertain.link_of(option)) >= SURE:
                unsure.add((option.split, option.codec))
        probes: list[Route] = []
        cost_s = 0.0
        while unsure and len(probes) < PROBES_AT_ONCE:
            hope, hope_meets = self._best(hopeful, demand_fps, demand_fps)
            better = (
                hope.cloud_s < (1.0 - GAIN) * best.cloud_s
                if meets
                else hope_meets or hope.capacity_fps > (1.0 + GAIN) * best.capacity_fps
            )
            chosen = {(o.split, o.codec) for o in (hope.first, hope.second)} & unsure
            if not better or not chosen:
                break
            since_s = now_s - self._switched_s
            chosen_s = sum(
                max(0.0, o.busiest_s - 1.0 / best.capacity_fps) for o in found if (o.split, o.codec) in chosen
            )
            if cost_s + chosen_s <= PROBE_SHARE * since_s:
                cost_s += chosen_s
                for split, codec in sorted(chosen):
                    # Where most items are filtered before they are sent, it takes some for one payload.
                    probes += [Route(split, codec)] * min(3, math.ceil(0.7 / reach[split]))
            hopeful = [option for option in hopeful if (option.split, option.codec) not in chosen]
            unsure -= chosen
        for route in probes:
            self._pending[route.split, route.codec or ""] = now_s
        if probes:
            self._probed_s = now_s
        return tuple(probes)

    @staticmethod
    def _reach(costs: Costs) -> list[float]:
        reach = [1.0]
        for share in costs.survival:
            reach.append(max(reach[-1] * share, 1e-3))
        return reach

    # Why

    def _reason(self, old: Choice, new: Choice, why: str, demand_fps: float, costs: Costs) -> str:
        names = self._goal.tasks
        parts = []
        before, after = _mean_split(old), _mean_split(new)
        if new.splits == old.splits and new.codec == old.codec:
            share = new.shares[min(new.splits)]
            parts.append(f"{share:.0%} of the items now go at split {min(new.splits)}, the rest at {max(new.splits)}")
        else:
            low, high = sorted((min(old.splits | new.splits), max(old.splits | new.splits)))
            moved = names[low:high]
            listed = moved[0] if len(moved) == 1 else f"{moved[0]} to {moved[-1]}" if moved else ""
            portion = "" if len(new.splits) == 1 else "for a share of the items "
            if before != after and listed:
                parts.append(f"{listed} {portion}{'moved to the cloud' if after < before else 'taken back'}")
            if new.codec != old.codec:
                parts.append(f"payloads encoded with {new.codec} instead of {old.codec}")
        device_ms = 1e3 * old.use_s[cost_model.DEVICE]
        if math.isinf(demand_fps):
            parts.append(f"this is fastest; the limit is the {new.limit}")
        elif why == "need" and not self._in_time(old):
            allowed = f"{1e3 * self._max_latency_s:.3g} ms"
            takes = f"an item takes {1e3 * new.latency_s * self._latency_factor:.3g} ms"
            before_ms = f"{1e3 * old.latency_s * self._latency_factor:.3g}"
            if self._in_time(new):
                parts.append(f"{takes} instead of {before_ms}; {allowed} are allowed")
            else:
                parts.append(f"{takes} instead of {before_ms}, which is quickest; no split keeps to {allowed}")
        elif new.capacity_fps < ENOUGH * demand_fps:
            wanted = f"no split reaches {demand_fps:.4g} FPS, this" if math.isfinite(demand_fps) else "this"
            parts.append(f"{wanted} one is fastest; the limit is the {new.limit}")
            lossy_fps = self._lossy_fps(new)
            if lossy_fps > (1.0 + GAIN) * new.capacity_fps:
                parts.append(f"--codec {LOSSY}, which changes images, would give up to {lossy_fps:.3g}")
        elif why == "need" and old.limit == "device":
            parts.append(
                f"the device needs {device_ms:.3g} ms an item, {demand_fps:.4g} FPS allow {1e3 / demand_fps:.3g}"
            )
        elif why == "need":
            parts.append(f"the {old.limit} allows {old.capacity_fps:.3g} FPS of the {demand_fps:.4g} wanted")
        else:
            parts.append(f"{1e3 * new.cloud_s:.3g} ms of cloud time an item instead of {1e3 * old.cloud_s:.3g}")
        if math.isfinite(costs.link_bytes_per_s):
            link = new.use_s[cost_model.LINK] * min(demand_fps, new.capacity_fps)
            parts.append(f"link {link:.0%}")
        return "; ".join(parts)

    def _lossy_fps(self, new: Choice) -> float:
        """Throughput if payloads were images and sent as JPEG, where the link matters and JPEG is not in use."""
        if new.use_s[cost_model.LINK] < LINK_MATTERS * max(new.use_s) or new.codec.startswith("jpeg"):
            return 0.0
        known = self._cautious(self._estimates.known([(split, LOSSY) for split in self._goal.splits]))
        return min(cost_model.fastest(cost_model.options(known.costs)).capacity_fps, known.costs.source_rate)


def _as_large(one: Choice, other: Choice) -> bool:
    """Whether the codecs of two choices with the same splits make no difference to their payloads."""
    a, b = ({option.split: option.size_bytes for option in (each.first, each.second)} for each in (one, other))
    return all(abs(a[split] - b[split]) <= GAIN * b[split] for split in a)


def _mean_split(choice: Choice) -> float:
    return sum(split * share for split, share in choice.shares.items())


class _Uncertainty:
    """Relative uncertainty of options' device work, payload and cloud cost."""

    def __init__(self, known: Known) -> None:
        self._payloads = known.payloads
        self._decodes = known.decodes
        self._decode_s = {route: payload.decode_s for route, payload in known.costs.payloads.items()}
        self._link = known.link
        self._link_hope = 1.0 + known.link * (known.link_hope - 1.0)
        self._device = _spreads(known.costs.device_s, known.device)
        self._cloud = _spreads(known.costs.cloud_s[::-1], known.cloud[::-1])[::-1]

    def of(self, option: Option) -> float:
        """The largest of the three."""
        split = option.split
        return max(self._device[split], self._payloads[split, option.codec], self._cloud[split])

    def cloud_s(self, choice: Choice) -> float:
        """How much more cloud time a choice may take than believed."""
        total_s = 0.0
        for option, share in ((choice.first, choice.share), (choice.second, 1.0 - choice.share)):
            decode_s = self._decode_s.get((option.split, option.codec), 0.0)
            decode_spread = self._decodes.get((option.split, option.codec), 1.0)
            tasks_s = max(0.0, option.cloud_s - decode_s)
            total_s += share * math.hypot(decode_s * decode_spread, tasks_s * self._cloud[option.split])
        return total_s

    def link_of(self, option: Option) -> float:
        """That of the link, where the link matters to the option."""
        return self._link if option.use_s[cost_model.LINK] > LINK_MATTERS * option.busiest_s else 0.0

    def hopeful(self, option: Option) -> Option:
        """The option as good as it may be."""
        split = option.split
        device, cloud = 1.0 - HOPE * self._device[split], 1.0 - HOPE * self._cloud[split]
        size = (1.0 - self._payloads[split, option.codec]) / self._link_hope  # one never seen may be next to nothing
        use_s = list(option.use_s)
        for resource, factor in (
            (cost_model.DEVICE, device),
            (cost_model.STAGE, device),
            (cost_model.LINK, size),
            (cost_model.WORKERS, cloud),
            (cost_model.WINDOW, size),
        ):
            use_s[resource] *= factor
        return option._replace(use_s=tuple(use_s), busiest_s=max(use_s), cloud_s=option.cloud_s * cloud)


def _spreads(times_s: Sequence[float], spreads: Sequence[float]) -> list[float]:
    """Relative uncertainty of the sum of the first 0, 1, ... times."""
    total = square = 0.0
    found = [0.0]
    for time_s, spread in zip(times_s, spreads, strict=True):
        total += time_s
        square += (time_s * spread) ** 2
        found.append(min(1.0, math.sqrt(square) / total) if total else 0.0)
    return found
