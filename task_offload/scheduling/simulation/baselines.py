"""The policies to beat. In: what they need to know. Out: decisions."""

from __future__ import annotations

from collections.abc import Sequence

from task_offload.scheduling import cost_model
from task_offload.scheduling.observation import Decision, Observation
from task_offload.scheduling.simulation.oracle import best
from task_offload.scheduling.simulation.worlds import World


class Fixed:
    """One split with one codec, for ever."""

    def __init__(self, split: int, codec: str) -> None:
        self._decision = Decision({split: 1.0}, "fixed", codec)

    def start(self) -> Decision:
        return self._decision

    def decide(self, observation: Observation) -> Decision | None:
        del observation
        return None


class StepDown:
    """This project's forerunner: below the target, one more task goes to the cloud; none ever comes back."""

    def __init__(self, splits: Sequence[int], start: int, target_fps: float) -> None:
        self._splits = tuple(splits)
        self._at = min(range(len(splits)), key=lambda i: abs(splits[i] - start))
        self._target_fps = target_fps
        self._finished = self._seconds = 0.0

    def start(self) -> Decision:
        return Decision({self._splits[self._at]: 1.0}, "start")

    def decide(self, observation: Observation) -> Decision | None:
        self._finished += observation.finished
        self._seconds += observation.interval_s
        if self._seconds < 3.0:  # it judged by the throughput that it printed
            return None
        fps, self._finished, self._seconds = self._finished / self._seconds, 0.0, 0.0
        if fps >= self._target_fps or self._at == 0:
            return None
        self._at -= 1
        return Decision({self._splits[self._at]: 1.0}, "too slow")


class LatencyMinimal:
    """The split with the least latency for one item, as Neurosurgeon (Kang et al., ASPLOS 2017) chooses it.

    It is given the truth where Neurosurgeon predicts, so it loses nothing to its predictions.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self) -> Decision:
        return self._quickest(0.0)

    def decide(self, observation: Observation) -> Decision | None:
        return None if observation.in_local_outage else self._quickest(observation.now_s)

    def _quickest(self, second: float) -> Decision:
        option = cost_model.quickest(cost_model.options(self._world.costs(second)))
        return Decision({option.split: 1.0}, "least latency", option.codec)


class Informed:
    """The oracle's choice, told when each interval has passed: what perfect knowledge of the present gives.

    What it misses, no policy without foresight reaches with its margin: items differ, queues fill, and a recorded link
    falls between two decisions. No bar is set on it; it says how much of a world is the world's own.
    """

    MARGIN = 0.03  # above the target, for items that differ

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self) -> Decision:
        return self._decision(0.0)

    def decide(self, observation: Observation) -> Decision | None:
        return None if observation.in_local_outage else self._decision(observation.now_s - observation.interval_s)

    def _decision(self, second: float) -> Decision:
        world = self._world
        costs = world.costs(second)
        target_fps = world.target_fps
        for fps in ((1.0 + self.MARGIN) * target_fps, target_fps):
            found = best(costs, fps, world.max_latency_s)
            if found.mix is not None:
                break
        choice = found.mix or found.fastest
        return Decision(choice.shares, "the oracle's choice", choice.codec)
