"""Items' last steps in the cloud. In: outcomes of the engine and endings of devices, on any thread and in any order.
Out: records, those of each session in its order.

put -> order restored -> last task, on the thread that calls `work`, for all devices -> record
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import thread_time_ns

from task_offload.cloud_session import CloudSession, Endings
from task_offload.engines.base import Done, TaskTimeoutError
from task_offload.errors import ProtocolError
from task_offload.results.base import COMPLETED, DROPPED, FILTERED, Record
from task_offload.runner import Kind, Outcome, Runner, TaskErrorLog
from task_offload.task import Chain, Item
from task_offload.wire.messages import Ending

log = logging.getLogger(__name__)

BATCH = 256  # from so many items on that are to be handed to the recorder, no more are waited for
BATCH_S = 0.005  # and how long the first of them waits for the others


class Finisher:
    """Runs the last task for all devices, each device's items in order.

    Arguments:
        record: takes records.
        task_timeout_s: how long the last task may take before `watch` warns.

    Attributes:
        taken: outcomes and runs of endings whose turn has come and that do not wait for the main thread any more.
    """

    def __init__(
        self,
        chain: Chain,
        record: Callable[[Sequence[Record]], object],
        task_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._names = chain.names
        self._last = len(chain.tasks) - 1
        self._runner = Runner(chain)
        self._errors = TaskErrorLog(chain.names)
        self._record = record
        self._task_timeout_s = task_timeout_s
        self._clock = clock
        self._unix_clock = unix_clock
        self._order = threading.Lock()
        self._ready: SimpleQueue[list[Done | Endings] | None] = SimpleQueue()
        self._backlog: deque[Done | Endings] = deque()  # what was taken, and has not ended yet
        self._put = 0  # how many have become ready
        self.taken = 0
        self._cpu_ns: int | None = None
        self._running: tuple[Item, float] | None = None  # the item that the last task is at, and since when
        self._warned: Item | None = None

    # -- any thread -------------------------------------------------------------------------------------------------

    def put(self, dones: Sequence[Done]) -> None:
        """Outcomes of the engine. Each goes on when all before it of its session have."""
        ready: list[Done | Endings] = []
        with self._order:
            for done in dones:
                unit = done.unit
                _in_order(unit.owner, unit.item.sequence, done, ready)
            self._put_ready(ready)

    def put_endings(self, endings: Endings) -> None:
        """Items that ended on the device. They go on when all before them of their session have."""
        ready: list[Done | Endings] = []
        with self._order:
            _in_order(endings.session, endings.first, endings, ready)
            self._put_ready(ready)

    def _put_ready(self, ready: list[Done | Endings]) -> None:
        if ready:
            self._put += len(ready)
            self._ready.put(ready)

    @property
    def waiting(self) -> int:
        """How many wait for the main thread: not what the last task is at, nor what waits for its turn."""
        return self._put - self.taken

    def wake(self) -> None:
        """Makes `work` return. Safe in a signal handler."""
        self._ready.put(None)

    def watch(self, now: float) -> None:
        """The last task cannot be ended, and all devices wait for it; people should know."""
        running = self._running
        if running is not None and running[0] is not self._warned and now - running[1] > self._task_timeout_s:
            self._warned = item = running[0]
            log.warning(
                "the last task has been at item %d of device %s for more than %g s; all devices wait for it",
                item.sequence, item.device, self._task_timeout_s,
            )  # fmt: skip

    # -- the main thread --------------------------------------------------------------------------------------------

    def work(self, timeout_s: float) -> None:
        """Takes what is ready, and ends it; waits for it at most so long."""
        if self._cpu_ns is None:
            self._cpu_ns = thread_time_ns()
        backlog = self._backlog
        try:
            # Not `timeout=0.0`: Python 3.10 may then wait for ever, if it is interrupted at the wrong moment.
            steps = self._ready.get_nowait() if backlog else self._ready.get(timeout=timeout_s)
            while steps is not None:
                backlog.extend(steps)
                if len(backlog) >= BATCH:
                    break
                steps = self._ready.get_nowait()
        except Empty:
            pass
        if backlog:
            self._end_some(self._cpu_ns)

    def _end_some(self, began_cpu_ns: int) -> None:
        """Ends items, as many as take `BATCH_S`, and hands them to the recorder.

        An item's CPU time on this thread is the last task's, and an equal part of all else that the thread did.
        """
        ended, tasks_ns = self._run_some()
        self._cpu_ns = thread_time_ns()
        cpu_ns = self._cpu_ns - began_cpu_ns
        rest_ns = max(0, cpu_ns - tasks_ns) // len(ended)
        of_task = min(1.0, cpu_ns / tasks_ns) if tasks_ns else 0.0
        now = self._unix_clock()
        records: list[Record] = []
        for entry in ended:
            if isinstance(entry, Endings):
                records += _device_endings(entry, now)
                continue
            done, last = entry
            unit = done.unit
            item, session = unit.item, unit.owner
            outcome = last or done.outcome
            last_ns = last.busy_ns[0] if last is not None else None
            main_ns = int((last_ns or 0) * of_task) + rest_ns
            session.costs.add(done, last_ns, main_ns)
            ending, detail = self._ending(item, outcome, done.forbidden)
            records.append(
                Record(
                    session.device,
                    session.session,
                    item.sequence,
                    item.split,
                    ending,
                    detail,
                    outcome.value if ending == COMPLETED else None,
                    item.captured_at,
                    now,
                    (main_ns + done.cpu_ns + unit.received_ns) / 1e9,
                    unit.size_bytes,
                )
            )
        self._record(records)

    def _run_some(self) -> tuple[list[tuple[Done, Outcome | None] | Endings], int]:
        """What of the backlog has ended now, with the last task's outcome where it ran; and its busy time in all."""
        backlog = self._backlog
        ended: list[tuple[Done, Outcome | None] | Endings] = []
        ends_at = self._clock() + BATCH_S
        tasks_ns = 0
        while backlog and (not ended or self._clock() < ends_at):
            each = backlog.popleft()
            self.taken += 1
            if isinstance(each, Endings):
                ended.append(each)
                continue
            last = self._run_last(each)
            tasks_ns += last.busy_ns[0] if last is not None else 0
            ended.append((each, last))
        return ended, tasks_ns

    def _run_last(self, done: Done) -> Outcome | None:
        """Runs the last task, where an item has come so far."""
        if done.outcome.kind is not Kind.CONTINUED:
            return None
        item, session = done.unit.item, done.unit.owner
        self._running = item, self._clock()
        outcome = self._runner.run(item, session.lane.states, done.outcome.value, self._last, self._last + 1)
        self._running = None
        return outcome

    def _ending(self, item: Item, outcome: Outcome, forbidden: ProtocolError | None) -> tuple[str, str | None]:
        if outcome.kind is Kind.COMPLETED:
            return COMPLETED, None
        if outcome.kind is Kind.FILTERED:
            return FILTERED, self._names[outcome.task]
        if forbidden is not None:
            return DROPPED, f"bad_payload: {forbidden}"
        if isinstance(outcome.value, TaskTimeoutError):
            log.error("the tasks of item %d of device %s took too long", item.sequence, item.device)
            return DROPPED, f"task_timeout: {outcome.value}"
        return DROPPED, f"task_error: {self._errors.failed(outcome, item.device, item.sequence)}"


def _in_order(session: CloudSession, sequence: int, step: Done | Endings, ready: list[Done | Endings]) -> None:
    """Adds to `ready` what may go on now that this step has come."""
    if sequence != session.next_sequence:
        session.pending[sequence] = step
        return
    following: Done | Endings | None = step
    while following is not None:
        ready.append(following)
        session.next_sequence += following.count if isinstance(following, Endings) else 1
        following = session.pending.pop(session.next_sequence, None) if session.pending else None


def _device_endings(run: Endings, now: float) -> list[Record]:
    """The records of items that ended on the device: one for a run of drops, otherwise one each."""
    told, session = run.told, run.session
    oldest, newest = now - told.oldest_age_us / 1e6, now - told.newest_age_us / 1e6
    if told.ending is Ending.DROPPED:
        return [
            Record(
                session.device, session.session, run.first, told.split, DROPPED, told.detail, None, oldest, now,
                items=run.count,
            )
        ]  # fmt: skip
    apart_s = (newest - oldest) / max(1, told.count - 1)
    return [
        Record(
            session.device, session.session, sequence, told.split, FILTERED, told.detail, None,
            oldest + (sequence - told.first) * apart_s, now,
        )
        for sequence in range(run.first, run.first + run.count)
    ]  # fmt: skip
