"""The cloud's side, wired: listener -> engine -> order restored -> last task on the main thread -> record -> ack.

`CloudSession` is one device's run as the cloud sees it; `Cloud` moves items through the stages.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import thread_time_ns
from types import FrameType
from typing import Any

from task_offload.agreement import chain_spec
from task_offload.capacity import Capacity
from task_offload.config import CloudConfig
from task_offload.engines import make_engine
from task_offload.engines.base import Done, Lane, TaskTimeoutError, Unit
from task_offload.errors import ConfigError, LinkError, OffloadError, ProtocolError
from task_offload.observe.cloud_costs import CloudCosts, Shares
from task_offload.observe.report import write_report
from task_offload.observe.watchdog import Watchdog
from task_offload.results.base import COMPLETED, DROPPED, FILTERED, Record, SessionBooks, SessionKey
from task_offload.results.recorder import Recorder
from task_offload.results.specs import open_results
from task_offload.runner import Kind, Outcome, Runner, TaskErrorLog
from task_offload.task import Item, load_app
from task_offload.transport.identity import Admission, CloudIdentity, default_state_dir
from task_offload.transport.listener import Connection, Listener, ListenerLimits, one_line
from task_offload.transport.loopback import check_no_tls_addresses
from task_offload.transport.tokens import check_device_name
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import (
    VERSION,
    Ending,
    EndingRange,
    Hello,
    Load,
    Refusal,
    Totals,
    Welcome,
    ack,
    farewell,
)
from task_offload.wire.session import Arrived, Bye, CloudEvent, CloudSide

log = logging.getLogger(__name__)

UNACKED_BYTES = 64 * 1024 * 1024  # of one device: what it may send before it is acknowledged
UNACKED_ITEMS = 1024
PAUSE_ITEMS = 4 * UNACKED_ITEMS  # a device that sends more than it may is not read any further
COSTS_EVERY_S = 0.5
FORGET_AFTER_S = 24 * 3600.0  # a session without a connection: its tasks' state is dropped then, not its books
MAX_REPORTED_SESSIONS = 10_000
MAIN_BATCH = 256  # items that are handed to the recorder at once, at most
MAIN_BATCH_S = 0.005  # and how long the first of them waits for the others
FIRST_DEVICE = "device-1"  # enrolled at the first start
COME_BACK_S = 2.0  # what a stopping server tells its devices
FULL_COME_BACK_S = 10.0  # what a full one tells them
MAX_DEVICES = 4000  # fewer than `ListenerLimits.connections`, so that the next ones hear why
MOST_ACKED = 2**62  # a device's word; the store's sequences end at 2**63


class CloudSession:
    """One run of one device, across its connections.

    Each field belongs to one thread: `expected` to `received_bytes` to the listener's; `pending` and `next_sequence`
    to whoever holds the cloud's order lock; `totals` is replaced by the recorder's and read by others.
    """

    def __init__(self, device: str, session: bytes, books: SessionBooks) -> None:
        self.device = device
        self.session = session.hex()
        self.lane = Lane()
        self.costs = CloudCosts()
        self.load: Load | None = None
        self.frame: Any = None  # what a task published last
        self.connection: Connection | None = None
        self.admission: Admission | None = None
        self.last_seen = 0.0
        self.expected = books.watermark  # the next sequence to take in
        self.bye: int | None = None
        self.received_bytes = 0
        self.shares = (1.0, 1.0)
        self.offence: str | None = None  # a payload that may not be decoded; guarded by the cloud's lock
        self.pending: dict[int, Done | _Endings] = {}
        self.next_sequence = books.watermark  # the next sequence to hand to the main thread
        self.totals = _totals(books)
        self.bytes_received_before = books.bytes_received
        self.acked = books.watermark
        self.taken_bytes = 0  # payloads that were taken in, and of these
        self.recorded_bytes = 0  # those that are recorded

    def report(self) -> dict[str, Any]:
        """The session's entry in the run report."""
        totals = self.totals
        return {
            "device": self.device,
            "session": self.session,
            "items": {
                "captured": totals.next_sequence,
                "completed": totals.completed,
                "filtered": totals.filtered,
                "dropped": dict(totals.dropped),
            },
            "cloud_cpu_s": round(totals.cloud_cpu_us / 1e6, 6),
            "bytes_received": self.bytes_received_before + self.received_bytes,
        }


class _Endings:
    """A run of items that ended on the device, from `first` on; those before it came on an earlier connection."""

    __slots__ = ("count", "first", "session", "told")

    def __init__(self, session: CloudSession, first: int, count: int, told: EndingRange) -> None:
        self.session = session
        self.first = first
        self.count = count
        self.told = told


def _totals(books: SessionBooks) -> Totals:
    return Totals(books.watermark, books.completed, books.filtered, dict(books.dropped), int(books.cloud_cpu_s * 1e6))


class Cloud:
    """One server. `start` opens the port, `run` works on the calling thread until `stop`.

    Raises:
        ConfigError: something of the config cannot work.
        StoreError: the results cannot be recorded.
    """

    def __init__(
        self,
        config: CloudConfig,
        limits: ListenerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._limits = limits or ListenerLimits()
        self._clock = clock
        self._unix_clock = unix_clock
        self._chain = load_app(config.app)
        if not config.use_tls:
            check_no_tls_addresses(config.host)
        self._spec = chain_spec(self._chain)
        self._runner = Runner(self._chain)
        self._last = len(self._chain.tasks) - 1
        self._errors = TaskErrorLog(self._chain.names)
        self._sessions: dict[tuple[str, bytes], CloudSession] = {}
        self._newest: dict[str, CloudSession] = {}  # the session of each device that others give way to
        self._by_record: dict[SessionKey, CloudSession] = {}
        self._arrived: list[Unit] = []  # since the engine got some; the listener's thread has it
        self._order = threading.Lock()
        self._ready: SimpleQueue[list[Done | _Endings] | None] = SimpleQueue()
        self._backlog: deque[Done | _Endings] = deque()  # what the main thread has taken, and not ended yet
        self._main_cpu_ns = 0
        self._last_task: tuple[Item, float] | None = None  # what runs on the main thread, and since when
        self._warned: Item | None = None
        self._dirty: set[CloudSession] = set()
        self._dirty_lock = threading.Lock()
        self._connected = 0
        self._ended_items = 0
        self._capacity = Capacity(clock())
        self._over: list[dict[str, Any]] = []
        self._stopping = False
        self._taking = True
        self._began_at = clock()
        self._costs_at = 0.0
        self._identity = CloudIdentity(config.state_dir or default_state_dir()) if config.use_tls else None
        results = open_results(config.results, config.keep_days)
        self._recorder = Recorder(results.store, results.sinks, on_recorded=self._recorded)
        self._shares = Shares(config.workers)
        self._listener = Listener(
            config.host,
            config.port,
            self,
            lambda: CloudSide(len(self._chain.tasks), self._chain.splits),
            self._identity.tls() if self._identity else None,
            self._limits,
            clock,
        )
        self._watchdog = Watchdog()
        if self._identity:
            self._identity.open_loopback(self._listener.port)
        # The last, since only `close` ends its processes.
        self._engine = make_engine(config.engine, self._chain, config.workers, self._finished, config.task_timeout_s)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    def enroll_first(self) -> str | None:
        """The line to paste on a device, at the first start; None where a device has been enrolled already."""
        if self._identity is None or self._identity.list_devices():
            return None
        return self._identity.enroll(FIRST_DEVICE)

    def start(self) -> None:
        """Lets devices in."""
        self._listener.start()
        self._watchdog.ready()

    def stop(self) -> None:
        """Makes `run` finish what has come in, and return. Safe in a signal handler."""
        self._stopping = True
        self._ready.put(None)

    # -- the main thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs the last task for all devices until `stop` is called, then ends in good order.

        Raises:
            LinkError: the listener died of a bug, which it has logged.
        """
        self._main_cpu_ns = thread_time_ns()
        while not self._stopping:
            self._work(0.5)
            if not self._listener.alive:
                raise LinkError("the listener failed; the error stands above")
        self._watchdog.stopping()
        self._taking = False
        deadline = self._clock() + self._config.drain_s
        while self._in_work() and self._clock() < deadline:
            self._work(0.05)

    def close(self) -> None:
        """Ends everything: records what is finished, tells the devices, closes the port, writes the report."""
        self._engine.close()
        unrecorded = self._recorder.close(self._config.drain_s)
        self._listener.close()
        if self._identity:
            self._identity.close()
        if unrecorded:
            log.warning("%d items are not recorded; their devices hold them and will send them again", unrecorded)
        sessions = self._over + [each.report() for each in self._sessions.values()]
        for each in sessions[len(self._over) :]:
            log.info("device %s: %s; it had not left", each["device"], _summary(each["items"]))
        if self._config.report is not None:
            write_report(
                self._config.report,
                {
                    "schema": 1,
                    "sessions": sessions,
                    "duration_s": round(self._clock() - self._began_at, 3),
                    "cpu_s": round(time.process_time(), 3),
                    "rejected": dict(self._listener.rejected),
                },
            )

    def _in_work(self) -> bool:
        return any(each.totals.next_sequence < each.expected for each in list(self._sessions.values()))

    def _work(self, timeout_s: float) -> None:
        """Takes what is ready; waits for it at most so long."""
        self._watchdog.beat()
        backlog = self._backlog
        try:
            while len(backlog) < MAIN_BATCH:
                # Not `timeout=0.0`: Python 3.10 may then wait for ever, if it is interrupted at the wrong moment.
                backlog.extend((self._ready.get_nowait() if backlog else self._ready.get(timeout=timeout_s)) or ())
        except Empty:
            pass
        if backlog:
            self._end_some()

    def _end_some(self) -> None:
        """Ends items, as many as take `MAIN_BATCH_S`, and hands them to the recorder.

        An item's CPU time on this thread is the last task's, and an equal part of all else that the thread did.
        """
        backlog = self._backlog
        ended: list[tuple[Done, Outcome | None] | _Endings] = []
        ends_at = self._clock() + MAIN_BATCH_S
        tasks_ns = 0
        while backlog and (not ended or self._clock() < ends_at):
            each = backlog.popleft()
            if isinstance(each, _Endings):
                ended.append(each)
                continue
            last = self._run_last(each)
            tasks_ns += last.busy_ns[0] if last is not None else 0
            ended.append((each, last))
        cpu_ns = thread_time_ns() - self._main_cpu_ns
        self._main_cpu_ns += cpu_ns
        rest_ns = max(0, cpu_ns - tasks_ns) // len(ended)
        of_task = min(1.0, cpu_ns / tasks_ns) if tasks_ns else 0.0
        now = self._unix_clock()
        records: list[Record] = []
        for entry in ended:
            if isinstance(entry, _Endings):
                records += self._device_endings(entry)
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
        self._recorder.add_all(records)

    def _run_last(self, done: Done) -> Outcome | None:
        """Runs the last task, where an item has come so far."""
        item, session = done.unit.item, done.unit.owner
        outcome = None
        if done.outcome.kind is Kind.CONTINUED:
            self._last_task = item, self._clock()
            outcome = self._runner.run(item, session.lane.states, done.outcome.value, self._last, self._last + 1)
            self._last_task = None
        if item.published is not None:
            session.frame = item.published
        return outcome

    def _ending(self, item: Item, outcome: Outcome, forbidden: ProtocolError | None) -> tuple[str, str | None]:
        if outcome.kind is Kind.COMPLETED:
            return COMPLETED, None
        if outcome.kind is Kind.FILTERED:
            return FILTERED, self._chain.names[outcome.task]
        if forbidden is not None:
            return DROPPED, f"bad_payload: {forbidden}"
        if isinstance(outcome.value, TaskTimeoutError):
            log.error("the tasks of item %d of device %s took too long", item.sequence, item.device)
            return DROPPED, f"task_timeout: {outcome.value}"
        return DROPPED, f"task_error: {self._errors.failed(outcome, item.device, item.sequence)}"

    def _device_endings(self, run: _Endings) -> list[Record]:
        """The records of items that ended on the device: one for a run of drops, otherwise one each."""
        told, session = run.told, run.session
        now = self._unix_clock()
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

    # -- workers' threads -------------------------------------------------------------------------------------------

    def _finished(self, dones: Sequence[Done]) -> None:
        """The engine has outcomes; each goes on when all before it of its session have."""
        ready: list[Done | _Endings] = []
        with self._order:
            for done in dones:
                unit = done.unit
                self._in_order(unit.owner, unit.item.sequence, done, ready)
            if ready:
                self._ready.put(ready)
        for done in dones:
            if done.outcome.kind is Kind.FAILED and (error := done.forbidden) is not None:
                self._bad_payload(done.unit.owner, error)

    @staticmethod
    def _in_order(session: CloudSession, sequence: int, step: Done | _Endings, ready: list[Done | _Endings]) -> None:
        """Adds to `ready` what may go on now that this step has come."""
        if sequence != session.next_sequence:
            session.pending[sequence] = step
            return
        following: Done | _Endings | None = step
        while following is not None:
            ready.append(following)
            session.next_sequence += following.count if isinstance(following, _Endings) else 1
            following = session.pending.pop(session.next_sequence, None) if session.pending else None

    def _bad_payload(self, session: CloudSession, error: ProtocolError) -> None:
        with self._dirty_lock:
            session.offence = str(error)
            self._dirty.add(session)
        self._listener.wake()

    # -- the recorder's thread --------------------------------------------------------------------------------------

    def _recorded(self, records: Sequence[Record], books: Mapping[SessionKey, SessionBooks]) -> None:
        """Records are on disk: their devices may forget them."""
        with self._dirty_lock:
            for key, each in books.items():
                session = self._by_record.get(key)
                if session is not None:
                    session.recorded_bytes = each.bytes_received - session.bytes_received_before
                    self._ended_items += each.watermark - session.totals.next_sequence
                    session.totals = _totals(each)
                    self._dirty.add(session)
        self._listener.wake()

    # -- the listener's thread --------------------------------------------------------------------------------------

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Decides on a device that introduced itself."""
        if hello.version != VERSION:
            self._listener.refuse(
                connection, Refusal.VERSION,
                f"this server speaks protocol version {VERSION}, the device version {hello.version}; "
                "install the same release on both sides",
            )  # fmt: skip
            return
        try:
            hello = replace(hello, device=check_device_name(hello.device))
        except ConfigError as error:
            self._listener.refuse(connection, Refusal.PROTOCOL, str(error))
            return
        if hello.acked > MOST_ACKED:
            self._listener.refuse(connection, Refusal.PROTOCOL, f"{hello.acked} acknowledged items make no sense")
            return
        admission: Admission | None = None
        if self._identity is not None:
            admission = self._identity.admit(hello.device, hello.secret, connection.address)
            if admission is None:
                self._listener.refuse(
                    connection, Refusal.TOKEN,
                    f"the token of {hello.device} is not valid here; run  cloud_server_coordinator.py --enroll "
                    f"{hello.device}  on the server and paste the line that it prints on the device",
                )  # fmt: skip
                return
        if (difference := self._spec.difference(hello.chain)) is not None:
            self._listener.refuse(
                connection, Refusal.CHAIN, f"the apps differ: {difference}; install the same app on both sides"
            )
            return
        if not self._taking:
            self._listener.refuse(connection, Refusal.STOPPING, "the server stops", COME_BACK_S)
            return
        self._take_up(connection, hello, admission)

    def _take_up(self, connection: Connection, hello: Hello, admission: Admission | None) -> None:
        """Begins or resumes a session."""
        key = (hello.device, hello.session)
        session = self._sessions.get(key)
        newest = self._newest.get(hello.device)
        if session is not None and newest is not session and newest is not None and newest.connection is not None:
            self._listener.refuse(
                connection, Refusal.REPLACED,
                f"a newer run of a device named {hello.device} is connected; give each device its own --device-name",
            )  # fmt: skip
            return
        if session is None:
            if (reason := self._no_room()) is not None:
                self._listener.refuse(connection, Refusal.BUSY, reason, FULL_COME_BACK_S)
                return
            try:
                books = self._recorder.books(hello.device, hello.session.hex())
            except OffloadError as error:
                self._listener.refuse(connection, Refusal.BUSY, f"the results cannot be read: {error}", COME_BACK_S)
                return
            if books.watermark < hello.acked:  # nothing is kept here, or somebody removed it
                books = SessionBooks(watermark=hello.acked)
            session = CloudSession(hello.device, hello.session, books)
            self._sessions[key] = self._by_record[session.device, session.session] = session
        for other in (session, newest):
            if other is not None and other.connection is not None:
                self._listener.refuse(
                    other.connection, Refusal.REPLACED, f"device {hello.device} has connected again", COME_BACK_S
                )
        self._newest[hello.device] = session
        session.connection, session.admission = connection, admission
        session.bye = None
        session.acked = session.totals.next_sequence
        differs = hello.chain.source_digest != self._spec.source_digest
        welcome = Welcome(
            session.totals,
            self._limits.heartbeat_s,
            self._limits.silence_s,
            self._limits.frames.body_bytes,
            UNACKED_BYTES,
            UNACKED_ITEMS,
            *session.shares,
            codecs=available_codecs(),
            source_differs=differs,
        )
        log.info(
            "device %s connected from %s%s", hello.device, connection.address, "" if session.acked == 0 else " again"
        )
        if differs:
            log.warning("the app of device %s has another source than this server's; results may differ", hello.device)
        self._connected += 1
        self._listener.accept(connection, session, welcome.encode())

    def _no_room(self) -> str | None:
        """Why no more devices are let in now, if none are."""
        if self._connected >= MAX_DEVICES:
            return f"{MAX_DEVICES} devices are connected, and that is the limit of one server; try again later"
        if self._capacity.full:
            return f"the cloud is full: items take {self._capacity.wait_s:.1f} s here; try again later"
        return None

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        """Takes in what a device sent."""
        session: CloudSession = connection.session
        if not self._taking:
            return  # it is not acknowledged, so it will come again
        if type(event) is Arrived:
            self._take_item(connection, session, event)
        elif isinstance(event, EndingRange):
            if not event.detail.isprintable():
                event = replace(event, detail=one_line(event.detail))
            self._take_endings(session, event)
        elif isinstance(event, Load):
            session.load = event
        elif isinstance(event, Bye):
            if event.next_sequence > session.expected:
                raise ProtocolError(f"a bye at item {event.next_sequence} where item {session.expected} was due")
            session.bye = session.expected  # a device that was killed may not know how far it had come
            self._acknowledge(session)
        if (
            session.expected - session.totals.next_sequence > PAUSE_ITEMS
            or self._unacked_bytes(session) > 2 * UNACKED_BYTES
        ):
            self._listener.pause(connection, True)

    def _take_item(self, connection: Connection, session: CloudSession, arrived: Arrived) -> None:
        received_ns, connection.receive_ns = connection.receive_ns, 0
        size_bytes = len(arrived.head) + (len(arrived.body) if arrived.body is not None else 0)
        session.received_bytes += size_bytes
        if self._known(session, arrived.sequence, 1):
            return
        item = Item(
            session.device,
            session.session,
            arrived.sequence,
            self._unix_clock() - arrived.age_us / 1e6,
            arrived.split,
        )
        session.taken_bytes += size_bytes
        self._arrived.append(
            Unit(session.lane, item, arrived.head, arrived.body, arrived.tag, session, size_bytes, received_ns)
        )

    def _take_endings(self, session: CloudSession, endings: EndingRange) -> None:
        known = max(0, min(endings.count, session.expected - endings.first))
        if not self._known(session, endings.first, endings.count):
            first, count = endings.first + known, endings.count - known
            ready: list[Done | _Endings] = []
            with self._order:
                self._in_order(session, first, _Endings(session, first, count, endings), ready)
                if ready:
                    self._ready.put(ready)

    def _known(self, session: CloudSession, first: int, count: int) -> bool:
        """Whether all these items came before; otherwise they count as come from now on."""
        if first > session.expected:
            raise ProtocolError(f"item {first} came where item {session.expected} was due")
        if first + count <= session.expected:
            return True
        session.expected = first + count
        return False

    @staticmethod
    def _unacked_bytes(session: CloudSession) -> int:
        return session.taken_bytes - session.recorded_bytes

    def closed(self, connection: Connection, reason: str) -> None:
        """A device's connection is closed."""
        self._connected -= 1
        session: CloudSession = connection.session
        if session.connection is not connection:
            return
        session.connection = None
        session.last_seen = self._clock()
        if session.bye is None or session.totals.next_sequence < session.bye:
            log.info("device %s is away: %s", session.device, reason)

    def flush(self) -> None:
        """Hands on what has come, and acknowledges what has been recorded since."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._engine.submit(arrived)
        if not self._dirty:
            return
        with self._dirty_lock:
            dirty, self._dirty = self._dirty, set()
        for session in dirty:
            self._acknowledge(session)

    def _acknowledge(self, session: CloudSession) -> None:
        connection, totals = session.connection, session.totals
        if connection is None:
            return
        if session.offence is not None:
            offence, session.offence = session.offence, None
            self._listener.refuse(connection, Refusal.PAYLOAD, f"a payload was not what it may be: {offence}")
            return
        if totals.next_sequence > session.acked:
            session.acked = totals.next_sequence
            self._listener.send(connection, ack(totals))
        if connection.paused and self._unacked_bytes(session) <= UNACKED_BYTES:
            self._listener.pause(connection, False)
        if session.bye is not None and totals.next_sequence == session.bye:
            connection.send(farewell(totals))
            self._leave(session)
            self._listener.dismiss(connection)

    def _leave(self, session: CloudSession) -> None:
        """The device has left in good order: nothing of it stays but its books."""
        report = session.report()
        log.info("device %s left: %s", session.device, _summary(report["items"]))
        self._forget(session)
        self._over.append(report)
        del self._over[:-MAX_REPORTED_SESSIONS]

    def _forget(self, session: CloudSession) -> None:
        self._engine.forget(session.lane)
        self._sessions.pop((session.device, bytes.fromhex(session.session)), None)
        self._by_record.pop((session.device, session.session), None)
        if self._newest.get(session.device) is session:
            del self._newest[session.device]

    def tick(self) -> None:
        """A few times a second: tells costs, closes the connections of revoked devices, forgets old sessions."""
        now = self._clock()
        self._watch_last_task(now)
        if now - self._costs_at < COSTS_EVERY_S:
            return
        self._costs_at = now
        if self._identity is not None:
            self._identity.refresh()
            for session in list(self._sessions.values()):
                if session.connection and session.admission and not self._identity.still_admits(session.admission):
                    self._listener.refuse(
                        session.connection, Refusal.TOKEN, f"the token of {session.device} was revoked"
                    )
        waiting = sum(each.expected - each.totals.next_sequence for each in self._sessions.values())
        self._capacity.measure(now, waiting, self._ended_items)
        shares = self._shares.measure({id(each): each.costs for each in self._sessions.values()}, now)
        for session in list(self._sessions.values()):
            session.shares = shares[id(session)]
            if session.connection is not None:
                connection = session.connection
                if (costs := session.costs.take(*session.shares)) is not None:
                    costs = replace(
                        costs, transfer_bytes=connection.transfer_bytes, transfer_us=connection.transfer_ns // 1000
                    )
                    connection.transfer_bytes = connection.transfer_ns = 0
                    self._listener.send(connection, costs.encode())
            elif now - session.last_seen > FORGET_AFTER_S:
                self._over.append(session.report())
                self._forget(session)

    def _watch_last_task(self, now: float) -> None:
        """It cannot be ended, and all devices wait for it; people should know."""
        running = self._last_task
        if running is not None and running[0] is not self._warned and now - running[1] > self._config.task_timeout_s:
            self._warned = item = running[0]
            log.warning(
                "the last task has been at item %d of device %s for more than %g s; all devices wait for it",
                item.sequence, item.device, self._config.task_timeout_s,
            )  # fmt: skip


def _summary(items: Mapping[str, Any]) -> str:
    dropped: Mapping[str, int] = items["dropped"]
    why = f" ({', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""
    return (
        f"{items['captured']} items came, {items['completed']} completed, {items['filtered']} filtered, "
        f"{sum(dropped.values())} dropped{why}"
    )


def run_cloud(config: CloudConfig, started: Callable[[int], None] | None = None) -> int:
    """Runs a server until SIGINT or SIGTERM. Returns the exit status.

    Arguments:
        started: called with the port once it listens.

    Raises:
        OffloadError: it cannot start; the message says why.
    """
    if config.enroll or config.revoke or config.list_devices:
        return _manage(config)
    cloud = Cloud(config)
    signals = Counter[str]()

    def stop(number: int, frame: FrameType | None) -> None:
        signals["stop"] += 1
        if signals["stop"] > 1:
            os._exit(130)
        # Not print: what was interrupted may be printing.
        os.write(2, b"stopping: finishing what has come in; Ctrl-C again stops at once\n")
        cloud.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    cloud.start()
    print(f"listening on {config.host}:{cloud.port}, running {config.app}", file=sys.stderr, flush=True)
    if started is not None:
        started(cloud.port)
    elif (line := cloud.enroll_first()) is not None:
        print(
            f"paste this on a device, which is named {FIRST_DEVICE} then (--enroll NAME for others):\n{line}",
            flush=True,
        )
    try:
        cloud.run()
    finally:
        cloud.close()
    return 0


def _manage(config: CloudConfig) -> int:
    """Does what `--enroll`, `--revoke` or `--list-devices` asks."""
    identity = CloudIdentity(config.state_dir or default_state_dir())
    if config.enroll:
        if any(device.name == config.enroll for device in identity.list_devices()):
            print(f"{config.enroll} was enrolled before; its earlier token no longer works", file=sys.stderr)
        print(identity.enroll(config.enroll))
    if config.revoke:
        identity.revoke(config.revoke)
        print(f"{config.revoke} is shut out; a running server closes its connection within 2 s")
    if config.list_devices:
        for device in identity.list_devices():
            print(f"{device.name}\tenrolled {time.strftime('%Y-%m-%d %H:%M', time.localtime(device.enrolled_at))}")
    return 0
