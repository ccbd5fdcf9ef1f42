"""Units run on threads of this process: for tasks that release the interpreter lock, as OpenCV's and NumPy's do."""

from __future__ import annotations

from task_offload.engines.base import Done, Lane, Unit, work
from task_offload.runner import Runner
from task_offload.task import Chain
from task_offload.wire.codec import Decoder


class ThreadWorker:
    """Runs units on the thread that calls it."""

    def __init__(self, chain: Chain) -> None:
        self._decoder = Decoder(chain.payload_types)
        self._runner = Runner(chain)
        self._last = len(chain.tasks) - 1

    def run(self, unit: Unit) -> Done:
        return work(unit, self._decoder, self._runner, self._last, unit.lane.states)

    def forget(self, lane: Lane) -> None:
        pass  # the lane itself has the state

    def kill(self) -> bool:
        return False

    def close(self) -> None:
        pass
