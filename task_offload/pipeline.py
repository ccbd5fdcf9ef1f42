"""The device's stages before the link. In: items of the first task. Out: entries for the outbox, in sequence order.

    capture (first task, one thread) -> queue -> workers (tasks 2...N, encoding) -> order restored -> link

`block` makes the first task wait while there is no room behind it; with `newest` the oldest waiting item is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

from task_offload.emulated_cpu import EmulatedCpu
from task_offload.errors import OffloadError
from task_offload.observe.meters import DeviceMeters
from task_offload.runner import Kind, Outcome, Runner, States, TaskErrorLog, TaskThread, pause_s
from task_offload.scheduling.cost_model import compute_threads
from task_offload.scheduling.observation import MOST_AHEAD, Route
from task_offload.task import Chain, Item
from task_offload.wire.codec import Encoder
from task_offload.wire.messages import Ending
from task_offload.wire.outbox import Entry

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Captured:
    item: Item
    args: tuple[Any, ...]
    codec: str
    measured: bool  # its CPU time


class Running(NamedTuple):
    """What a worker is at: an item, since when by the steady clock."""

    item: Item
    since_s: float


class Pipeline:
    """Captures items and makes entries of them, until the stream ends or `stop` is called.

    Arguments:
        chain: the app's tasks.
        device, session: this device's name and this run's session, as `current_item()` gives them.
        encoder: makes payloads.
        codec: what it does where a route does not say.
        meters: hears what everything costs.
        next_route: the split and codec of the next item; it may wait until what it is given says that no more are
            captured.
        wait_for_room: waits until there is room behind the workers; False if that will not be any more.
        put: takes the entries, in sequence order; one caller at a time, so it must be quick.
        carry: called after that, to send what was put; never waits.
        newest: drop the oldest waiting item instead of waiting.
        cores: K, cores that the tasks may use.
        pace_s: seconds between items, or None to take them as they come.
        live: the first task waits for its sensor, so only its CPU time counts as busy.
        items: how many to capture.
        detours: splits, ascending, to which an item may go on where its arguments cannot travel.
        cpu: the emulated processor, or None.
    """

    def __init__(
        self,
        chain: Chain,
        device: str,
        session: str,
        encoder: Encoder,
        codec: str,
        meters: DeviceMeters,
        next_route: Callable[[Callable[[], bool]], Route],
        wait_for_room: Callable[[], bool],
        put: Callable[[Entry], None],
        carry: Callable[[], None],
        newest: bool,
        cores: int,
        pace_s: float | None = None,
        live: bool = False,
        items: int | None = None,
        detours: Sequence[int] = (),
        cpu: EmulatedCpu | None = None,
    ) -> None:
        self._chain = chain
        self._device = device
        self._session = session
        self._encoder = encoder
        self._codec = codec
        self._meters = meters
        self._next_route = next_route
        self._wait_for_room = wait_for_room
        self._put = put
        self._carry = carry
        self._newest = newest
        self._pace_s = pace_s
        self._live = live
        self._items = items
        self._detours = detours
        self._emulated = cpu is not None
        self._factor = cpu.factor if cpu is not None else 1.0
        self._stretched: Callable[[], AbstractContextManager[None]] = cpu.work if cpu is not None else nullcontext
        self._runner = Runner(chain)
        self._states = States()
        self._errors = TaskErrorLog(chain.names)
        self._waiting: deque[_Captured] = deque()
        self._lock = threading.Lock()  # of `_waiting`; a condition's own `with` costs two Python calls more
        self._room_made = threading.Condition(self._lock)  # the capture thread waits for it
        self._item_came = threading.Condition(self._lock)  # workers do
        self._held_back = False  # a worker waits though an item does
        self._stop = threading.Event()
        self._aborted = False
        self._captured_all = False
        self._sensing = False
        self._order = threading.Lock()
        self._done: dict[int, Entry] = {}
        self._next_sequence = 0
        workers = compute_threads(chain.stateful, chain.splits, cores)
        self._most_ahead = MOST_AHEAD * workers
        self._room = workers + 1
        self.error: OffloadError | None = None
        self._capture_thread = TaskThread(target=self._capture, name="capture")
        self._workers = [
            TaskThread(target=self._work, name=f"compute-{number}", args=(number,)) for number in range(workers)
        ]
        self._running: list[Running | None] = [None] * workers

    def start(self) -> None:
        for thread in (self._capture_thread, *self._workers):
            thread.start()

    def stop(self) -> None:
        """Captures nothing more; what is captured goes on."""
        self._stop.set()
        with self._lock:
            self._room_made.notify_all()
            self._item_came.notify_all()

    def abort(self) -> None:
        """Gives up what is captured too. Nothing is put any more when this returns."""
        with self._order:
            self._aborted = True
        self.stop()

    @property
    def sensing(self) -> bool:
        """Whether the first task runs: it may wait for its sensor, which may yield nothing more."""
        return self._sensing

    @property
    def ended(self) -> bool:
        """Whether every captured item has become an entry, or was given up."""
        return not self._capture_thread.is_alive() and not any(thread.is_alive() for thread in self._workers)

    def longest_running(self) -> Running | None:
        """What a worker has been at for longer than the others; the first task is not theirs. None if none works."""
        return min(filter(None, self._running), key=lambda running: running.since_s, default=None)

    def task_of(self, item: Item) -> str:
        """The name of the task that has an item, or had it last."""
        return next(name for n, name in enumerate(self._chain.names) if item.state is self._states.of_task(n))

    # -- the capture thread -----------------------------------------------------------------------------------------

    def _capture(self) -> None:
        try:
            self._capture_all()
        except OffloadError as error:
            self.error = error
        except Exception as error:
            self._fail(error)
        finally:
            with self._lock:
                self._captured_all = True
                self._item_came.notify_all()

    def _capture_all(self) -> None:
        due = time.monotonic()
        failures = 0
        meters = self._meters
        while not self._stop.is_set() and (self._items is None or meters.captured < self._items):
            if self._pace_s is not None:
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
                due = max(due + self._pace_s, time.monotonic() - self._pace_s)
            route = self._next_route(self._stop.is_set)
            if self._stop.is_set():
                return
            sequence = meters.captured
            codec = route.codec or self._codec
            item = Item(self._device, self._session, sequence, time.time(), route.split)
            measured = self._emulated or meters.wants_cpu(route.split, codec)
            outcome = self._first_task(item, measured)
            if outcome.kind is Kind.FILTERED:
                return
            item.captured_at, item.captured_s = time.time(), time.monotonic()
            meters.captured += 1
            if outcome.kind is Kind.FAILED:
                self._end(item, codec, Ending.DROPPED, self._failure(outcome, item))
                failures += 1
                self._stop.wait(pause_s(failures))
                continue
            failures = 0
            meters.ran(0, outcome.busy_ns, outcome.cpu_ns, True)
            self._enqueue(_Captured(item, outcome.value, codec, measured))

    def _first_task(self, item: Item, measured: bool) -> Outcome:
        self._sensing = True
        try:
            with self._stretched():
                outcome = self._runner.run(item, self._states, (), 0, 1, measured or self._live)
        finally:
            self._sensing = False
        if self._live or self._emulated:
            outcome.busy_ns[0] = int(outcome.cpu_ns[0] * self._factor)
        return outcome

    def _stretch(self, busy_ns: int, cpu_ns: int) -> int:
        """How long something takes that was busy for so long: on the emulated processor, its CPU time is longer."""
        return busy_ns + int((self._factor - 1.0) * cpu_ns)

    def _enqueue(self, captured: _Captured) -> None:
        dropped: _Captured | None = None
        with self._lock:
            if self._newest:
                if len(self._waiting) >= self._room:
                    dropped = self._waiting.popleft()
            elif len(self._waiting) >= self._room:
                started = time.monotonic()
                while len(self._waiting) >= self._room and not self._aborted:
                    self._room_made.wait()
                self._meters.held(time.monotonic() - started)
            self._waiting.append(captured)
            self._item_came.notify()
        if dropped is not None:
            self._meters.dropped()
            self._end(dropped.item, dropped.codec, Ending.DROPPED, "overload")

    # -- the workers' threads ---------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        try:
            while self._wait_for_item() and self._wait_for_room() and not self._aborted:
                if (captured := self._take()) is not None:
                    self._running[number] = Running(captured.item, time.monotonic())
                    self._process(captured)
                    self._running[number] = None
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """A bug must end the run with its traceback, not hang it."""
        log.exception("the pipeline failed")
        self.error = OffloadError(f"the pipeline failed: {error!r}")
        self.abort()

    def _wait_for_item(self) -> bool:
        """Waits until an item may be taken; False if there will be none any more."""
        with self._lock:
            while not self._may_take():
                if (self._captured_all and not self._waiting) or self._aborted:
                    return False
                self._held_back = self._held_back or bool(self._waiting)
                self._item_came.wait()
            return True

    def _take(self) -> _Captured | None:
        with self._lock:
            if not self._may_take():
                return None  # another worker was faster
            captured = self._waiting.popleft()
            self._room_made.notify()
            return captured

    def _may_take(self) -> bool:
        """Whether an item waits that is not too far before one that still is worked on: what is done is kept."""
        return bool(self._waiting) and self._waiting[0].item.sequence < self._next_sequence + self._most_ahead

    def _process(self, captured: _Captured) -> None:
        item, codec, measured = captured.item, captured.codec, captured.measured
        args, captured.args = captured.args, ()  # so that nothing here keeps an array longer than its item needs it
        ran = 1
        while (found := self._run(item, args, ran, codec, measured)) is not None:
            args = found
            try:
                entry = self._encode(item, args, codec, measured)
            except Exception as error:  # what cannot travel, or what a class of the app raises
                ran = item.split
                if not self._goes_on(item, codec, error):
                    return
            else:
                self._in_order(entry)
                return

    def _goes_on(self, item: Item, codec: str, problem: Exception) -> bool:
        """The item cannot travel at its split. It gets the next one where it may, or ends here: False."""
        split = item.split
        following = next((each for each in self._detours if each > split), None)
        new = self._meters.cannot_travel(split, problem)
        if following is None:
            outcome = Outcome(Kind.FAILED, split - 1, problem, [])
            self._end(item, codec, Ending.DROPPED, self._failure(outcome, item))
            return False
        if new:
            log.warning("split %d is not possible, so its items go on to %d: %s", split, following, problem)
        self._meters.unsent(split, codec)
        item.split = following
        return True

    def _run(self, item: Item, args: tuple[Any, ...], ran: int, codec: str, measured: bool) -> tuple[Any, ...] | None:
        """Runs the tasks from index `ran` to the item's split. Returns the next one's arguments; None if it ended."""
        if item.split <= ran:
            return args
        with self._stretched():
            outcome = self._runner.run(item, self._states, args, ran, item.split, measured)
        if self._emulated:
            outcome.busy_ns[:] = map(self._stretch, outcome.busy_ns, outcome.cpu_ns)
        self._meters.ran(ran, outcome.busy_ns, outcome.cpu_ns, outcome.kind is Kind.CONTINUED)
        if outcome.kind is Kind.CONTINUED:
            continued: tuple[Any, ...] = outcome.value
            return continued
        if outcome.kind is Kind.FILTERED:
            self._end(item, codec, Ending.FILTERED, self._chain.names[outcome.task])
        else:
            self._end(item, codec, Ending.DROPPED, self._failure(outcome, item))
        return None

    def _encode(self, item: Item, args: tuple[Any, ...], codec: str, measured: bool) -> Entry:
        cpu_ns = 0
        with self._stretched():
            cpu_started_ns = thread_time_ns() if measured else 0
            started_ns = perf_counter_ns()
            payload = self._encoder.encode(args, codec)
            busy_ns = perf_counter_ns() - started_ns
            if measured:
                cpu_ns = thread_time_ns() - cpu_started_ns
        busy_s, cpu_s = self._stretch(busy_ns, cpu_ns) / 1e9, cpu_ns / 1e9 if measured else None
        self._meters.encoded(item.split, codec, payload.size_bytes, busy_s, cpu_s)
        return Entry(item.sequence, item.split, item.captured_s, payload, self._meters.tag(codec))

    def _failure(self, outcome: Outcome, item: Item) -> str:
        return f"task_error: {self._errors.failed(outcome, item.device, item.sequence)}"

    def _end(self, item: Item, codec: str, ending: Ending, detail: str) -> None:
        """The item ends here."""
        self._meters.unsent(item.split, codec)
        self._in_order(Entry(item.sequence, item.split, item.captured_s, ending=ending, detail=detail))

    def _in_order(self, entry: Entry) -> None:
        """Hands entries on when all before them have been."""
        with self._order:
            if self._aborted:
                return
            self._meters.splits[entry.split] += 1
            self._done[entry.sequence] = entry
            while (following := self._done.pop(self._next_sequence, None)) is not None:
                self._next_sequence += 1
                self._put(following)
        with self._lock:
            if self._held_back:
                self._held_back = False
                self._item_came.notify_all()
        self._carry()
