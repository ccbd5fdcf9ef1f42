"""Units run on threads of this process: for tasks that release the interpreter lock, as OpenCV's and NumPy's do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import thread_time_ns

from task_offload.engines.base import Done, Lane, Unit, set_cpu, work
from task_offload.runner import Runner
from task_offload.task import Chain
from task_offload.wire.codec import Decoder


class ThreadWorker:
    """Runs units on the thread that calls it."""

    def __init__(self, chain: Chain) -> None:
        self._decoder = Decoder(chain.payload_types)
        self._runner = Runner(chain)
        self._last = len(chain.tasks) - 1

    def wait(self) -> None:
        pass

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        cpu_ns = thread_time_ns()
        dones = []
        for unit in units:
            done = work(unit, self._decoder, self._runner, self._last, unit.lane.states)
            dones.append(done)
            yield done
        set_cpu(dones, thread_time_ns() - cpu_ns)

    def forget(self, lane: Lane) -> None:
        pass  # the lane itself has the state

    def kill(self) -> bool:
        return False

    def close(self) -> None:
        pass
