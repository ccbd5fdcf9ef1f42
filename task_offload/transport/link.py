"""The device's side of the way to the cloud. In: entries, in sequence order. Out: what the cloud says of them.

The link's thread connects, introduces the session, and connects again, for ever, when the connection is lost. While
there is a connection, whoever puts an entry in or waits for room carries it on (`exchange`); the link's thread does
when nobody else has for a while. What is not acknowledged stays in the outbox and is sent again.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial

from task_offload.errors import ConfigError, LinkError, OffloadError, ProtocolError, RefusedError
from task_offload.transport.certificates import client_context
from task_offload.transport.exchange import BusyTime, DeviceSession, Exchange, LinkEvents
from task_offload.transport.stream import Stream, Waker, tune
from task_offload.transport.tokens import Token
from task_offload.wire.messages import ChainSpec, Hello, Load, Refusal
from task_offload.wire.outbox import Entry

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 30.0
REFUSED_WAIT_S = 60.0  # a lasting refusal that met a running device: somebody may mend it
WAIT_S = 0.05  # for the socket, by a thread that waits for room: it also looks whether the link has ended
REST_S = 0.02  # for which the link's thread leaves the connection to threads that carry it on
BUSY_STEPS = 8  # of theirs in that time: they hear what comes, too


def pause_s(wait_s: float, least_wait_s: float, rng: random.Random) -> float:
    """Seconds before the next connection: spread, so that a thousand devices do not come back in the same moment.

    Arguments:
        wait_s: what our own patience says, at most.
        least_wait_s: what the cloud asked for, at least.
    """
    return max(wait_s * rng.uniform(0.5, 1.0), least_wait_s * rng.uniform(1.0, 1.5))


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
        connect_to: where an emulated link to the address begins.

    Attributes:
        error: why the link ended for good, or None.
        problem: why the last connection could not be made, or was lost; empty before there is one.
        condition: guards the outboxes; notified when there may be room, or when the link ends.
        ended: the link's thread has ended, or ends.
        connections: how often a session was taken up.
        away: whether there is no cloud now, as from the start until a session is taken up.
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
        rng: random.Random | None = None,
        connect_to: tuple[str, int] | None = None,
    ) -> None:
        self._address = address
        self._connect_to = connect_to or address
        self._device = device
        self._chain = chain
        self._find_token = find_token
        self._sessions = sessions
        self._events = events
        self._tls = client_context() if use_tls else None
        self._window_items = window_items
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.RLock()
        self.condition = threading.Condition(self._lock)  # its own `with` costs two Python calls; the lock's does not
        self.error: OffloadError | None = None
        self.problem = ""
        self.ended = False
        self.connections = 0
        self._taken_up: set[bytes] = set()  # sessions
        self._busy, self._full, self._absent = BusyTime(), BusyTime(), BusyTime()
        self._note_away(True)
        self._carrying = threading.Lock()  # held by the thread that uses the connection
        self._waiting = threading.Lock()  # held by the one that may wait for it meanwhile, the link's thread aside
        self._exchange: Exchange | None = None  # while a session is open; guarded by `_carrying`, as are the next three
        self._failure: Exception | None = None
        self._carried = 0  # steps that other threads than the link's have taken
        self._watched = 0  # what the link's thread waits for on the connection
        self._more = False  # something was put in since the connection was carried on
        self._polling = False  # a thread other than the link's waits for the connection
        self._poll_waker = Waker()  # of that thread
        self._waker = Waker()
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
    def takes_live(self) -> bool:
        """Whether the cloud takes items of the live session: it is there, and has those of earlier sessions."""
        return not self.away and self._sessions[-1].session in self._taken_up

    @property
    def reconnects(self) -> int:
        """How often a session was taken up again."""
        return self.connections - len(self._taken_up)

    def put(self, entry: Entry) -> None:
        """Puts the entry that follows in sequence into the live session's outbox. A call of `carry` must follow."""
        with self._lock:
            session = self._sessions[-1]
            session.outbox.add(entry)
            session.next_sequence = entry.sequence + entry.count

    def carry(self) -> None:
        """Sends what can be sent now, and hears what has come, unless there is no connection. Does not wait."""
        self._more = True
        if not self._carry_on() and self._polling:
            self._poll_waker.wake()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Waits until `ready()`, which is called with the condition held, or until the link has ended.

        Once it is ready, it is not asked again: it may have made room, or taken its turn.
        """
        found = False

        def look() -> bool:
            nonlocal found
            found = found or self.ended or ready()
            return found

        while True:
            with self._lock:
                if look():
                    return
            if self._waiting.acquire(blocking=False):
                try:
                    carried = self._carry_on(partial(self._wait, look))
                finally:
                    self._waiting.release()
                if carried:
                    continue
            with self.condition:
                if look():
                    return
                self.condition.wait(WAIT_S)

    def tell_load(self, load: Load) -> None:
        """Sends the device's load on the next occasion; only the newest counts."""
        self._sessions[-1].load = load

    def leave(self) -> None:
        """Nothing more will be put in: when all is acknowledged, the link says bye and ends.

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
        """Waits for the end of the link's thread. Returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def busy_s(self) -> float:
        """Seconds in which something was on its way."""
        return self._busy.seconds(self._clock())

    def full_s(self) -> float:
        """Seconds in which something waited because the window allowed no more on its way."""
        return self._full.seconds(self._clock())

    def away_s(self) -> float:
        """Seconds in which the cloud was away."""
        return self._absent.seconds(self._clock())

    def _carry_on(self, wait: Callable[[Exchange], None] | None = None) -> bool:
        """Carries the connection on, if there is one and no other thread does. Returns whether it did.

        A thread that finds another one here leaves its entry to that: `_more` is looked at after the lock is free.
        One that has come to `wait` waits for the other one, which is here for a moment only.
        """
        carried = False
        while self._carrying.acquire(wait is not None):
            try:
                exchange = self._exchange
                if exchange is None:
                    return False
                more, self._more = self._more, False
                if more:  # what others put in and left to this thread does not wait for the socket
                    exchange.push()
                if wait is not None:
                    wait(exchange)
                self._carried += 1
                if exchange.blocked and not self._watched & selectors.EVENT_WRITE:
                    self._waker.wake()
            except Exception as error:  # what ends the exchange is for the link's thread
                self._failure, self._exchange = error, None
                self._waker.wake()
            finally:
                self._carrying.release()
            carried = True
            if not self._more:
                break
            wait = None
        return carried

    def _wait(self, ready: Callable[[], bool], exchange: Exchange) -> None:
        """Waits for the connection, unless it is `ready`, or something was put in; from here on that wakes it."""
        with self._lock:
            if ready():
                return
        self._polling = True
        try:
            if not self._more:
                exchange.step(WAIT_S)
        finally:
            self._polling = False

    # -- the link's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for session in self._sessions:
                self._deliver(session)
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
            self._poll_waker.close()
            with self.condition:
                self.ended = True
                self.condition.notify_all()

    def _deliver(self, session: DeviceSession) -> None:
        """Connects again and again until the session has left."""
        wait_s = FIRST_WAIT_S
        while not session.left:
            connections = self.connections
            try:
                self._connect_and_exchange(session)
                return
            except (LinkError, ProtocolError) as error:
                reason, least_wait_s = str(error), 0.0
            except ConfigError as error:  # of the token, whose file may be written anew just now
                if not self.connections:
                    raise
                reason, least_wait_s = str(error), 0.0
            except RefusedError as error:
                if error.lasting and not self.connections:
                    raise
                reason = str(error)
                least_wait_s = max(error.retry_after_s or 0.0, REFUSED_WAIT_S if error.lasting else 0.0)
            self._lost(session, reason)
            if self.connections > connections:
                wait_s = FIRST_WAIT_S
            self._sleep(pause_s(wait_s, least_wait_s, self._rng))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _lost(self, session: DeviceSession, reason: str) -> None:
        self.problem = reason
        with self.condition:
            session.outbox.rewind()
            self._note_away(True)
            self._busy.note(False, self._clock())
            self._full.note(False, self._clock())
            self.condition.notify_all()
        if reason not in self._said:
            self._said.add(reason)
            log.warning("no connection to %s:%d: %s; trying again until there is one", *self._address, reason)

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
                left_s = self._until(deadline, "the server did not finish the TLS handshake")
                self._watch(stream, _events(stream.wants_write), left_s)
            if token is not None and self._tls is not None and not token.trusts(stream.certificate()):
                raise RefusedError(
                    Refusal.TOKEN,
                    f"the server at {self._address[0]} has another certificate than the token names; if it was set up "
                    f"anew, run  python3 cloud_server_coordinator.py --enroll {self._device}  there and paste its line "
                    "here",
                    lasting=True,
                )
            self._exchange_all(stream, session, token, deadline)
        finally:
            self._selector.unregister(stream)
            stream.close()

    def _connect(self, deadline: float) -> socket.socket:
        try:
            found = socket.getaddrinfo(*self._connect_to, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter of what cannot be a name: two dots in a row, say
            reason = error.strerror if isinstance(error, OSError) else "it cannot be a name"
            raise LinkError(f"the name {self._address[0]} is not known ({reason}); check HOST") from error
        problem: OSError | None = None
        for number, (family, kind, protocol, _, address) in enumerate(found):
            now = self._clock()
            ends_at = now + (deadline - now) / (len(found) - number)  # a silent one leaves time for the next
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # a kernel without IPv6, say
                problem = error
                continue
            try:
                tune(sock)
                sock.setblocking(False)
                code = sock.connect_ex(address)
                if code == errno.EINPROGRESS:  # what fails at once, for want of a route, is not told again
                    code = self._connected(sock, ends_at)
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

    def _connected(self, sock: socket.socket, ends_at: float) -> int:
        """Waits until a socket is connected. Returns 0, or the system's code for why it is not."""
        self._selector.register(sock, selectors.EVENT_WRITE)
        try:
            while (left_s := ends_at - self._clock()) > 0:
                if any(key.fileobj is sock for key, _ in self._selector.select(left_s)):
                    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._check_abandoned()
                self._waker.drain()
            return errno.ETIMEDOUT
        finally:
            self._selector.unregister(sock)

    def _until(self, deadline: float, problem: str) -> float:
        left = deadline - self._clock()
        if left <= 0:
            raise LinkError(problem)
        return left

    def _watch(self, stream: Stream, events: int, timeout_s: float) -> None:
        """Waits until the stream is ready for one of the events, or the waker has something."""
        if self._selector.get_key(stream).events != events:
            self._selector.modify(stream, events)
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._waker:
                self._waker.drain()
        self._check_abandoned()

    def _exchange_all(self, stream: Stream, session: DeviceSession, token: Token | None, deadline: float) -> None:
        """Introduces the session, and carries its outbox until farewell, alone or with other threads."""
        name = token.device if token is not None and token.device else self._device
        secret = token.secret if token is not None else bytes(32)
        exchange = Exchange(
            stream,
            self._poll_waker,
            session,
            Hello(name, session.session, secret, self._chain, session.acked),
            self._lock,
            self.condition,
            self._events,
            self._busy,
            self._full,
            partial(self._welcomed, session),
            self._window_items,
            self._clock,
        )
        try:
            exchange.step()
            while not exchange.opened:
                left_s = self._until(deadline, "the server did not answer the hello")
                self._watch(stream, _events(exchange.blocked), left_s)
                exchange.step()
        except LinkError as error:
            if self._tls is not None:
                raise
            raise LinkError(f"{error}; if it runs with TLS, leave out --no-tls here") from error
        with self._carrying:
            self._failure, self._exchange = None, exchange
        try:
            self._share(stream, session, exchange)
        finally:
            with self._carrying:
                self._exchange = None

    def _share(self, stream: Stream, session: DeviceSession, exchange: Exchange) -> None:
        """Carries the exchange on whenever something comes, but leaves it to others while they do."""
        seen, seen_at = self._carried, self._clock()
        busy = False
        while True:
            if (now := self._clock()) - seen_at >= REST_S:
                busy = self._carried - seen >= BUSY_STEPS
                seen, seen_at = self._carried, now
            others = busy or self._waiting.locked()
            if others:
                self._watched = _events(True)  # so that nobody wakes it from its rest
            else:
                with self._carrying:
                    self._more = False
                    try:
                        if self._failure is None:
                            exchange.step()
                    except Exception as error:
                        self._failure, self._exchange = error, None
                    self._watched = _events(exchange.blocked)
            if self._failure is not None:
                raise self._failure
            if session.left:
                return
            if others:
                self._waker.wait(REST_S)
                self._check_abandoned()
                busy = False  # unless the steps of all that time say so; who wakes it has something for it
            elif not self._more:  # what was put in during the step goes first
                self._watch(stream, self._watched, exchange.due_s())

    def _welcomed(self, session: DeviceSession) -> None:
        self.connections += 1
        self._taken_up.add(session.session)
        self._said.clear()
        self._note_away(False)

    def _note_away(self, away: bool) -> None:
        self.away = away
        self._absent.note(away, self._clock())


def _events(blocked: bool) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)


class _AbandonedError(Exception):
    """Somebody called `abandon`."""
