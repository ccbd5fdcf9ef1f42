"""How far predictions come true. In: observations, and the choice in force. Out: throughput, margins, corrections."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Option
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.observation import Observation

TOLERANCE = 0.03  # a stretch of `JUDGED_S` seconds below the target by less than this still meets it
JUDGED_S = 3.0  # over which throughput is judged
ENOUGH = 0.98  # below this share of the target, the choice in force has to go
MOST_OFF = 0.5  # of a difference between prediction and throughput, relative, what is believed of it
FAR_OFF = 0.05  # a throughput that much below the prediction is none that was predicted
SIGMAS = 1.5  # standard deviations of the throughput that the margin covers, with what is tolerated
LEAST_MARGIN, MOST_MARGIN = 0.005, 0.09  # capacity above the target that a choice aims at; more where items differ more
MOST_LIFT = 0.3  # of the aim
DOUBT_S = 0.5  # a throughput that is too low, and lower than predicted, for longer makes old costs doubtful
LATE_SHARE, LATE_PACE = 0.05, 0.1  # of the items may be later than --max-latency
LATENCY_UP, LATENCY_DOWN, MOST_LATENCY_FACTOR = 1.02, 0.999, 3.0  # at each interval with more, or fewer, too late
LEARN = 0.03  # of a difference between prediction and throughput, at each interval
LEARN_FIRST = 0.3  # of the first difference that was seen, a half of it of the second, and so on until `LEARN`


class _Past(NamedTuple):
    """One interval: its length, items finished, items predicted at full capacity, whether something held them up."""

    seconds: float
    finished: int
    predicted: float
    held: bool


class Judgement:
    """Compares the throughput with what was predicted, and corrects the model.

    Attributes:
        lift: of the aim, what a mix has lacked all the time, where its unequal items wait for each other.
    """

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._latency_factor = 1.0  # of what waiting in queues makes of a latency
        self._late = 0.0  # share of the items that were too late of late
        self._recent: deque[_Past] = deque()  # the last intervals, JUDGED_S together
        self._before = 0  # items captured before the last switch, or in an outage, and not ended yet
        self._judged = 0  # intervals that corrected the model
        self._lacking_s = 0.0  # how long the throughput has been too low, whatever is predicted
        self._unrest = 0.0  # variance of throughput over JUDGED_S, relative
        self.lift = 0.0

    def interrupted(self, backlog: int) -> None:
        """The cloud is away. So many items are to be caught up with first."""
        self._before = backlog
        self._recent.clear()

    def switched(self, backlog: int) -> None:
        """Another choice is in force. So many items are still on their way by the one before."""
        self._before = max(1, backlog)
        self._recent.clear()
        self.lift = 0.0

    @property
    def margin(self) -> float:
        """`SIGMAS` standard deviations of the throughput, less what is tolerated."""
        return min(max(SIGMAS * math.sqrt(self._unrest) - TOLERANCE, LEAST_MARGIN), MOST_MARGIN)

    def latency_s(self, each: Choice | Option) -> float:
        """What an item takes, with waiting in queues as far as it was seen."""
        return each.latency_s * self._latency_factor

    def add(self, observation: Observation, current: Choice, demand_fps: float, aim_fps: float) -> float | None:
        """Compares what was predicted with what came, and corrects the model for the resource that is the limit.

        Returns:
            Throughput over the last `JUDGED_S`; the aim, where the source gave no more; None if the splits in force are
            younger.
        """
        recent = self._recent
        if self._estimates.stepped:
            recent.clear()
        if self._before > 0:
            # Where some were dropped, no more of them can be left than all that are on their way.
            self._before = min(self._before - observation.finished, observation.backlog)
            return None
        if observation.finished:
            self._late += LATE_PACE * (observation.late / observation.finished - self._late)
            pace = LATENCY_UP if self._late > LATE_SHARE else LATENCY_DOWN
            self._latency_factor = min(max(self._latency_factor * pace, 1.0), MOST_LATENCY_FACTOR)
        recent.append(
            _Past(
                observation.interval_s,
                observation.finished,
                min(current.capacity_fps, self._estimates.source_rate) * observation.interval_s,
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
            self.lift *= 1.0 - LEARN
            return aim_fps  # there was no more, so nothing is lacking
        off = finished / predicted - 1.0
        self.lift = min(max(self.lift + LEARN * (1.0 - fps / demand_fps), 0.0), MOST_LIFT)
        # The shares of a mix steer towards the aim, so there only what they could not level out counts.
        rest = off if current.first is current.second else min(abs(off), abs(fps / aim_fps - 1.0))
        self._unrest += LEARN * (rest * rest - self._unrest)
        self._correct(current, min(max(off, -MOST_OFF), MOST_OFF))
        return fps

    def believe(self, fps: float | None, kept: Choice, demand_fps: float, interval_s: float) -> float:
        """Takes in the throughput that `add` gave. Returns what the splits in force can do, by it and by the model."""
        lacks = fps is not None and fps < ENOUGH * demand_fps
        self._lacking_s = self._lacking_s + interval_s if lacks else 0.0
        if fps is None:
            return kept.capacity_fps
        if self._lacking_s > DOUBT_S and kept.capacity_fps > (1.0 + FAR_OFF) * fps:
            self._estimates.doubt(max(1.0, JUDGED_S * fps))
        return max(kept.capacity_fps, fps)  # what was seen is possible, whatever is predicted

    def _correct(self, current: Choice, off: float) -> None:
        """The throughput was so much off what the limit of the choice in force allows."""
        limit = current.busiest
        saturated = self._estimates.saturated(limit)
        if not saturated and current.first is not current.second:
            return  # it is not that limit: the items of a mix wait for each other, and the shares make up for it
        learn = LEARN
        if saturated and limit == cost_model.DEVICE:
            # What no task's time holds (threads, encryption, acks) shows at once, and noise evens out.
            self._judged += 1
            learn = max(LEARN, LEARN_FIRST / self._judged)
        self._estimates.correct(limit, 1.0 + learn * off)
