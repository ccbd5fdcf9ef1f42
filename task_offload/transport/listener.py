"""The cloud's side of the way: all connections of all devices. In: what devices send. Out: events, in their order.

One thread owns every connection and waits for all of them at once. A body is received into memory of its own. What a
peer can cause here is a closed connection, a line in the log, and a count.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import selectors
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from time import perf_counter_ns
from typing import Any, Protocol

from task_offload.errors import ConfigError, LinkError, ProtocolError
from task_offload.transport.line_budget import LineBudget
from task_offload.transport.stream import TLS_RECORD_BYTES, Stream, Waker, tune
from task_offload.wire.framing import BEFORE_AUTHENTICATION, Frame, FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import PING, Hello, Load, Refusal, RefusalMessage
from task_offload.wire.session import Arrived, CloudEvent, CloudSide, Liveness

log = logging.getLogger(__name__)

READ_BUDGET_BYTES = 1024 * 1024  # of one connection before the others have their turn
MESSAGE_BUDGET_BYTES = 512  # what a message takes of it beside its bytes: one read may bring 4,096 empty ones
STRANGERS_A_TURN = 32  # each takes a step of its TLS handshake, up to a millisecond
SIGNS_A_TICK = 256  # pings and loads of one device; a few a second are usual
READ_ON_BYTES = 32 * 1024  # while so much came, more has come meanwhile, and is cheaper had than waited for
MOST_EXPECTED_BYTES = 1024 * 1024  # of one body before its connection is looked at, or until the next tick
TICK_S = 0.25
TRIM_S = 10.0  # memory for bodies that nobody has needed for so long is given back
NO_DESCRIPTOR_LINES_S = 60.0  # apart; each tick tries again
LINE_CHARACTERS = 500  # of what a peer has to say, in the log


@dataclass(frozen=True)
class ListenerLimits:
    """What strangers and devices may take.

    Attributes:
        connections: all of them; more wait in the system's queue.
        greeting: connections that have not introduced themselves yet, in all; more wait in the system's queue.
        greeting_per_address: the same from one address (of IPv6, a network of 64 bits, which one peer has for
            itself); more are closed. Devices behind one router share it.
        greeting_s: time to introduce oneself, the TLS handshake included.
        give_way_s: the same for an address that has the most of such connections, while others wait.
        heartbeat_s, silence_s: as in `Welcome`. A vanished device is noticed after `silence_s`.
        frames: size of a device's messages.
        outgoing_bytes: what may wait for a device that does not read.
        free_bytes: memory kept for bodies between messages, at most.
        log_lines_per_minute: about one address, as above; the rest is only counted.
    """

    connections: int = 4096
    greeting: int = 1024
    greeting_per_address: int = 512
    greeting_s: float = 10.0
    give_way_s: float = 2.0
    heartbeat_s: float = 2.0
    silence_s: float = 8.0
    frames: FrameLimits = field(default_factory=FrameLimits)
    outgoing_bytes: int = 1024 * 1024
    free_bytes: int = 64 * 1024 * 1024
    log_lines_per_minute: int = 10


class Connection:
    """One device's connection. Belongs to the listener's thread.

    Attributes:
        address: the peer's numeric address.
        origin: what limits count instead of it.
        session: what the handler keeps with it.
        receive_ns: busy time for receiving since the handler last took it.
        transfer_ns, transfer_bytes: as in `Costs`, since the handler last took them.
    """

    def __init__(self, stream: Stream, address: str, side: CloudSide, reader: FrameReader, now_s: float) -> None:
        self.stream = stream
        self.address = address
        self.origin = _origin(address)
        self.side = side
        self.reader = reader
        self.opened_at = now_s
        self.liveness: Liveness | None = None
        self.session: Any = None
        self.receive_ns = 0
        self.transfer_ns = 0
        self.transfer_bytes = 0
        self.body_began_ns: int | None = None
        self.body_rest_bytes = 0  # of a body that has begun to come: what was to come then
        self.signs = 0  # of life, since the tick
        self.secure = False
        self.paused = False
        self.watches_write = False
        self.closed = False


class ListenerHandler(Protocol):
    """Who hears what comes. All methods are called on the listener's thread and must be quick."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """A device introduced itself. Call `Listener.accept` or `Listener.refuse`."""

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        """An accepted device sent something. Raises ProtocolError if it makes no sense."""

    def closed(self, connection: Connection, reason: str) -> None:
        """An accepted device's connection is closed."""

    def flush(self) -> None:
        """Somebody called `wake`, or something came: send what there is to send."""

    def tick(self) -> None:
        """Called a few times a second."""


class Listener:
    """Listens on one port. After `start` the handler's methods are called until `close`.

    Raises:
        ConfigError: the port cannot be listened on, ever.
        LinkError: not now: it is taken, say.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handler: ListenerHandler,
        new_side: Callable[[], CloudSide],
        tls: ssl.SSLContext | None = None,
        limits: ListenerLimits = ListenerLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._new_side = new_side
        self._tls = tls
        self._limits = limits
        self._clock = clock
        self._memory = MemoryPool(limits.free_bytes)
        self._trimmed_at = clock()
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._accepting = True
        self._connections: set[Connection] = set()
        self._greeting = 0
        self._greeting_from: defaultdict[str, dict[Connection, None]] = defaultdict(dict)  # the oldest first
        self._unread: set[Connection] = set()  # bytes wait inside TLS, or the budget was spent
        self._unsent: set[Connection] = set()
        self._lines = LineBudget(limits.log_lines_per_minute, clock)
        self._no_descriptor_said_at = -math.inf
        self.rejected: Counter[str] = Counter()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Makes the listener's thread call the handler's `flush`. Any thread may call it."""
        self._waker.wake()

    def close(self) -> None:
        """Sends what is queued as far as sockets take it at once, and closes everything."""
        if self._thread.ident is None:  # it was never started
            self._close_all()
            return
        self._stop = True
        self._waker.wake()
        self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        return len(self._connections)

    # -- for the handler, on the listener's thread ------------------------------------------------------------------

    def accept(self, connection: Connection, session: Any, welcome: bytes) -> None:
        """Lets a device in that has introduced itself."""
        connection.session = session
        connection.side.open()
        connection.reader.limits = self._limits.frames
        connection.liveness = Liveness(self._limits.heartbeat_s, self._limits.silence_s, self._clock())
        self._end_greeting(connection)
        self.send(connection, welcome)

    def refuse(self, connection: Connection, code: Refusal, message: str, retry_after_s: float = 0.0) -> None:
        """Says why, and closes the connection."""
        self.rejected[code.name.lower()] += 1
        self._say(connection, f"refused: {message}")
        self.send(connection, RefusalMessage(code, message, retry_after_s).encode())
        self._close(connection, message)

    def send(self, connection: Connection, message: bytes) -> None:
        """Queues a message, which is sent before the listener waits again, or closes the connection."""
        connection.stream.queue([message])
        self._unsent.add(connection)

    def pause(self, connection: Connection, paused: bool) -> None:
        """Stops or resumes handing on what a device sends. What has come meanwhile, and before, waits."""
        if connection.paused != paused and not connection.closed:
            connection.paused = paused
            connection.body_began_ns = None  # while it is paused, the link carries nothing
            if connection.liveness is not None:  # it could not be heard
                connection.liveness.heard_at = self._clock()
            self._watch(connection)
            if not paused:  # what came before is still in its reader
                self._unread.add(connection)

    def dismiss(self, connection: Connection) -> None:
        """Closes a connection whose device has left in good order."""
        connection.side.close()
        self._close(connection, "it left")

    # -- the listener's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_tick = self._clock() + TICK_S
        try:
            while not self._stop:
                timeout_s = 0.0 if self._unread else max(0.0, next_tick - self._clock())
                events = self._selector.select(timeout_s)
                unread, self._unread = self._unread, set()
                for connection in unread:
                    self._readable(connection)
                strangers = 0
                for key, mask in events:
                    if key.fileobj is self._socket:
                        self._accept()
                    elif key.fileobj is self._waker:
                        self._waker.drain()
                    elif key.data in unread:  # what was there is read, and more is not looked for now
                        self._ready(key.data, mask & ~selectors.EVENT_READ)
                    elif key.data.liveness is not None or (strangers := strangers + 1) <= STRANGERS_A_TURN:
                        self._ready(key.data, mask)  # whoever is left out is ready at the next turn too
                self._handler.flush()
                self._send_queued()
                if self._clock() >= next_tick:
                    self._tick()
                    next_tick = self._clock() + TICK_S
            self._handler.flush()
            self._send_queued()
        except Exception:
            log.exception("the listener failed")
        finally:
            self._close_all()

    def _close_all(self) -> None:
        for connection in list(self._connections):
            self._close(connection, "the server stops")
        self._selector.close()
        self._waker.close()
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(STRANGERS_A_TURN):
            silent = None
            full = len(self._connections) >= self._limits.connections
            if not full and self._greeting >= self._limits.greeting:
                silent = self._who_gives_way()
                full = silent is None
            if full:
                self._set_accepting(False)
                return
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the peer is gone already, or no descriptor is free
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._set_accepting(False)
                    self._say_no_descriptor()
                return
            if silent is not None:
                self._too_late(silent, self._limits.give_way_s)
            self._open(sock, address[0].removeprefix("::ffff:"))  # IPv4 on a socket for both

    def _say_no_descriptor(self) -> None:
        now = self._clock()
        if now - self._no_descriptor_said_at >= NO_DESCRIPTOR_LINES_S:
            self._no_descriptor_said_at = now
            log.warning("no descriptor is free for another connection; raise the hard limit (ulimit -Hn, LimitNOFILE)")

    def _who_gives_way(self) -> Connection | None:
        """The connection that has been silent for longest, of the address that has the most; None if it may stay."""
        crowd = max(self._greeting_from, key=lambda origin: len(self._greeting_from[origin]))
        oldest = next(iter(self._greeting_from[crowd]))
        return oldest if self._clock() - oldest.opened_at >= self._limits.give_way_s else None

    def _too_late(self, connection: Connection, seconds: float) -> None:
        self.rejected["greeting_time"] += 1
        self._say(connection, f"closed: it did not introduce itself within {seconds:g} s")
        self._close(connection, "no introduction")

    def _open(self, sock: socket.socket, address: str) -> None:
        if len(self._greeting_from.get(_origin(address), ())) >= self._limits.greeting_per_address:
            self.rejected["connections"] += 1
            sock.close()
            return
        try:
            tune(sock)
            sock.setblocking(False)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ssl.SSLError):
            sock.close()
            return
        reader = FrameReader(self._memory, BEFORE_AUTHENTICATION)
        connection = Connection(Stream(sock), address, self._new_side(), reader, self._clock())
        self._connections.add(connection)
        self._greeting += 1
        self._greeting_from[connection.origin][connection] = None
        self._selector.register(connection.stream, selectors.EVENT_READ, connection)

    def _set_accepting(self, accepting: bool) -> None:
        if accepting != self._accepting:
            self._accepting = accepting
            if accepting:
                self._selector.register(self._socket, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._socket)

    def _end_greeting(self, connection: Connection) -> None:
        """The peer is no stranger any more, or is gone."""
        self._greeting -= 1
        del self._greeting_from[connection.origin][connection]
        if not self._greeting_from[connection.origin]:
            del self._greeting_from[connection.origin]

    def _ready(self, connection: Connection, mask: int) -> None:
        if connection.closed:
            return
        if mask & selectors.EVENT_WRITE:
            self._flush(connection)
        if mask & selectors.EVENT_READ or not connection.secure:
            self._readable(connection)

    def _readable(self, connection: Connection) -> None:
        """Receives, and hands on what came, until nothing is there, or it is paused, or others must have their turn."""
        if connection.closed or connection.paused:
            return
        try:
            if not connection.secure:
                connection.secure = connection.stream.shake_hands()
                self._watch(connection)
                if not connection.secure:
                    return
            self._receive(connection)
        except LinkError as error:
            if connection.liveness is None:
                self.rejected["connection"] += 1
                self._say(connection, str(error))
            self._close(connection, str(error))
        except ProtocolError as error:
            self.refuse(connection, Refusal.PROTOCOL, str(error))
        except Exception:  # a bug that one device found must not cost the others
            if (more := self._lines.take(connection.origin)) is not None:
                log.exception("connection from %s closed%s", connection.address, more)
            self.refuse(connection, Refusal.PROTOCOL, "the server failed on this; its log says why")

    def _receive(self, connection: Connection) -> None:
        reader, stream = connection.reader, connection.stream
        budget_bytes = READ_BUDGET_BYTES
        largest = 0
        drained = False
        started_ns = perf_counter_ns()
        while budget_bytes > 0 and not connection.closed and not connection.paused:
            frame = reader.next()
            if frame is not None:
                budget_bytes -= MESSAGE_BUDGET_BYTES
                now_ns = perf_counter_ns()
                connection.receive_ns += now_ns - started_ns
                if connection.body_began_ns is not None:
                    connection.transfer_ns += now_ns - connection.body_began_ns
                    connection.transfer_bytes += connection.body_rest_bytes
                    connection.body_began_ns = None
                self._hand_on(connection, frame)
                frame = None  # unless somebody has kept it, its memory is free for the next body
                started_ns = perf_counter_ns()
                continue
            if drained:
                break
            buffer = reader.buffer(budget_bytes)
            count = stream.receive_into(buffer)
            if count is None:
                break
            if count == 0:
                if connection.liveness is None and self._tls is not None:  # it has seen this server's certificate
                    self.rejected["connection"] += 1
                    self._say(connection, "left before it introduced itself; does its token name another certificate?")
                self._close(connection, "the device closed the connection")
                return
            reader.received(count)
            budget_bytes -= count
            largest = max(largest, count)
            drained = count < len(buffer) and count < READ_ON_BYTES and not stream.pending()
        if connection.closed:
            return
        now_ns = perf_counter_ns()
        connection.receive_ns += now_ns - started_ns
        if connection.liveness is not None:
            connection.liveness.heard_at = self._clock()
        if budget_bytes <= 0 and not connection.paused:
            self._unread.add(connection)
            return
        left_bytes = reader.body_left_bytes
        if left_bytes and connection.body_began_ns is None and not connection.paused:
            # From here on, and not from the first piece: what had come when that was read did not take this time.
            connection.body_began_ns, connection.body_rest_bytes = now_ns, left_bytes
        # Of a body that comes fast, the most is waited for at once: to be woken costs both sides more than to read.
        awaited_bytes = left_bytes - TLS_RECORD_BYTES if largest >= READ_ON_BYTES else 0
        stream.expect(max(1, min(awaited_bytes, MOST_EXPECTED_BYTES)))

    def _hand_on(self, connection: Connection, frame: Frame) -> None:
        """Tells the handler."""
        event = connection.side.receive(frame)
        if type(event) is Arrived:
            self._handler.arrived(connection, event)
        elif event is None or isinstance(event, Load):
            self._sign_of_life(connection, event)
        elif isinstance(event, Hello):
            self._handler.greeted(connection, event)
        elif isinstance(event, RefusalMessage):
            self._close(connection, one_line(event.message))
        else:
            self._handler.arrived(connection, event)

    def _sign_of_life(self, connection: Connection, load: Load | None) -> None:
        """A message that costs its sender nothing, and needs no acknowledgement that would slow it down."""
        connection.signs += 1
        if connection.signs > SIGNS_A_TICK:
            self.refuse(connection, Refusal.LIMIT, f"more than {SIGNS_A_TICK} pings and loads in {TICK_S} s")
        elif load is not None:
            self._handler.arrived(connection, load)

    def _send_queued(self) -> None:
        while self._unsent:
            self._flush(self._unsent.pop())

    def _flush(self, connection: Connection) -> None:
        if connection.closed:
            return
        try:
            if connection.stream.flush() and connection.liveness is not None:
                connection.liveness.sent_at = self._clock()
        except LinkError as error:
            self._close(connection, str(error))
            return
        if connection.stream.outgoing_bytes > self._limits.outgoing_bytes:
            self.rejected["limit"] += 1
            self._close(connection, "the device does not read what it is sent")
            return
        if connection.stream.wants_write != connection.watches_write:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        events = 0 if connection.paused else selectors.EVENT_READ
        connection.watches_write = connection.stream.wants_write
        if connection.watches_write:
            events |= selectors.EVENT_WRITE
        try:
            watched = self._selector.get_key(connection.stream).events
        except KeyError:
            watched = 0
        if events == watched:
            return
        if not events:
            self._selector.unregister(connection.stream)
        elif not watched:
            self._selector.register(connection.stream, events, connection)
        else:
            self._selector.modify(connection.stream, events, connection)
        if not connection.paused and connection.stream.pending():
            self._unread.add(connection)

    def _close(self, connection: Connection, reason: str) -> None:
        if connection.closed:
            return
        connection.closed = True
        try:
            connection.stream.flush()
        except LinkError:
            pass  # the peer was faster
        try:
            self._selector.unregister(connection.stream)
        except KeyError:
            pass  # paused
        connection.stream.close()
        self._connections.discard(connection)
        self._set_accepting(True)
        if connection.liveness is None:
            self._end_greeting(connection)
        else:
            self._handler.closed(connection, reason)

    def _tick(self) -> None:
        now = self._clock()
        if now - self._trimmed_at >= TRIM_S:
            self._memory.trim()
            self._trimmed_at = now
        for connection in list(self._connections):
            connection.stream.expect(1)  # it may have become slow
            connection.signs = 0
            if connection.liveness is None:
                if now - connection.opened_at > self._limits.greeting_s:
                    self._too_late(connection, self._limits.greeting_s)
            elif connection.liveness.gone(now) and not connection.paused:
                self._close(connection, f"the device has been silent for {self._limits.silence_s:g} s")
            elif connection.liveness.ping_due(now) and not connection.stream.outgoing_bytes:
                self.send(connection, PING)
        self._set_accepting(True)
        self._handler.tick()
        self._send_queued()

    def _say(self, connection: Connection, text: str) -> None:
        """One line about a peer, unless it has caused too many already."""
        if (more := self._lines.take(connection.origin)) is not None:
            log.warning("connection from %s %s%s", connection.address, one_line(text), more)


def one_line(text: str) -> str:
    """Text of a peer, so that it cannot forge a line of the log, nor reach a terminal's controls."""
    text = text[:LINE_CHARACTERS]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


@lru_cache(maxsize=1024)
def _origin(address: str) -> str:
    """What tells one peer from another: an IPv4 address, or the network of an IPv6 address, of 64 bits."""
    parsed = ip_address(address.partition("%")[0])
    return address if parsed.version == 4 else str(IPv6Address(int(parsed) >> 64 << 64))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        sock = socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and (error.errno or 0) < 0:  # of getaddrinfo; create_server gives it no type
            raise ConfigError(f"cannot listen on {host}: no address has this name; give one of this machine") from error
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        mend = {
            errno.EADDRINUSE: "is a server running there already? choose another --port",
            errno.EADDRNOTAVAIL: "--host takes an address of this machine, 0.0.0.0 for all of IPv4, or :: for all",
            errno.EACCES: "ports below 1024 are the system's; choose another --port",
        }.get(getattr(error, "errno", None) or 0, "choose another --host or --port")
        # A service is to try again where that may help: the address may come with the network, and the port be freed.
        waits = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
        raise (LinkError if waits else ConfigError)(f"cannot listen on {host}:{port}: {reason}; {mend}") from error
    sock.setblocking(False)
    return sock
