"""What is worth a probe. In: options, and how uncertain each is. Out: routes that single items take, to measure them.

An option is probed if it would be chosen were it as good as it may be. The items of a probe count like all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from task_offload.scheduling.cost_model import Choice, Option
from task_offload.scheduling.hysteresis import GAIN
from task_offload.scheduling.known import Known
from task_offload.scheduling.observation import Observation, Route

SURE = 0.35  # relative uncertainty up to which a cost counts as known
CLEAR = 0.2  # and up to which no probe is to tell what the cloud takes
PROBES_AT_ONCE = 4
PROBE_WAIT_S = 4.0  # a probe that has not come back by then is lost
PROBE_PAUSE_S = 5.0  # between probes while the target is met
PROBE_SHARE = 0.1  # of the time since the last switch, what each round of probes may cost beside what it gives


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
        known: Known,
        current: Choice,
        best: Choice,
        meets: bool,
        best_of: Callable[[Sequence[Option]], tuple[Choice, bool]],
        since_switch_s: float,
        now_s: float,
    ) -> tuple[Route, ...]:
        """Options that are not known, and would be chosen if they were as good as they may be.

        Arguments:
            found: all options, and `known`: how uncertain they are.
            current, best: what is in force, and the best of what is known; `meets`: whether that meets the target.
            best_of: the best of other options, and whether it meets the target.
            since_switch_s: how long the choice in force has been.
        """
        if self._pending or (meets and now_s - self._probed_s < PROBE_PAUSE_S):
            return ()
        in_force = _routes(current)
        unsure = {(option.split, option.codec) for option in found if _is_unsure(option, known)} - in_force
        if not unsure:
            return ()
        hopeful = [option if (option.split, option.codec) in in_force else known.hopeful(option) for option in found]
        probes: list[Route] = []
        cost_s = 0.0
        while unsure and len(probes) < PROBES_AT_ONCE:
            hope, hope_meets = best_of(hopeful)
            better = (
                hope.cloud_busy_s < (1.0 - GAIN) * best.cloud_busy_s
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
                    items = min(3, math.ceil(0.7 / known.reach[split]))
                    probes += [Route(split, codec)] * items
                    self._pending[split, codec] = _Pending(now_s, items)
                    self._probed_s = now_s
            hopeful = [option for option in hopeful if (option.split, option.codec) not in chosen]
            unsure -= chosen
        return tuple(probes)


def _is_unsure(option: Option, known: Known) -> bool:
    return (
        known.spread(option) >= SURE
        or known.encode_spread(option) >= SURE
        or known.link_spread(option) >= SURE
        or known.cloud_spread_s(option) > CLEAR * option.cloud_busy_s
    )


def _routes(choice: Choice) -> set[tuple[int, str]]:
    return {(option.split, option.codec) for option in (choice.first, choice.second)}
