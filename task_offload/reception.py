"""Devices in and out. In: what the listener hears of them, and what is recorded. Out: units, endings, acks, costs.

hello -> admission -> items and endings taken in -> engine, finisher ... recorder -> ack -> farewell
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from task_offload.agreement import chain_spec
from task_offload.capacity import WAIT_S, Capacity, Queue
from task_offload.cloud_session import CloudSession, Endings, summary
from task_offload.config import CloudConfig
from task_offload.engines.base import Lane, Unit
from task_offload.errors import ConfigError, OffloadError, ProtocolError
from task_offload.observe.cloud_costs import CloudCosts, Shares
from task_offload.observe.memory_limit import memory_limit_bytes
from task_offload.results.base import SessionBooks, SessionKey
from task_offload.task import Chain, Item
from task_offload.transport.identity import Admission, CloudIdentity
from task_offload.transport.line_budget import LineBudget
from task_offload.transport.listener import Connection, Listener, ListenerLimits, one_line
from task_offload.transport.tokens import check_device_name
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import (
    VERSION,
    Ending,
    EndingRange,
    Hello,
    Refusal,
    Welcome,
    ack,
    farewell,
)
from task_offload.wire.session import Arrived, Bye, CloudEvent, CloudSide

log = logging.getLogger(__name__)

UNACKED_BYTES = 64 * 1024 * 1024  # of one device: what it may send before it is acknowledged
UNACKED_ITEMS = 1024
PAUSE_ITEMS = 4 * UNACKED_ITEMS  # a device that sends more than it may is not read any further
PAUSE_BYTES = 2 * UNACKED_BYTES  # the same; less where many devices share the memory
MEMORY_SHARE = 0.25  # of the memory that this process may have, for what all devices have sent and is not recorded
MEASURE_EVERY_S = 0.5  # how full the cloud is, and what share of it each device has
COSTS_EVERY_S = 0.5  # to each device, with an ack where one goes out anyway
LEFT_COSTS_S = 1.0  # without one
FORGET_AFTER_S = 24 * 3600.0  # a session without a connection: its tasks' state is dropped then, not its books
MOST_SESSIONS = 16  # of one device: the oldest beyond them are forgotten too, once all that came of them is recorded
MAX_REPORTED_SESSIONS = 10_000
LINES_PER_MINUTE = 20  # of coming and going of one device, in the log
COME_BACK_S = 2.0  # what a stopping server tells its devices
FULL_COME_BACK_S = 10.0  # what a full one tells them
MAX_DEVICES = 4000  # fewer than `ListenerLimits.connections`, so that the next ones hear why


class Behind(Protocol):
    """What stands behind the reception. Its methods are called on the listener's thread, and must be quick."""

    def submit(self, units: Sequence[Unit]) -> None:
        """Items to work on, those of each session in order."""

    def put_endings(self, endings: Endings) -> None:
        """Items that ended on the device."""

    def forget(self, lane: Lane) -> None:
        """A session is over."""

    def books(self, device: str, session: str) -> SessionBooks:
        """What is recorded of a session. Raises OffloadError."""

    def queues(self) -> Sequence[Queue]:
        """What waits for each of its parts."""

    def watch(self, now: float) -> None:
        """Called a few times a second."""


class Reception:
    """Lets devices in on one port, takes in what they send, and tells them what is recorded.

    Attributes:
        sessions: of all devices that may come back, by device and session; the listener's thread has them.
        over: reports of those that will not, the newest `MAX_REPORTED_SESSIONS`.

    Raises:
        ConfigError: the port cannot be listened on, ever.
        LinkError: not now: it is taken, say.
    """

    def __init__(
        self,
        config: CloudConfig,
        chain: Chain,
        identity: CloudIdentity | None,
        behind: Behind,
        limits: ListenerLimits,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec = chain_spec(chain)
        self._index = {name: index for index, name in enumerate(chain.names)}
        self._identity = identity
        self._behind = behind
        self._limits = limits
        self._weights = config.weights
        self._clock = clock
        self._unix_clock = unix_clock
        self.sessions: dict[tuple[str, bytes], CloudSession] = {}
        self.over: list[dict[str, Any]] = []
        self._newest: dict[str, CloudSession] = {}  # the session of each device that others give way to
        self._of_device: dict[str, dict[CloudSession, None]] = {}  # the oldest first
        self._by_record: dict[SessionKey, CloudSession] = {}
        self._arrived: list[Unit] = []  # since the engine got some
        self._dirty: set[CloudSession] = set()  # to be told something
        self._lock = threading.Lock()  # of `_dirty`, and of what other threads tell of sessions
        self._costs_of_gone = CloudCosts()  # of sessions that are over
        self._filtered: Counter[int] = Counter()  # on devices, by task
        self._connected = 0
        self._memory_bytes = int(memory_limit_bytes() * MEMORY_SHARE)
        self._lines = LineBudget(LINES_PER_MINUTE, clock)
        self._taking = True
        self._capacity = Capacity(clock())
        self._shares = Shares(config.workers)
        self._measured_at = 0.0
        self._listener = Listener(
            config.host,
            config.port,
            self,
            lambda: CloudSide(len(chain.tasks), chain.splits),
            identity.tls() if identity else None,
            limits,
            clock,
        )

    # -- any thread -------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    @property
    def alive(self) -> bool:
        """False if the listener died of a bug, which it has logged."""
        return self._listener.alive

    @property
    def rejected(self) -> Mapping[str, int]:
        """How many connections were refused or closed, by reason."""
        return self._listener.rejected

    @property
    def in_work(self) -> bool:
        """Whether there are items that were taken in and are not recorded."""
        return any(each.unfinished for each in list(self.sessions.values()))

    def cpu_if_all_were_sent_s(self) -> float | None:
        """What the cloud would have spent if devices ran the first task only. Call it after `close`."""
        costs = CloudCosts()
        for each in (self._costs_of_gone, *(session.costs for session in self.sessions.values())):
            costs.enter(each)
        return costs.if_all_were_sent_s(self._filtered, len(self._index))

    def start(self) -> None:
        """Lets devices in."""
        self._listener.start()

    def take_no_more(self) -> None:
        """What comes from now on is left to the devices, which send it again to the next server."""
        self._taking = False

    def close(self) -> None:
        """Tells what has been recorded, and closes all connections and the port."""
        self._listener.close()

    def recorded(self, books: Mapping[SessionKey, SessionBooks]) -> None:
        """Records are on disk: their devices may forget them."""
        with self._lock:
            for key, each in books.items():
                session = self._by_record.get(key)
                if session is not None:
                    session.recorded(each)
                    self._dirty.add(session)
        self._listener.wake()

    def offended(self, session: CloudSession, error: ProtocolError) -> None:
        """A payload of this session may not be decoded."""
        with self._lock:
            session.offence = str(error)
            self._dirty.add(session)
        self._listener.wake()

    # -- the listener's thread: hello -------------------------------------------------------------------------------

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
        admission: Admission | None = None
        if self._identity is not None:
            admission = self._identity.admit(hello.device, hello.secret, connection.address)
            if admission is None:
                self._listener.refuse(
                    connection, Refusal.TOKEN,
                    f"the token of {hello.device} is not valid here; run  python3 cloud_server_coordinator.py "
                    f"--enroll {hello.device}  on the server and paste the line that it prints on the device",
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
        session = self.sessions.get((hello.device, hello.session))
        newest = self._newest.get(hello.device)
        if session is not None and newest is not session and newest is not None and newest.connection is not None:
            self._listener.refuse(
                connection, Refusal.REPLACED,
                f"a newer run of a device named {hello.device} is connected; give each device its own --device-name",
            )  # fmt: skip
            return
        if session is None:
            session = self._begin(connection, hello)
            if session is None:
                return
        for other in (session, newest):
            if other is not None and other.connection is not None:
                self._listener.refuse(
                    other.connection, Refusal.REPLACED, f"device {hello.device} has connected again", COME_BACK_S
                )
        self._newest[hello.device] = session
        session.connection, session.admission = connection, admission
        session.bye = None
        session.costs_at = self._clock()
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
        more = self._lines.take(hello.device)
        if more is not None:
            again = "" if session.acked == 0 else " again"
            log.info("device %s connected from %s%s%s", hello.device, connection.address, again, more)
        if differs and more is not None:
            log.warning(
                "the app of device %s is other source code than this server's; results may differ", hello.device
            )
        self._connected += 1
        self._listener.accept(connection, session, welcome.encode())

    def _begin(self, connection: Connection, hello: Hello) -> CloudSession | None:
        """A session that is not known here, with what is recorded of it; None if it was refused."""
        if (reason := self._no_room(hello.device)) is not None:
            self._listener.refuse(connection, Refusal.BUSY, reason, FULL_COME_BACK_S)
            return None
        try:
            books = self._behind.books(hello.device, hello.session.hex())
        except OffloadError as error:
            self._listener.refuse(connection, Refusal.BUSY, f"the results cannot be read: {error}", COME_BACK_S)
            return None
        if books.watermark < hello.acked:  # nothing is kept here, or somebody removed it, or restored a backup
            books = replace(books, watermark=hello.acked)
        session = CloudSession(hello.device, hello.session, books, self._weights.get(hello.device, 1.0))
        self.sessions[hello.device, hello.session] = self._by_record[session.device, session.session] = session
        self._of_device.setdefault(session.device, {})[session] = None
        self._forget_oldest(session.device)
        return session

    def _no_room(self, device: str) -> str | None:
        """Why no more sessions, or none of this device, are let in now, if that is so."""
        if self._connected >= MAX_DEVICES:
            return f"{MAX_DEVICES} devices are connected, and that is the limit of one server; try again later"
        if self._capacity.full:
            return f"the cloud is full: items have waited for more than {WAIT_S:g} s here; try again later"
        if device in self._of_device and self._held_bytes(device) > self._room_bytes():
            return "what earlier runs of this device have sent is still being worked on; try again later"
        return None

    # -- the listener's thread: taking in ---------------------------------------------------------------------------

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        """Takes in what a device sent. Its load is for people, and nothing shows it yet."""
        session: CloudSession = connection.session
        if not self._taking:
            return  # it is not acknowledged, so it will come again
        if type(event) is Arrived:
            self._take_item(connection, session, event)
        elif isinstance(event, EndingRange):
            if not event.detail.isprintable():
                event = replace(event, detail=one_line(event.detail))
            self._take_endings(session, event)
        elif isinstance(event, Bye):
            if event.next_sequence > session.expected:
                raise ProtocolError(f"a bye at item {event.next_sequence} where item {session.expected} was due")
            session.bye = session.expected  # a device that was killed may not know how far it had come
            self._acknowledge(session, self._clock())
        if session.unfinished > PAUSE_ITEMS or self._held_bytes(session.device) > self._room_bytes():
            self._listener.pause(connection, True)

    def _held_bytes(self, device: str) -> int:
        """What a device has sent that is not recorded, in all its sessions."""
        return sum(each.unacked_bytes for each in self._of_device.get(device, ()))

    def _room_bytes(self) -> int:
        """How much one device may have here."""
        return min(PAUSE_BYTES, self._memory_bytes // max(1, self._connected))

    def _take_up_reading(self, session: CloudSession, connection: Connection) -> None:
        """Goes on to read from a device that had sent too much, once much of that is recorded."""
        if session.unfinished <= UNACKED_ITEMS and self._held_bytes(session.device) <= self._room_bytes() // 2:
            self._listener.pause(connection, False)

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
            if endings.ending is Ending.FILTERED and endings.detail in self._index:
                self._filtered[self._index[endings.detail]] += endings.count - known
            self._behind.put_endings(Endings(session, endings.first + known, endings.count - known, endings))

    def _known(self, session: CloudSession, first: int, count: int) -> bool:
        """Whether all these items came before; otherwise they count as come from now on."""
        if first > session.expected:
            raise ProtocolError(f"item {first} came where item {session.expected} was due")
        if first + count <= session.expected:
            return True
        session.expected = first + count
        return False

    # -- the listener's thread: telling -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Hands on what has come, and acknowledges what has been recorded since."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._behind.submit(arrived)
        if not self._dirty:
            return
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        now = self._clock()
        for session in dirty:
            self._acknowledge(session, now)

    def _acknowledge(self, session: CloudSession, now: float) -> None:
        connection, totals = session.connection, session.totals
        if connection is None:
            session.offence = None  # it was the connection's that is gone
            return
        if session.offence is not None:
            offence, session.offence = session.offence, None
            self._listener.refuse(connection, Refusal.PAYLOAD, f"a payload was not what it may be: {offence}")
            return
        if totals.next_sequence > session.acked:
            session.acked = totals.next_sequence
            self._tell_costs(session, connection, now, COSTS_EVERY_S)
            self._listener.send(connection, ack(totals))
        if connection.paused:
            self._take_up_reading(session, connection)
        if session.bye is not None and totals.next_sequence == session.bye:
            self._tell_costs(session, connection, now, 0.0)  # a short session has heard of none
            self._listener.send(connection, farewell(totals))
            self._leave(session)
            self._listener.dismiss(connection)

    def tick(self) -> None:
        """A few times a second: tells costs, closes the connections of revoked devices, forgets old sessions."""
        now = self._clock()
        self._behind.watch(now)
        if now - self._measured_at < MEASURE_EVERY_S:
            return
        self._measured_at = now
        if self._identity is not None:
            self._identity.refresh()
            for session in list(self.sessions.values()):
                if session.connection and session.admission and not self._identity.still_admits(session.admission):
                    self._listener.refuse(
                        session.connection, Refusal.TOKEN, f"the token of {session.device} was revoked"
                    )
        self._capacity.measure(now, self._behind.queues())
        shares = self._shares.measure(
            {each.lane.number: (each.costs, each.lane.weight) for each in self.sessions.values()}, now
        )
        for session in list(self.sessions.values()):
            session.shares = shares[session.lane.number]
            if session.connection is not None:
                self._tell_costs(session, session.connection, now, LEFT_COSTS_S)
                if session.connection.paused:  # for what others have sent, or an earlier session of its own
                    self._take_up_reading(session, session.connection)
            elif now - session.last_seen > FORGET_AFTER_S:
                self._forget(session)

    def _tell_costs(self, session: CloudSession, connection: Connection, now: float, every_s: float) -> None:
        if now - session.costs_at < every_s:
            return
        session.costs_at = now
        if (costs := session.costs.take(*session.shares)) is not None:
            costs = replace(costs, transfer_bytes=connection.transfer_bytes, transfer_us=connection.transfer_ns // 1000)
            connection.transfer_bytes = connection.transfer_ns = 0
            self._listener.send(connection, costs.encode())

    # -- the listener's thread: leaving -----------------------------------------------------------------------------

    def closed(self, connection: Connection, reason: str) -> None:
        """A device's connection is closed."""
        self._connected -= 1
        session: CloudSession = connection.session
        if session.connection is not connection:
            return
        session.connection = None
        session.last_seen = self._clock()
        left = session.bye is not None and session.totals.next_sequence >= session.bye
        if not left and (more := self._lines.take(session.device)) is not None:
            log.info("device %s is away: %s%s", session.device, reason, more)

    def _leave(self, session: CloudSession) -> None:
        """The device has left in good order."""
        if (more := self._lines.take(session.device)) is not None:
            log.info("device %s left: %s%s", session.device, summary(session.report()["items"]), more)
        self._forget(session)

    def _forget_oldest(self, device: str) -> None:
        """A device that crashes again and again begins a session each time, and takes up none of them."""
        sessions = self._of_device[device]
        for each in list(sessions)[:-MOST_SESSIONS]:
            if each.connection is None and not each.unfinished:
                self._forget(each)

    def _forget(self, session: CloudSession) -> None:
        """Nothing of a session stays but its books."""
        self.over.append(session.report())
        del self.over[:-MAX_REPORTED_SESSIONS]
        self._costs_of_gone.enter(session.costs)
        self._behind.forget(session.lane)
        self.sessions.pop((session.device, bytes.fromhex(session.session)), None)
        self._by_record.pop((session.device, session.session), None)
        sessions = self._of_device.get(session.device, {})
        sessions.pop(session, None)
        if not sessions:
            self._of_device.pop(session.device, None)
        if self._newest.get(session.device) is session:
            del self._newest[session.device]
