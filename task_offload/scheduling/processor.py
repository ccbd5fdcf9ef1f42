"""What a device's processor gives to its tasks. In: observations. Out: cores, and busy time without waits for a core.

Under a CPU quota, or beside other processes, a task's time by the clock says little: it is short until the quota is
used up, and then lasts as long as the quota is. Where the system tells how long threads waited for a core, a task costs
its CPU time, and the cores are what the process gets when it wants more. Elsewhere both follow from how many threads
are busy at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from task_offload.scheduling.observation import Observation

MEMORY_S = 30.0  # how long it counts how far threads that are busy by the clock get on, and what no task takes
CROWD_PACE = 0.2  # of the new in the mean of how many threads are busy
STEP = 0.25  # relative; a larger difference is believed at once
BUSY = 0.6  # used more than this, the device may be the limit: what threads, TLS and acks cost counts nowhere
LEAST_CORES = 1e-3  # a process that got no core at all will get one some time
DELAY_MEMORY_S = 2.0  # how long delays and what goes with them count
SHORT = 0.2  # of what a process wants to run: if it waits for less, it may be that nothing holds it back
DECLINE_S, RECOVERY_S = 10.0, 180.0  # in which what is seen of the cores while they are not busy is believed


class _Shares(NamedTuple):
    """What became of some time: seconds.

    Attributes:
        span_s: how long it was.
        ran_s, delayed_s: what the process got, and what its threads waited for a core.
        spread_s: both together, times the threads that wanted it at a time.
        worked_s, waited_s: CPU time of tasks and payloads, and what these were busy beside it.
    """

    span_s: float
    ran_s: float
    delayed_s: float
    spread_s: float
    worked_s: float
    waited_s: float

    def after(self, before: _Shares, keep: float) -> _Shares:
        """Both together, what was before by the share `keep`."""
        return _Shares(*(keep * then + now for then, now in zip(before, self, strict=True)))

    @property
    def busy(self) -> bool:
        """Whether the process wanted to run for most of the time."""
        return self.ran_s + self.delayed_s > BUSY * self.span_s

    def cores(self, most: float) -> float:
        """Cores for the process, which can use `most`, if all threads that wanted to run do so at a time: each gets the
        share of a core that it got. Of threads that wanted little, and still waited, no more than one is counted on."""
        wanted_s = self.ran_s + self.delayed_s
        if not wanted_s:
            return most
        threads = most
        if self.delayed_s > SHORT * wanted_s:
            threads = self.spread_s / wanted_s if self.busy else 1.0
        return max(LEAST_CORES, self.ran_s / self.span_s, threads * self.ran_s / wanted_s)


class Processor:
    """Follows one device's processor.

    Attributes:
        cores: K, cores that the process may use; a fraction where they are shared.
    """

    def __init__(self) -> None:
        self.cores = 1.0
        self._crowd = 1.0  # busy threads for each core
        # Of late: what the process got, and what its threads were busy by the clock without the wait for a core.
        self._cpu_s = self._busy_s = 0.0
        self._rest_s = self._items = 0.0  # of late: CPU time of no task and no payload, and items captured
        self._delays_told = False
        self._recent = _Shares(*[0.0] * len(_Shares._fields))  # of the last seconds
        self._before = self._recent  # the interval before
        self._strikes = 0  # intervals in a row that were far from these seconds
        self._waits = 1.0  # of what a task is busy beside its CPU time, what it did not wait for a core or a lock
        self._stepped_to: float | None = None

    def add(self, observation: Observation) -> bool:
        """Takes one interval in. Returns whether the cores have become quite others."""
        interval_s = observation.interval_s
        busy_s = sum(each.busy_s for each in observation.device)
        busy_s += sum(each.encode_s for each in observation.payloads.values())
        cores = float(observation.cores)
        if observation.cpu_s is not None:
            keep = math.exp(-interval_s / MEMORY_S)
            self._cpu_s = keep * self._cpu_s + observation.cpu_s
            self._busy_s = keep * self._busy_s + max(0.0, busy_s - (observation.delayed_s or 0.0))
            # Behind one lock, two threads that are busy by the clock get on no faster than one. (Nor under a quota, for
            # all that is known where delays are not told.)
            if self._cpu_s < self._busy_s:
                cores = max(1.0, cores * self._cpu_s / self._busy_s)
        if observation.cpu_s is not None and observation.delayed_s is not None:
            self._add_delays(observation, observation.cpu_s, observation.delayed_s, busy_s, cores)
        else:
            self.cores = cores
            # Threads that wait for each other's core are busy by the clock. More than all cores cannot be, but a task
            # that took longer than the interval began before it.
            longest_s = max((each.busy_s / each.items for each in observation.device if each.items), default=0.0)
            busy = busy_s / (max(interval_s, longest_s) * cores)
            self._crowd += (CROWD_PACE if abs(busy - self._crowd) < STEP * self._crowd else 1.0) * (busy - self._crowd)
        if self._stepped_to is None:
            self._stepped_to = self.cores
        stepped = abs(self.cores - self._stepped_to) > STEP * self._stepped_to
        if stepped:
            self._stepped_to = self.cores
        return stepped

    def _add_delays(
        self, observation: Observation, ran_s: float, delayed_s: float, busy_s: float, cores: float
    ) -> None:
        interval_s = observation.interval_s
        worked_s = sum(each.cpu_s for each in observation.device)
        worked_s += sum(each.encode_cpu_s for each in observation.payloads.values())
        keep = math.exp(-interval_s / MEMORY_S)
        self._rest_s = keep * self._rest_s + ran_s - worked_s
        self._items = keep * self._items + observation.captured
        wanted_s = ran_s + delayed_s
        # Of the threads that the work is spread over, no more run at a time than there are cores. But their mean number
        # is sure, and the more there are, the less of a core each of them gets.
        spread_s = wanted_s * max(wanted_s / interval_s, min(observation.threads, cores))
        now = _Shares(interval_s, ran_s, delayed_s, spread_s, worked_s, max(0.0, busy_s - worked_s))
        recent = now.after(self._recent, math.exp(-interval_s / DELAY_MEMORY_S))
        if abs(now.cores(cores) - recent.cores(cores)) > STEP * recent.cores(cores) and now.busy:
            self._strikes += 1
            if self._strikes > 1:  # a quota that was changed
                recent = now.after(self._before, 1.0)
        else:
            self._strikes = 0
        self._before, self._recent = now, recent
        self._follow_cores(now, interval_s, cores)
        if recent.waited_s:
            # Threads beside the tasks wait for a core too, so delays that explain half of the waiting explain it all.
            # What is left cannot be more than the cores have left: then the tasks wait for each other's lock.
            left_s = max(0.0, recent.waited_s - 2.0 * recent.delayed_s)
            free_s = max(0.0, self.cores * recent.span_s - recent.worked_s)
            self._waits = min(left_s, free_s) / recent.waited_s

    def _follow_cores(self, now: _Shares, interval_s: float, cores: float) -> None:
        seen = self._recent.cores(cores)
        if not self._delays_told or (now.busy and self._recent.busy):
            self.cores = seen
            self._delays_told = True
        else:  # little was wanted, so this is a guess, and the cores known from when they were busy count more
            pace_s = DECLINE_S if seen < self.cores else RECOVERY_S
            self.cores += min(1.0, interval_s / pace_s) * (seen - self.cores)

    def own_s(self, busy_s: float, cpu_s: float) -> float:
        """Busy time without what was waited for a core, of something that took `cpu_s` of CPU in it."""
        if not self._delays_told:
            return busy_s / max(1.0, self._crowd)
        return cpu_s + max(0.0, busy_s - cpu_s) * self._waits

    @property
    def rest_s(self) -> float:
        """CPU seconds for an item that no task and no payload takes: threads, acks, the session's books."""
        return max(0.0, self._rest_s) / max(1.0, self._items)

    @property
    def saturated(self) -> bool:
        """Whether it may be what held the last interval up."""
        if not self._delays_told:
            return self._crowd > BUSY
        return self._recent.ran_s > BUSY * self.cores * self._recent.span_s

    @property
    def starved(self) -> bool:
        """Whether its threads wait for a core longer than they have one."""
        return self._recent.delayed_s > self._recent.ran_s

    @property
    def share(self) -> float:
        """Of a core, what a single thread gets."""
        return min(1.0, self.cores) if self._delays_told else 1.0
