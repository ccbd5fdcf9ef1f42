"""The automatic scheduler. In: observations. Out: the cheapest mix of splits that meets the target, with its reason.

Each interval the estimates take the observation in, the cost model evaluates every split and codec, and the cheapest
choice that meets the target with a margin is compared with the one in force. What keeps the target is done at once;
what only saves waits for its `patience`, which grows with every attempt that failed. What is not known, and would be
better if things are as good as they may be, is probed by single items, which count like all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option
from task_offload.scheduling.estimates import Estimates, Known
from task_offload.scheduling.observation import Decision, Observation, Route

MARGIN = 0.04  # capacity above the target that a choice aims at
CAREFUL = 0.03  # and so much more before work is taken back
ENOUGH = 0.99  # below this share of the target, the choice in force has to go
GAIN = 0.05  # a change of the set of splits must save or gain at least this
SHARE_STEP = 0.03  # smaller changes of a share are not worth a decision
PATIENCE_S = 3.0  # how long a saving must stand before it is taken
MAX_PATIENCE_S = 600.0
TRIAL_S = 20.0  # a saving that fails within this time was a mistake
FORGIVE_S = 300.0  # after this time without a failure, patience halves
SURE = 0.35  # relative uncertainty up to which a cost counts as known
PROBES_AT_ONCE = 4
PROBE_WAIT_S = 10.0  # a probe that has not come back by then is lost
PROBE_PAUSE_S = 5.0  # between probes while the target is met
MIN_SHARE = 0.01


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
    """Chooses by the cost model. One per session; it keeps no time but the observations'."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._estimates = Estimates(goal.splits, goal.stateful, goal.codecs)
        start = min(goal.splits, key=lambda split: abs(split - goal.start))
        self._shares: dict[int, float] = {start: 1.0}
        self._codec = goal.codecs[0]
        self._pending: dict[tuple[int, str], float] = {}
        self._better_since: float | None = None
        self._switched_s = -math.inf
        self._took_back_s = -math.inf
        self._left: frozenset[int] = frozenset()
        self._patience_s = PATIENCE_S
        self._forgiven_s = 0.0
        self._probed_s = -math.inf
        self._latency_factor = 1.0
        self._short = 0

    def start(self) -> Decision:
        (split,) = self._shares
        return Decision({split: 1.0}, f"starting with split {split}", self._codec)

    def decide(self, observation: Observation) -> Decision | None:
        now_s = observation.now_s
        if observation.in_local_outage or not observation.captured + observation.finished:
            return None
        estimates = self._estimates
        estimates.add(observation)
        known = self._cautious(estimates.known())
        found = cost_model.options(known.costs)
        spreads = [self._spreads(option, known) for option in found]
        current = self._current(found)
        self._check(observation, current)
        for route in [
            r for r in self._pending if estimates.payload_seen(*r) or now_s - self._pending[r] > PROBE_WAIT_S
        ]:
            del self._pending[route]

        sure = [o for o, spread in zip(found, spreads, strict=True) if max(spread) < SURE or self._in_force(o)]
        demand_fps = min(self._goal.target_fps, estimates.source_rate)
        best, meets = self._best(sure, demand_fps)
        probes = self._probes(found, spreads, best, meets, demand_fps, now_s)
        choice, why = self._next(current, best, meets, demand_fps, now_s)
        if choice is None and not probes:
            return None
        if choice is None:
            listed = ", ".join(f"{route.split} with {route.codec}" for route in probes)
            reason = f"one item each is tried at split {listed}: it may be better, and was not measured of late"
            return Decision(dict(self._shares), reason, self._codec, probes, _fps(current, estimates.source_rate))
        reason = self._reason(current, choice, why, demand_fps, known.costs)
        self._shares = {split: share for split, share in choice.shares.items() if share > 0}
        self._codec = choice.codec
        return Decision(dict(self._shares), reason, self._codec, probes, _fps(choice, estimates.source_rate))

    # What is known

    def _cautious(self, known: Known) -> Known:
        """A link that moves is counted on for less than its mean."""
        unrest = min(0.5, self._estimates.link.unrest)
        rate = known.costs.link_bytes_per_s * (1.0 - unrest)
        return replace(known, costs=replace(known.costs, link_bytes_per_s=rate))

    @staticmethod
    def _spreads(option: Option, known: Known) -> tuple[float, float, float]:
        """Relative uncertainty of an option's device work, payload and cloud cost."""
        split, costs = option.split, known.costs
        payload = known.payloads[split, option.codec]
        device_s = sum(costs.device_s[:split]) or 1e-9
        device = math.sqrt(sum((t * u) ** 2 for t, u in zip(costs.device_s[:split], known.device[:split], strict=True)))
        cloud_s = sum(costs.cloud_s[split:]) or 1e-9
        cloud = math.sqrt(sum((c * u) ** 2 for c, u in zip(costs.cloud_s[split:], known.cloud[split:], strict=True)))
        return min(1.0, device / device_s), payload, min(1.0, cloud / cloud_s)

    def _in_force(self, option: Option) -> bool:
        return option.codec == self._codec and option.split in self._shares

    def _current(self, found: Sequence[Option]) -> Choice:
        own = [option for option in found if self._in_force(option)]
        return cost_model.mixed(own[0], own[-1], self._shares[own[0].split])

    def _check(self, observation: Observation, current: Choice) -> None:
        """Compares what was predicted with what came, and corrects the model where the device is the limit."""
        if observation.latency_s is not None and self._goal.max_latency_s is not None:
            seen = observation.latency_s / max(current.latency_s, 1e-6)
            self._latency_factor += 0.2 * (min(max(seen, 1.0), 5.0) - self._latency_factor)
        settled = observation.now_s - self._switched_s > 2.0 * observation.interval_s
        if not settled or self._pending or not self._estimates.held(observation):
            return
        if current.limit in ("device", "device stage") and observation.finished > 2:
            ratio = observation.fps / current.capacity_fps
            efficiency = self._estimates.device_efficiency * min(max(ratio, 0.5), 1.5) ** 0.2
            self._estimates.device_efficiency = min(max(efficiency, 0.3), 1.5)

    # What is best

    def _best(self, found: Sequence[Option], demand_fps: float) -> tuple[Choice, bool]:
        """The cheapest choice that meets the demand, or else the fastest; and which of the two it is."""
        usable = self._fast_enough(found)
        for margin in (MARGIN, 0.0):
            choice = cost_model.cheapest(usable, demand_fps * (1.0 + margin))
            if choice is not None:
                return choice, True
        return cost_model.fastest(usable), False

    def _fast_enough(self, found: Sequence[Option]) -> Sequence[Option]:
        limit_s = self._goal.max_latency_s
        if limit_s is None:
            return found
        usable = [option for option in found if option.latency_s * self._latency_factor <= limit_s]
        return usable or [min(found, key=lambda option: option.latency_s)]

    def _next(
        self, current: Choice, best: Choice, meets: bool, demand_fps: float, now_s: float
    ) -> tuple[Choice | None, str]:
        """The choice to go to and why, or None to stay."""
        aim_fps = demand_fps * (1.0 + MARGIN)
        same = best.splits == current.splits and best.codec == current.codec
        kept = self._kept(current, aim_fps)
        fast_enough = len(self._fast_enough([current.first, current.second])) == 2 and (
            self._goal.max_latency_s is None or current.latency_s * self._latency_factor <= self._goal.max_latency_s
        )
        holds = kept.capacity_fps >= ENOUGH * demand_fps and fast_enough
        if now_s - self._forgiven_s > FORGIVE_S:
            self._forgiven_s = now_s
            self._patience_s = max(PATIENCE_S, self._patience_s / 2)
        if not holds and not same and best.capacity_fps > 1.03 * kept.capacity_fps:
            return self._switch(best, "need", now_s), "need"
        if not holds and not same and not fast_enough:
            return self._switch(best, "need", now_s), "need"
        if (
            not same
            and best.cloud_s < (1.0 - GAIN) * kept.cloud_s
            and (best.capacity_fps >= min(aim_fps, ENOUGH * kept.capacity_fps))
        ):
            if self._better_since is None:
                self._better_since = now_s
            if now_s - self._better_since >= self._patience_s:
                return self._switch(best, "save", now_s), "save"
        else:
            self._better_since = None
        change = abs(kept.share - current.share) if len(current.splits) == 2 else 0.0
        if change > SHARE_STEP or (change > 0 and current.capacity_fps < ENOUGH * demand_fps):
            return kept, "share"
        return None, ""

    def _kept(self, current: Choice, aim_fps: float) -> Choice:
        """The best share of the set of splits in force. Neither leaves it: that would be a change of the set."""
        first, second = current.first, current.second
        if first is second:
            return current
        share = cost_model.cheapest_share(first, second, aim_fps)
        if share is None:
            share = cost_model.fastest_share(first, second)
        return cost_model.mixed(first, second, min(max(share, MIN_SHARE), 1.0 - MIN_SHARE))

    def _switch(self, choice: Choice, why: str, now_s: float) -> Choice:
        if why == "need" and now_s - self._took_back_s < TRIAL_S:
            self._patience_s = min(2.0 * self._patience_s, MAX_PATIENCE_S)
            self._forgiven_s = now_s
        self._took_back_s = now_s if why == "save" else -math.inf
        self._switched_s = now_s
        self._better_since = None
        return choice

    # What is worth a probe

    def _probes(
        self,
        found: Sequence[Option],
        spreads: Sequence[tuple[float, float, float]],
        best: Choice,
        meets: bool,
        demand_fps: float,
        now_s: float,
    ) -> tuple[Route, ...]:
        """Options that are not known, and would be chosen if they were as good as they may be."""
        if self._pending or (meets and now_s - self._probed_s < PROBE_PAUSE_S):
            return ()
        hopeful = [_hopeful(option, spread) for option, spread in zip(found, spreads, strict=True)]
        unsure = {
            (o.split, o.codec) for o, s in zip(found, spreads, strict=True) if max(s) >= SURE and not self._in_force(o)
        }
        probes: list[Route] = []
        while unsure and len(probes) < PROBES_AT_ONCE:
            hope, hope_meets = self._best(hopeful, demand_fps)
            better = (
                hope.cloud_s < (1.0 - GAIN) * best.cloud_s
                if meets
                else hope_meets or hope.capacity_fps > (1.0 + GAIN) * best.capacity_fps
            )
            chosen = {(o.split, o.codec) for o in (hope.first, hope.second)} & unsure
            if not better or not chosen:
                break
            probes += [Route(*route) for route in sorted(chosen)]
            hopeful = [option for option in hopeful if (option.split, option.codec) not in chosen]
            unsure -= chosen
        for route in probes:
            self._pending[route.split, route.codec or ""] = now_s
        if probes:
            self._probed_s = now_s
        return tuple(probes)

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
        if new.capacity_fps < ENOUGH * demand_fps:
            parts.append(f"no split reaches {demand_fps:.3g} FPS, this one is fastest; the limit is the {new.limit}")
        elif why == "need" and old.limit == "device":
            parts.append(
                f"the device needs {device_ms:.3g} ms an item, {demand_fps:.3g} FPS allow {1e3 / demand_fps:.3g}"
            )
        elif why == "need":
            parts.append(f"the {old.limit} allows {old.capacity_fps:.3g} FPS of the {demand_fps:.3g} wanted")
        else:
            parts.append(f"{1e3 * new.cloud_s:.3g} ms of cloud time an item instead of {1e3 * old.cloud_s:.3g}")
        if math.isfinite(costs.link_bytes_per_s):
            link = new.use_s[cost_model.LINK] * min(demand_fps, new.capacity_fps)
            parts.append(f"link {link:.0%}")
        return "; ".join(parts)


def _fps(choice: Choice, source_rate: float) -> float:
    return min(choice.capacity_fps, source_rate)


def _mean_split(choice: Choice) -> float:
    return sum(split * share for split, share in choice.shares.items())


def _hopeful(option: Option, spread: tuple[float, float, float]) -> Option:
    """An option as good as it may be."""
    device, payload, cloud = (1.0 - 0.9 * each for each in spread)
    use_s = list(option.use_s)
    use_s[cost_model.DEVICE] *= device
    use_s[cost_model.STAGE] *= device
    use_s[cost_model.LINK] *= payload
    use_s[cost_model.WORKERS] *= cloud
    use_s[cost_model.WINDOW] *= payload
    return option._replace(use_s=tuple(use_s), cloud_s=option.cloud_s * cloud)
