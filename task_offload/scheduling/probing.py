"""What is worth a probe. In: options, and how uncertain each is. Out: routes that single items take, to measure them.

An option is probed if it would be chosen were it as good as it may be. The items of a probe count like all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Option
from task_offload.scheduling.estimates import Known
from task_offload.scheduling.observation import Observation, Route

SURE = 0.35  # relative uncertainty up to which a cost counts as known
CLEAR = 0.2  # and up to which no probe is to tell what the cloud takes
GAIN = 0.05  # a change of the set of splits must save or gain at least this, and what is probed may do so
PROBES_AT_ONCE = 4
PROBE_WAIT_S = 4.0  # a probe that has not come back by then is lost
PROBE_PAUSE_S = 5.0  # between probes while the target is met
PROBE_SHARE = 0.1  # of the time since the last switch, what each round of probes may cost beside what it gives
LINK_MATTERS = 0.5  # of its busiest resource's use, an option's use of the link
HOPE = 0.9  # of its uncertainty, a cost may turn out to be lower


@dataclass
class _Pending:
    """A route that is probed since then, and so many items that take it and may still become a payload."""

    since_s: float
    items: int


class Probing:
    """Chooses probes, and knows which are on their way."""

    def __init__(self) -> None:
        self._pending: dict[tuple[int, str], _Pending] = {}
        self._probed_s = -math.inf

    def take_in(self, observation: Observation) -> bool:
        """Forgets the probes that came back, and those that are lost. Returns whether there were any."""
        found = False
        for route, pending in list(self._pending.items()):
            pending.items -= observation.unsent.get(route, 0)
            cost = observation.payloads.get(route)
            came = cost is not None and cost.decoded > 0
            if pending.items <= 0:  # nothing was sent, so another try need not wait
                self._probed_s = -math.inf
            if came or pending.items <= 0 or observation.now_s - pending.since_s > PROBE_WAIT_S:
                del self._pending[route]
                found = True
        return found

    def choose(
        self,
        found: Sequence[Option],
        uncertain: Uncertainty,
        current: Choice,
        best: Choice,
        meets: bool,
        best_of: Callable[[Sequence[Option]], tuple[Choice, bool]],
        since_switch_s: float,
        now_s: float,
    ) -> tuple[Route, ...]:
        """Options that are not known, and would be chosen if they were as good as they may be.

        Arguments:
            found: all options, and `uncertain`: how uncertain they are.
            current, best: what is in force, and the best of what is known; `meets`: whether that meets the target.
            best_of: the best of other options, and whether it meets the target.
            since_switch_s: how long the choice in force has been.
        """
        if self._pending or (meets and now_s - self._probed_s < PROBE_PAUSE_S):
            return ()
        in_force = _routes(current)
        hopeful: list[Option] = []
        unsure: set[tuple[int, str]] = set()
        for option in found:
            route = (option.split, option.codec)
            if route in in_force:
                hopeful.append(option)
                continue
            hopeful.append(uncertain.hopeful(option))
            unclear = uncertain.cloud_s(cost_model.single(option)) > CLEAR * option.cloud_s
            if unclear or max(uncertain.of(option), uncertain.encode(option), uncertain.link_of(option)) >= SURE:
                unsure.add(route)
        probes: list[Route] = []
        cost_s = 0.0
        while unsure and len(probes) < PROBES_AT_ONCE:
            hope, hope_meets = best_of(hopeful)
            better = (
                hope.cloud_s < (1.0 - GAIN) * best.cloud_s
                if meets
                else hope_meets or hope.capacity_fps > (1.0 + GAIN) * best.capacity_fps
            )
            chosen = _routes(hope) & unsure
            if not better or not chosen:
                break
            chosen_s = sum(
                max(0.0, o.busiest_s - 1.0 / best.capacity_fps) for o in found if (o.split, o.codec) in chosen
            )
            if cost_s + chosen_s <= PROBE_SHARE * since_switch_s:
                cost_s += chosen_s
                for split, codec in sorted(chosen):
                    # Where most items are filtered before they are sent, it takes some for one payload.
                    items = min(3, math.ceil(0.7 / uncertain.reach[split]))
                    probes += [Route(split, codec)] * items
                    self._pending[split, codec] = _Pending(now_s, items)
                    self._probed_s = now_s
            hopeful = [option for option in hopeful if (option.split, option.codec) not in chosen]
            unsure -= chosen
        return tuple(probes)


def _routes(choice: Choice) -> set[tuple[int, str]]:
    return {(option.split, option.codec) for option in (choice.first, choice.second)}


class Uncertainty:
    """Relative uncertainty of options' device work, payload and cloud cost, and how many items get there.

    Attributes:
        reach: for each split, the share of the items that get there.
    """

    def __init__(self, known: Known) -> None:
        self.reach = [1.0]
        for share in known.costs.survival:
            self.reach.append(max(self.reach[-1] * share, 1e-3))
        self._costs = known.costs
        self._payloads = known.payloads
        self._encodes = known.encodes
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

    def encode(self, option: Option) -> float:
        """That of encoding alone, where it was measured: what was seen once is believed, but not for ever."""
        return self._encodes.get((option.split, option.codec), 0.0)

    def hopeful(self, option: Option) -> Option:
        """The option as good as it may be."""
        split = option.split
        device, cloud = 1.0 - HOPE * self._device[split], 1.0 - HOPE * self._cloud[split]
        cloud_s = option.cloud_s - HOPE * self.cloud_s(cost_model.single(option))
        size = (1.0 - self._payloads[split, option.codec]) / self._link_hope  # one never seen may be next to nothing
        use_s = list(option.use_s)
        costs = self._costs
        spared_s = HOPE * self.encode(option) * self.reach[split] * costs.payloads[split, option.codec].encode_s
        use_s[cost_model.DEVICE] -= spared_s / costs.cores
        use_s[cost_model.STAGE] -= spared_s / (costs.threads * costs.core_share)
        for resource, factor in (
            (cost_model.DEVICE, device),
            (cost_model.STAGE, device),
            (cost_model.LINK, size),
            (cost_model.WORKERS, cloud),
            (cost_model.WINDOW, size),
        ):
            use_s[resource] *= factor
        return option._replace(use_s=tuple(use_s), busiest_s=max(use_s), cloud_s=max(0.0, cloud_s))


def _spreads(times_s: Sequence[float], spreads: Sequence[float]) -> list[float]:
    """Relative uncertainty of the sum of the first 0, 1, ... times."""
    total = square = 0.0
    found = [0.0]
    for time_s, spread in zip(times_s, spreads, strict=True):
        total += time_s
        square += (time_s * spread) ** 2
        found.append(min(1.0, math.sqrt(square) / total) if total else 0.0)
    return found
