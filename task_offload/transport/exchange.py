"""One connection that carries a session. In: the session's outbox, and what the cloud says. Out: bytes, and events.

Whoever has something for the connection, or waits for it, carries it on (`step`): a thread that must be woken for each
item costs more than sending one. Only one thread does at a time; `Link` sees to that.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from task_offload.errors import LinkError, RefusedError
from task_offload.transport.stream import Stream, Waker
from task_offload.wire.codec import decompressed
from task_offload.wire.compression import encodings_beside
from task_offload.wire.framing import FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import LASTING, PING, Costs, Hello, Load, RefusalMessage, Totals, Welcome, bye
from task_offload.wire.outbox import Acked, Outbox
from task_offload.wire.session import DeviceEvent, DeviceSide, Farewell, Liveness
from task_offload.wire.window import Window

HEARTBEAT_S = 2.0  # until the welcome says otherwise
SILENCE_S = 8.0
LOOK_EVERY_S = 0.001  # for acks, while there is something to send and room to send it
TIMED_EVERY = 5  # of the sends one is timed: to ask for CPU time twice takes a tenth of what a large send does
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
        load: the device's load, to be told on the next occasion.
        leaving: no more will be added; the session says bye when its outbox is empty.
        left: the cloud has said farewell.
    """

    session: bytes
    outbox: Outbox = field(default_factory=Outbox)
    next_sequence: int = 0
    acked: int = 0
    sent_to: int = 0
    load: Load | None = None
    leaving: bool = False
    left: bool = False


class LinkEvents(Protocol):
    """Who hears what happens on the link.

    Any thread that uses the link may call these, one at a time; they must be quick, and not use the link.
    """

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        """The cloud took the session up."""

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        """The cloud told its books: after a welcome, an ack, or a farewell."""

    def cost(self, session: DeviceSession, costs: Costs) -> None:
        """The cloud told what this device's items cost it."""

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        """So many bytes were handed to the system in so many CPU seconds; None where nobody looked."""


class BusyTime:
    """How long something lasted in all, over all connections."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def note(self, busy: bool, now_s: float) -> None:
        """From now on it lasts, or does not."""
        if busy == (self._since is not None):
            return
        if self._since is not None:
            self._seconds += now_s - self._since
        self._since = now_s if busy else None

    def seconds(self, now_s: float) -> float:
        since = self._since
        return self._seconds + (now_s - since if since is not None else 0.0)


class Exchange:
    """A session on one connection, from its hello to the cloud's farewell.

    Arguments:
        stream: connected, its TLS handshake done.
        waker: ends the wait in `step`.
        session, hello: what is carried, and how it introduces itself.
        lock: guards the session.
        condition: on that lock; notified when something was sent or acknowledged.
        events: who hears of it.
        busy: told when something is on its way.
        full: told when an entry waits for the window.
        on_welcome: called with the lock held, before anybody hears of the welcome.
        window_items: a limit on unacknowledged items beside the cloud's, for measurements.

    Attributes:
        opened: the cloud has welcomed the session.
    """

    def __init__(
        self,
        stream: Stream,
        waker: Waker,
        session: DeviceSession,
        hello: Hello,
        lock: threading.RLock,
        condition: threading.Condition,
        events: LinkEvents,
        busy: BusyTime,
        full: BusyTime,
        on_welcome: Callable[[], None],
        window_items: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._waker = waker
        self._session = session
        self._lock = lock
        self._condition = condition
        self._acked = False  # and nobody was told
        self._events = events
        self._busy = busy
        self._full = full
        self._on_welcome = on_welcome
        self._window_items = window_items
        self._clock = clock
        self._reader = FrameReader(MemoryPool(0), _CLOUD_LIMITS)
        self._side = DeviceSide(session.acked, session.sent_to)
        self._liveness = Liveness(HEARTBEAT_S, SILENCE_S, clock())
        self._window: Window | None = None
        self._foreign: frozenset[int] = frozenset()  # encodings that the cloud cannot decode
        self._left = False
        self._sends = 0
        self._looked_at = 0.0
        self._poll = select.poll()
        self._polled = select.POLLIN
        self._poll.register(stream, self._polled)
        self._poll.register(waker, select.POLLIN)
        self._waker_fd = waker.fileno()
        stream.queue([hello.encode()])

    @property
    def opened(self) -> bool:
        return self._window is not None

    @property
    def blocked(self) -> bool:
        """Whether something is queued that the socket does not take now."""
        return self._stream.wants_write

    def push(self) -> None:
        """Sends what can be sent now. Hears what has come only now and then: several acks at once cost like one.

        Raises: as `step`.
        """
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S:
            self.step()
        else:
            self._send(now)

    def step(self, timeout_s: float = 0.0) -> None:
        """Waits at most so long for the socket or the waker, hears what has come, and sends what can be sent.

        Raises:
            LinkError: the connection is lost, or the cloud is silent.
            ProtocolError: the cloud said something that makes no sense.
            RefusedError: the cloud does not go on.
        """
        events = select.POLLIN | (select.POLLOUT if self._stream.wants_write else 0)
        if events != self._polled:
            self._polled = events
            self._poll.modify(self._stream, events)
        for descriptor, found in self._poll.poll(timeout_s * 1e3):
            if descriptor == self._waker_fd:
                self._waker.drain()
            elif found != select.POLLOUT:
                self._receive()
        self._looked_at = now = self._clock()
        self._send(now)
        if self._liveness.gone(now):
            raise LinkError(f"the cloud has been silent for {self._liveness.silence_s:g} s")

    def due_s(self) -> float:
        """Seconds until `step` must be called again, whatever the socket does."""
        return max(0.0, self._liveness.next_at(self.blocked) - self._clock())

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self, now: float) -> None:
        """Sends what the window allows and the socket takes."""
        stream = self._stream
        more = True
        while more:
            more = self._window is not None and self._queue_entries(self._window, now)
            if not stream.outgoing_bytes:
                if self._window is None or not self._liveness.ping_due(now):
                    return
                stream.queue([PING])
            started = None if self._sends % TIMED_EVERY else time.thread_time()
            size_bytes = stream.flush()
            if size_bytes:
                self._sends += 1
                self._liveness.sent_at = now
                self._events.sent(size_bytes, None if started is None else time.thread_time() - started)
            more = more and not stream.outgoing_bytes

    def _queue_entries(self, window: Window, now: float) -> bool:
        """Gives the stream what the window allows, and not much more than the socket may take at once.

        Returns whether it left some for when the socket has taken these.
        """
        stream, session = self._stream, self._session
        outbox = session.outbox
        sent_to = 0
        full = False
        with self._lock:
            while stream.outgoing_bytes < QUEUE_BYTES and (entry := outbox.next()) is not None:
                if self._foreign and entry.payload is not None:
                    outbox.replace_next(decompressed(entry.payload, self._foreign))
                if not window.allows(outbox.sent_entries, outbox.sent_bytes, entry.size_bytes):
                    full = True
                    break
                outbox.sent(now, window.delivered_bytes)
                sent_to = entry.sequence + entry.count
                stream.queue(entry.encode(now))
            self._full.note(full, now)
            if sent_to:
                if sent_to > session.sent_to:
                    session.sent_to = sent_to
                    self._side.sent(sent_to)
                self._busy.note(True, now)
            if sent_to or self._acked:
                self._acked = False
                self._condition.notify_all()
            finished = session.leaving and not self._left and outbox.held_from is None
        if session.load is not None and not self._left:
            stream.queue([session.load.encode()])
            session.load = None
        if finished:
            self._left = True
            self._side.leave()
            stream.queue([bye(session.next_sequence)])
        return stream.outgoing_bytes >= QUEUE_BYTES

    # -- receiving --------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        acked: Totals | None = None  # of several acks the last one says it all
        try:
            while (count := self._stream.receive_into(self._reader.buffer())) is not None:
                if count == 0:
                    raise LinkError("the server closed the connection")
                self._liveness.heard_at = self._clock()
                self._reader.received(count)
                for frame in iter(self._reader.next, None):
                    event = self._side.receive(frame)
                    if isinstance(event, Totals):
                        acked = event
                    elif event is not None:
                        self._handle(event)
                if not self._stream.pending():
                    break
        finally:
            if acked is not None and not self._session.left:
                self._learned(acked)

    def _handle(self, event: DeviceEvent) -> None:
        if isinstance(event, Costs):
            self._events.cost(self._session, event)
        elif isinstance(event, Welcome):
            self._welcomed(event)
        elif isinstance(event, Farewell):
            self._learned(event.totals)
            self._session.left = True
        elif isinstance(event, RefusalMessage):
            raise RefusedError(event.code, event.message, event.code in LASTING, event.retry_after_s or None)

    def _welcomed(self, welcome: Welcome) -> None:
        session, totals = self._session, welcome.totals
        self._liveness = Liveness(welcome.heartbeat_s, welcome.silence_s, self._clock())
        with self._lock:
            acked = session.outbox.acknowledge(totals.next_sequence)
            session.outbox.resume(totals.next_sequence)
            session.acked = max(session.acked, totals.next_sequence)
            session.next_sequence = max(session.next_sequence, totals.next_sequence)
            self._on_welcome()
            self._acked = True
        most_items = min(welcome.unacked_items, self._window_items or welcome.unacked_items)
        self._foreign = encodings_beside(welcome.codecs)
        self._window = Window(most_items, welcome.unacked_bytes)
        self._events.welcomed(session, welcome)
        self._events.learned(session, acked, totals)

    def _learned(self, totals: Totals) -> None:
        now = self._clock()
        session, window = self._session, self._window
        assert window is not None
        with self._lock:
            acked = session.outbox.acknowledge(totals.next_sequence)
            session.acked = max(session.acked, totals.next_sequence)
            sent = [entry for entry, _ in acked if entry.sent_at]
            if sent:
                window.acknowledged(sent, now)
            self._busy.note(session.outbox.sent_entries > 0, now)
            self._acked = True
        self._events.learned(session, acked, totals)
