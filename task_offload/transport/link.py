"""The device's side of the way to the cloud. In: entries, in sequence order. Out: what the cloud says of them.

One thread owns the connection: it connects, introduces the session, sends what the window allows, reads the acks, and
connects again, for ever, when the connection is lost. What is not acknowledged stays in the outbox and is sent again.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from task_offload.errors import LinkError, OffloadError, ProtocolError, RefusedError
from task_offload.transport.certificates import client_context
from task_offload.transport.stream import Stream, Waker, tune
from task_offload.transport.tokens import Token
from task_offload.wire.framing import Frame, FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import (
    LASTING,
    PING,
    ChainSpec,
    Costs,
    Hello,
    Load,
    Refusal,
    RefusalMessage,
    Totals,
    Welcome,
    bye,
)
from task_offload.wire.outbox import Acked, Entry, Outbox
from task_offload.wire.session import DeviceSide, Farewell, Liveness
from task_offload.wire.window import Window

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
HEARTBEAT_S = 2.0  # until the welcome says otherwise
SILENCE_S = 8.0
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 30.0
REFUSED_WAIT_S = 60.0  # a lasting refusal that met a running device: somebody may mend it
QUEUE_BYTES = 2 * 1024 * 1024  # handed to the stream ahead of the socket: several frames to one system call
_CLOUD_LIMITS = FrameLimits(head_bytes=64 * 1024, body_bytes=0)  # the cloud sends no bodies


@dataclass
class DeviceSession:
    """One session's unfinished business, over any number of connections.

    Attributes:
        session: 16 bytes, its identity.
        outbox: what it has sent or will send.
        next_sequence: the first sequence that was never put into the outbox.
        acked: all below this sequence were acknowledged, as far as this run knows.
        sent_to: the first sequence that was never sent, on any connection.
        leaving: no more will be added; the session says bye when its outbox is empty.
        left: the cloud has said farewell.
    """

    session: bytes
    outbox: Outbox = field(default_factory=Outbox)
    next_sequence: int = 0
    acked: int = 0
    sent_to: int = 0
    leaving: bool = False
    left: bool = False


class LinkEvents(Protocol):
    """Who hears what happens on the link. All methods are called on the link's thread and must be quick."""

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        """The cloud took the session up."""

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        """The cloud told its books: after a welcome, an ack, or a farewell."""

    def cost(self, costs: Costs) -> None:
        """The cloud told what this device's items cost it."""

    def sent(self, size_bytes: int, busy_s: float) -> None:
        """So many bytes were handed to the system in so many busy seconds."""

    def away(self, reason: str) -> None:
        """There is no connection any more, or still none."""


class Link:
    """Carries sessions to the cloud, one after the other, on a thread of its own.

    Arguments:
        address: host and port.
        device: this device's name.
        chain: what both sides must agree on.
        find_token: looks for the token before every connection; None where there is none.
        use_tls: False between loopback addresses only.
        sessions: earlier sessions with something left, then the live one; the link ends after the last has left.
        events: who hears of it.
        window_items: a limit on unacknowledged items beside the cloud's, for measurements.

    Attributes:
        error: why the link ended for good, or None.
        condition: guards the outboxes; notified when there may be room, or when the link ends.
        away_s: how long the cloud was away, without the time that runs.
        away_since: when the cloud went away; None while it is there.
        busy_s: how long something was on its way.
    """

    def __init__(
        self,
        address: tuple[str, int],
        device: str,
        chain: ChainSpec,
        find_token: Callable[[], Token | None],
        sessions: list[DeviceSession],
        events: LinkEvents,
        use_tls: bool = True,
        window_items: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._address = address
        self._device = device
        self._chain = chain
        self._find_token = find_token
        self._sessions = sessions
        self._events = events
        self._tls = client_context() if use_tls else None
        self._window_items = window_items
        self._clock = clock
        self._unix_clock = unix_clock
        self._rng = rng or random.Random()
        self.condition = threading.Condition()
        self.error: OffloadError | None = None
        self.away_s = 0.0
        self.away_since: float | None = clock()
        self.connections = 0
        self.goodput = 0.0
        self.window_bytes = 0
        self._busy_s = 0.0
        self._busy_since: float | None = None
        self._load: Load | None = None
        self._waker = Waker()
        self._sleeping = False
        self._abandoned = False
        self._hurry = False
        self._said: set[str] = set()  # reasons that were logged since the last connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    # -- for other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def live(self) -> DeviceSession:
        return self._sessions[-1]

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def add(self, entry: Entry) -> None:
        """Puts the entry that follows in sequence into the live session's outbox."""
        with self.condition:
            session = self._sessions[-1]
            session.outbox.add(entry)
            session.next_sequence = entry.sequence + entry.count
            if self._sleeping:
                self._sleeping = False
                self._waker.wake()

    def tell_load(self, load: Load) -> None:
        """Sends the device's load when there is a connection; only the newest counts."""
        self._load = load

    def leave(self) -> None:
        """Nothing more will be added: when all is acknowledged, the link says bye and ends.

        A link without a connection tries at once to make one.
        """
        with self.condition:
            self._sessions[-1].leaving = True
        self._hurry = True
        self._waker.wake()

    def abandon(self) -> None:
        """Ends the link at once, whatever is on its way."""
        self._abandoned = True
        self._waker.wake()

    def join(self, timeout_s: float) -> bool:
        """Waits for the link's end. Returns whether it has ended."""
        self._thread.join(timeout_s)
        return self.ended

    def busy_s(self) -> float:
        """Seconds in which something was on its way."""
        since = self._busy_since
        return self._busy_s + (self._clock() - since if since is not None else 0.0)

    # -- the link's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for session in self._sessions:
                self._carry(session)
        except OffloadError as error:
            self.error = error
        except _AbandonedError:
            pass
        except Exception as error:  # a bug must end the run with its traceback, not hang it
            log.exception("the link failed")
            self.error = LinkError(f"the link failed: {error!r}")
        finally:
            self._selector.close()
            self._waker.close()
            with self.condition:
                self.condition.notify_all()

    def _carry(self, session: DeviceSession) -> None:
        """Connects again and again until the session has left."""
        wait_s = FIRST_WAIT_S
        while not session.left:
            connections = self.connections
            try:
                self._connect_and_exchange(session)
                return
            except (LinkError, ProtocolError) as error:
                reason, least_wait_s = str(error), 0.0
            except RefusedError as error:
                if error.lasting and not self.connections:
                    raise
                reason = str(error)
                least_wait_s = max(error.retry_after_s or 0.0, REFUSED_WAIT_S if error.lasting else 0.0)
            self._lost(session, reason)
            if self.connections > connections:
                wait_s = FIRST_WAIT_S
            # Half to all of it, so that a thousand devices do not come back in the same moment.
            self._sleep(max(wait_s, least_wait_s) * self._rng.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _lost(self, session: DeviceSession, reason: str) -> None:
        with self.condition:
            session.outbox.rewind()
            if self.away_since is None:
                self.away_since = self._clock()
            self._note_busy(session)
            self.condition.notify_all()
        if reason not in self._said:
            self._said.add(reason)
            log.warning("no connection to %s:%d: %s; trying again until there is one", *self._address, reason)
        self._events.away(reason)

    def _sleep(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        while (left := deadline - self._clock()) > 0 and not self._hurry:
            if self._selector.select(left):
                self._waker.drain()
            self._check_abandoned()
        self._hurry = False

    def _check_abandoned(self) -> None:
        if self._abandoned:
            raise _AbandonedError

    def _connect_and_exchange(self, session: DeviceSession) -> None:
        token = self._find_token()
        if token is None and self._tls is not None:  # `find_token` raises for a server that is not on this machine
            raise LinkError("no server of this user runs on this machine at this port")
        deadline = self._clock() + CONNECT_TIMEOUT_S
        sock = self._connect(deadline)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, do_handshake_on_connect=False)
            stream = Stream(sock)
        except (OSError, ssl.SSLError) as error:
            sock.close()
            raise LinkError(f"no TLS connection: {error}") from error
        self._selector.register(stream, selectors.EVENT_READ)
        try:
            while not stream.shake_hands():
                self._poll(stream, self._until(deadline, "the server did not finish the TLS handshake"))
            if token is not None and self._tls is not None and not token.trusts(stream.certificate()):
                raise RefusedError(
                    Refusal.TOKEN,
                    f"the server at {self._address[0]} has another certificate than the token names; if it was set up "
                    f"anew, run  cloud_server_coordinator.py --enroll {self._device}  there and paste its line here",
                    lasting=True,
                )
            self._exchange(stream, session, token, deadline)
        finally:
            self._selector.unregister(stream)
            stream.close()

    def _connect(self, deadline: float) -> socket.socket:
        try:
            found = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LinkError(f"the name {self._address[0]} is not known ({error.strerror}); check HOST") from error
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                tune(sock)
                sock.setblocking(False)
                sock.connect_ex(address)
                self._selector.register(sock, selectors.EVENT_WRITE)
                try:
                    while not any(key.fileobj is sock for key, _ in self._selector.select(self._until(deadline))):
                        self._check_abandoned()
                        self._waker.drain()
                finally:
                    self._selector.unregister(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return sock
                problem = OSError(code, os.strerror(code))
            except OSError as error:
                problem = error
            except BaseException:
                sock.close()
                raise
            sock.close()
        assert problem is not None
        raise LinkError(f"{problem.strerror or problem}; is the server running, and its port open?") from problem

    def _until(self, deadline: float, problem: str = "no answer; is the server running, and its port open?") -> float:
        left = deadline - self._clock()
        if left <= 0:
            raise LinkError(problem)
        return left

    def _poll(self, stream: Stream, timeout_s: float) -> bool:
        """Waits until the stream or a waker has something. True if the stream can be read."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.wants_write else 0)
        if self._selector.get_key(stream).events != events:
            self._selector.modify(stream, events)
        readable = False
        for key, mask in self._selector.select(timeout_s):
            if key.fileobj is stream:
                readable = bool(mask & selectors.EVENT_READ)
            else:
                self._waker.drain()
        self._check_abandoned()
        return readable

    def _exchange(self, stream: Stream, session: DeviceSession, token: Token | None, deadline: float) -> None:
        """Introduces the session, and carries its outbox, until farewell."""
        name = token.device if token is not None and token.device else self._device
        secret = token.secret if token is not None else bytes(32)
        stream.queue([Hello(name, session.session, secret, self._chain, session.acked).encode()])
        talk = _Conversation(
            FrameReader(MemoryPool(0), _CLOUD_LIMITS), DeviceSide(session.acked, session.sent_to), self._clock()
        )
        while talk.window is None:
            stream.flush()
            readable = self._poll(stream, self._until(deadline, "the server did not answer the hello"))
            if readable:
                self._receive(stream, session, talk)
        while not session.left:
            self._send(stream, session, talk)
            now = self._clock()
            if talk.liveness.gone(now):
                raise LinkError(f"the cloud has been silent for {talk.liveness.silence_s:g} s")
            timeout_s = max(0.0, talk.liveness.next_at(stream.wants_write) - now)
            with self.condition:
                if self._may_send(session, talk) and not stream.wants_write:
                    timeout_s = 0.0
                else:
                    self._sleeping = True
            readable = self._poll(stream, timeout_s)
            self._sleeping = False
            if readable:
                self._receive(stream, session, talk)

    def _may_send(self, session: DeviceSession, talk: _Conversation) -> bool:
        outbox = session.outbox
        entry = outbox.next()
        assert talk.window is not None
        return entry is not None and talk.window.allows(outbox.sent_entries, outbox.sent_bytes, entry.size_bytes)

    def _send(self, stream: Stream, session: DeviceSession, talk: _Conversation) -> None:
        """Sends what the window allows and the socket takes."""
        entries: list[Entry] = []
        assert talk.window is not None
        now = self._clock()
        with self.condition:
            outbox = session.outbox
            queued = stream.outgoing_bytes
            while queued < QUEUE_BYTES and self._may_send(session, talk):
                entry = outbox.next()
                assert entry is not None
                outbox.sent(now, talk.window.delivered_bytes)
                session.sent_to = max(session.sent_to, entry.sequence + entry.count)
                queued += entry.size_bytes
                entries.append(entry)
            if entries:
                talk.side.sent(session.sent_to)
                self._note_busy(session)
                self.condition.notify_all()
            finished = session.leaving and outbox.held_from is None
        if self._load is not None and not talk.left:
            stream.queue([self._load.encode()])
            self._load = None
        unix_now = self._unix_clock()
        for entry in entries:
            stream.queue(entry.encode(unix_now))
        if finished and not talk.left:
            talk.left = True
            talk.side.leave()
            stream.queue([bye(session.next_sequence)])
        if talk.liveness.ping_due(now) and not stream.outgoing_bytes:
            stream.queue([PING])
        if stream.outgoing_bytes:
            started = time.perf_counter()
            size_bytes = stream.flush()
            if size_bytes:
                talk.liveness.sent_at = now
                self._events.sent(size_bytes, time.perf_counter() - started)

    def _receive(self, stream: Stream, session: DeviceSession, talk: _Conversation) -> None:
        while True:
            count = stream.receive_into(talk.reader.buffer())
            if count is None:
                return
            if count == 0:
                raise LinkError("the server closed the connection")
            talk.liveness.heard_at = self._clock()
            for frame in talk.reader.received(count):
                self._handle(frame, session, talk)
            if not stream.pending():
                return

    def _handle(self, frame: Frame, session: DeviceSession, talk: _Conversation) -> None:
        event = talk.side.receive(frame)
        if isinstance(event, Totals):
            self._learned(session, event, talk)
        elif isinstance(event, Costs):
            self._events.cost(event)
        elif isinstance(event, Welcome):
            self._welcomed(session, event, talk)
        elif isinstance(event, Farewell):
            self._learned(session, event.totals, talk)
            session.left = True
        elif isinstance(event, RefusalMessage):
            raise RefusedError(event.code, event.message, event.code in LASTING, event.retry_after_s or None)

    def _welcomed(self, session: DeviceSession, welcome: Welcome, talk: _Conversation) -> None:
        now = self._clock()
        most_items = min(welcome.unacked_items, self._window_items or welcome.unacked_items)
        talk.window = Window(most_items, welcome.unacked_bytes)
        talk.liveness = Liveness(welcome.heartbeat_s, welcome.silence_s, now)
        self.connections += 1
        self._said.clear()
        with self.condition:
            if self.away_since is not None:
                self.away_s += now - self.away_since
                self.away_since = None
            acked = session.outbox.acknowledge(welcome.totals.next_sequence)
            session.outbox.resume(welcome.totals.next_sequence)
            session.acked = max(session.acked, welcome.totals.next_sequence)
            session.next_sequence = max(session.next_sequence, welcome.totals.next_sequence)
            self.condition.notify_all()
        self._events.welcomed(session, welcome)
        self._events.learned(session, acked, welcome.totals)

    def _learned(self, session: DeviceSession, totals: Totals, talk: _Conversation) -> None:
        now = self._clock()
        window = talk.window
        assert window is not None
        with self.condition:
            acked = session.outbox.acknowledge(totals.next_sequence)
            session.acked = max(session.acked, totals.next_sequence)
            for each in acked:
                if each.entry.sent_at:
                    window.acknowledged(each.entry, now)
            self._note_busy(session)
            self.goodput, self.window_bytes = window.goodput, window.size_bytes
            self.condition.notify_all()
        self._events.learned(session, acked, totals)

    def _note_busy(self, session: DeviceSession) -> None:
        if session.outbox.sent_entries:
            if self._busy_since is None:
                self._busy_since = self._clock()
        elif self._busy_since is not None:
            self._busy_s += self._clock() - self._busy_since
            self._busy_since = None


class _Conversation:
    """What one connection knows."""

    def __init__(self, reader: FrameReader, side: DeviceSide, now_s: float) -> None:
        self.reader = reader
        self.side = side
        self.liveness = Liveness(HEARTBEAT_S, SILENCE_S, now_s)
        self.window: Window | None = None
        self.left = False


class _AbandonedError(Exception):
    """Somebody called `abandon`."""
