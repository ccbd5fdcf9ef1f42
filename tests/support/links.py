"""A device's link, alone, against a scripted server; and one that only says what a test lets it say."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Sequence

from task_offload.transport.exchange import DeviceSession
from task_offload.transport.link import Link
from task_offload.transport.tokens import Token
from task_offload.wire.messages import ChainSpec, Costs, TaskSpec, Totals, Welcome
from task_offload.wire.outbox import Acked, Outbox

CHAIN = ChainSpec((TaskSpec("first"), TaskSpec("last")))
PATIENCE_S = 20.0


class Heard:
    """What the link told, and why it gave connections up."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.welcomes: list[Welcome] = []
        self.acked: list[Acked] = []
        self.totals: list[Totals] = []
        self.costs: list[Costs] = []
        self.reasons: list[str] = []
        self.sent_bytes = 0

    def _tell(self) -> None:
        with self.condition:
            self.condition.notify_all()

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        self.welcomes.append(welcome)
        self._tell()

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        self.acked += acked
        self.totals.append(totals)
        self._tell()

    def cost(self, session: DeviceSession, costs: Costs) -> None:
        self.costs.append(costs)
        self._tell()

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        self.sent_bytes += size_bytes

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self._tell()

    def wait_for(self, what: str, times: int = 1) -> None:
        """Waits until so many entries are in one of the lists."""
        with self.condition:
            assert self.condition.wait_for(lambda: len(getattr(self, what)) >= times, PATIENCE_S), (what, self.__dict__)


class _TellingLink(Link):
    """A link that tells why it gave a connection up; others only log it."""

    def _lost(self, session: DeviceSession, reason: str) -> None:
        super()._lost(session, reason)
        assert isinstance(self._events, Heard)
        self._events.lost(reason)


def make_link(
    port: int,
    heard: Heard,
    tls: bool = False,
    token: Token | None = None,
    host: str = "127.0.0.1",
    earlier: Sequence[DeviceSession] = (),
    **more: object,
) -> Link:
    """A link to a port, not started. Its waits between connections are the shortest."""
    sessions = [*earlier, DeviceSession(bytes(range(16)))]
    return _TellingLink(
        (host, port), "device", CHAIN, lambda: token, sessions, heard, tls, rng=_Shortest(), **more
    )  # type: ignore[arg-type]  # fmt: skip


class _Shortest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return 0.01


def try_once(listening: socket.socket, speech: bytes, tls: bool) -> str:
    """Lets a link connect to a server that says this and closes. Returns why the link gave the connection up."""
    heard = Heard()
    link = make_link(listening.getsockname()[1], heard, tls, Token("device", bytes(32), bytes(32)) if tls else None)
    link.start()
    listening.settimeout(PATIENCE_S)
    try:
        sock, _ = listening.accept()
        with sock:
            with contextlib.suppress(OSError):  # it may hang up at the first words
                sock.sendall(speech)
                sock.shutdown(socket.SHUT_WR)
            heard.wait_for("reasons")
    finally:
        link.abandon()
        assert link.join(PATIENCE_S)
    return heard.reasons[0]


class FakeLink:
    """A link without a network, whose cloud is there. Instead of waiting it does the next thing of `meanwhile`."""

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.live = DeviceSession(bytes(range(16)), outbox or Outbox())
        self.condition = threading.Condition()
        self.away = self.ended = False
        self.takes_live = True
        self.busy_seconds = self.full_seconds = 0.0
        self.meanwhile: list[Callable[[], object]] = []

    def wait_until(self, ready: Callable[[], bool]) -> None:
        while not (self.ended or ready()):
            if not self.meanwhile:
                raise WaitsError
            self.meanwhile.pop(0)()

    def go_away(self) -> None:
        self.away, self.takes_live = True, False

    def come_back(self) -> None:
        self.away, self.takes_live = False, True

    def deliver(self) -> None:
        """The oldest entry is sent, and acknowledged."""
        outbox = self.live.outbox
        entry = outbox.next()
        assert entry is not None
        outbox.sent(1.0, 0)
        outbox.acknowledge(entry.sequence + entry.count)

    def busy_s(self) -> float:
        return self.busy_seconds

    def full_s(self) -> float:
        return self.full_seconds


class WaitsError(Exception):
    """A thread would wait for something that does not come."""
