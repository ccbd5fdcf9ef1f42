"""When to leave the choice in force for the best one. In: both, and how the one in force does. Out: whether to switch.

What keeps the target is done at once; what only saves waits for its patience, which grows with every attempt that
failed. While no choice reaches the target there is time: each attempt at more waits longer than the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice
from task_offload.scheduling.judgement import ENOUGH, JUDGED_S

GAIN = 0.05  # a change of the set of splits must save or gain at least this, and what is probed may do so
PATIENCE_S = 6.0  # over which a saving is averaged before it is taken
MAX_PATIENCE_S = 600.0
TAKEN_BACK = 0.1  # what a choice is worth that leaves fewer tasks to the cloud, changes nothing else, and saves at all
TRIAL_S = 60.0  # a saving that fails within this time was a mistake
MUCH_FASTER = 1.2  # than what was left for being slower: a mistake that need not be waited for
FAR_FASTER = 1.5  # than the choice in force, which need not be seen at work then
FORGIVE_S = 300.0  # after this time without a failure, patience halves


class Standing(NamedTuple):
    """How the choice in force does.

    Attributes:
        demand_fps: throughput that is asked for and that the source gives; `aim_fps`: the same with a margin.
        current: the choice in force.
        kept: with the best shares for what is predicted; `trimmed`: and for what came of late.
        able_fps: throughput that it can give.
        in_time: whether its latency is allowed; `holds`: whether its throughput is enough, too.
    """

    demand_fps: float
    aim_fps: float
    current: Choice
    kept: Choice
    trimmed: Choice
    able_fps: float
    in_time: bool
    holds: bool


class Rival(NamedTuple):
    """The best choice that is known.

    Attributes:
        choice: it; `meets`: whether it gives what is asked for; `in_time`: whether its latency is allowed.
        least_gain_s: cloud time an item that it must save beside `GAIN`.
    """

    choice: Choice
    meets: bool
    in_time: bool
    least_gain_s: float


class Hysteresis:
    """Remembers how switches went. `weigh` is called at each look around, and `switched` at each switch.

    Attributes:
        switched_s: when the choice in force was taken.
    """

    def __init__(self, told: Callable[[Choice], bool]) -> None:
        """Arguments:
        told: whether the cloud has told what a choice costs it.
        """
        self._told = told
        self.switched_s = -math.inf
        self._left: tuple[frozenset[int], str] | None = None  # splits and codec before the last switch
        self._saved_s = -math.inf  # when the last switch was made, if only to save
        self._patience_s = PATIENCE_S
        self._rest_s = 0.0  # least time between switches while the target is out of reach
        self._forgiven_s = 0.0
        self._short_s = 0.0  # how long the choice in force has not held
        self._saving = 0.0  # mean of what the best choice would have saved of late, relative

    def weigh(
        self, standing: Standing, rival: Rival, link_moves: bool, now_s: float, since_s: float
    ) -> tuple[bool, bool]:
        """Compares the choice in force with the best one.

        Arguments:
            link_moves: whether the link recovers as often as it falls.
            since_s: how long the last look around counts.

        Returns:
            Whether a switch is needed for what is asked for, and whether one saves for long enough.
        """
        if now_s - self._forgiven_s > FORGIVE_S:
            self._forgiven_s = now_s
            self._patience_s = max(PATIENCE_S, self._patience_s / 2)
            self._rest_s /= 2.0
        self._short_s = 0.0 if standing.holds else self._short_s + since_s
        rested = rival.meets or self._has_rested(rival.choice, standing.able_fps, now_s)
        same = _same(rival.choice, standing.current)
        saving = self._saves(standing, rival) if rested and not same else 0.0
        # A mean over time, so that noise does not start the wait again, and much is taken sooner than little.
        self._saving += min(1.0, since_s / self._patience_s) * (saving - self._saving)
        needed = not (standing.holds or same) and self._is_needed(standing, rival, rested, link_moves)
        return needed, min(saving, self._saving) > GAIN

    def switched(self, old: Choice, needed: bool, now_s: float) -> None:
        """Another choice replaces `old`, because that is needed or because it saves."""
        if needed and now_s - self._saved_s < TRIAL_S:
            self._patience_s = min(2.0 * self._patience_s, MAX_PATIENCE_S)
            self._forgiven_s = now_s
        self._saved_s = -math.inf if needed else now_s
        self.switched_s = now_s
        self._left = (old.splits, old.codec)
        self._saving = 0.0
        self._rest_s = min(2.0 * max(self._rest_s, JUDGED_S), MAX_PATIENCE_S)

    def _has_rested(self, best: Choice, able_fps: float, now_s: float) -> bool:
        """Whether there may be a switch though the target is out of reach.

        Each attempt at better waits longer than the one before, unless it is far better.
        """
        rest_s = self._rest_s
        if best.capacity_fps > FAR_FASTER * able_fps:
            rest_s = min(rest_s, JUDGED_S)
        if (best.splits, best.codec) == self._left and best.capacity_fps < MUCH_FASTER * able_fps:
            rest_s = max(rest_s, TRIAL_S)  # it was worse than it looked a moment ago
        return now_s - self.switched_s >= rest_s

    def _is_needed(self, standing: Standing, rival: Rival, rested: bool, link_moves: bool) -> bool:
        """Whether the best choice gives what is asked for, or more of it, where the one in force does not hold."""
        current, best = standing.current, rival.choice
        if standing.in_time:
            better = rested and best.capacity_fps > (1.0 + GAIN) * standing.able_fps
        else:
            better = rival.in_time or (rested and best.latency_s < (1.0 - GAIN) * current.latency_s)
        passing = link_moves and current.busiest == cost_model.LINK
        return better and (not passing or self._short_s > JUDGED_S)

    def _saves(self, standing: Standing, rival: Rival) -> float:
        """What the best choice saves of the cloud's work, if it is as fast and its cost is known."""
        current, best = standing.current, rival.choice
        known = self._told(current) and self._told(best)
        if not known or best.capacity_fps < min(standing.aim_fps, ENOUGH * standing.able_fps):
            return 0.0
        takes_back = self._only_takes_back(best, current)
        least_gain_s = 0.0 if takes_back else rival.least_gain_s
        saving = 1.0 - (best.cloud_busy_s + least_gain_s) / max(standing.kept.cloud_busy_s, 1e-9)
        return max(saving, TAKEN_BACK) if takes_back and saving > 0.0 else saving

    def _only_takes_back(self, best: Choice, current: Choice) -> bool:
        """Whether the cloud would run fewer tasks of every item, and nothing else would change."""
        fewer = best.first is best.second and best.first.split > max(current.splits)
        return fewer and best.codec == current.codec and (best.splits, best.codec) != self._left


def _same(best: Choice, current: Choice) -> bool:
    """Whether nothing but shares would change, or the codec to one that makes no difference to the payloads."""
    return best.splits == current.splits and (best.codec == current.codec or _as_large(best, current))


def _as_large(one: Choice, other: Choice) -> bool:
    """Whether the codecs of two choices with the same splits make no difference to their payloads."""
    a, b = ({option.split: option.size_bytes for option in (each.first, each.second)} for each in (one, other))
    return all(abs(a[split] - b[split]) <= GAIN * b[split] for split in a)
