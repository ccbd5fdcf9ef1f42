"""A device's link against a scripted server: what it sends again, what it refuses, and when it gives up."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from task_offload.errors import ConfigError, RefusedError
from task_offload.transport.certificates import load_or_make_certificate, server_context
from task_offload.transport.exchange import DeviceSession
from task_offload.transport.link import REFUSED_WAIT_S, Link, pause_s
from task_offload.transport.tokens import Token
from task_offload.wire.codec import Encoder
from task_offload.wire.messages import (
    ITEM,
    PING,
    Costs,
    Ending,
    EndingRange,
    Hello,
    Kind,
    Load,
    Refusal,
    RefusalMessage,
    Totals,
    Welcome,
    ack,
    decode_bye,
    farewell,
)
from task_offload.wire.outbox import Entry
from tests.support.links import CHAIN, PATIENCE_S, Heard, make_link
from tests.support.peers import Messages

SESSION = bytes(range(16))


def entry(sequence: int, size_bytes: int = 10) -> Entry:
    payload = Encoder((), 0).encode((np.zeros(size_bytes, np.uint8),))
    return Entry(sequence, 1, 0.0, payload)


def ending(sequence: int, why: str = "overload") -> Entry:
    return Entry(sequence, 1, 0.0, ending=Ending.DROPPED, detail=why)


def put(link: Link, entry: Entry) -> None:
    link.put(entry)
    link.carry()


class Accepted(Messages):
    """The scripted server's end of one connection."""

    def hello(self) -> Hello:
        frame = self.frame()
        assert frame is not None
        return Hello.decode(frame.head)

    def sequences(self, count: int) -> list[int]:
        """The sequences of the next items and endings, so many of them; signs of life are passed over."""
        found: list[int] = []
        while len(found) < count:
            frame = self.frame()
            assert frame is not None
            if frame.kind is Kind.ITEM:
                found.append(ITEM.unpack_from(frame.head)[0])
            elif frame.kind is Kind.ENDINGS:
                endings = EndingRange.decode(frame.head)
                found += range(endings.first, endings.first + endings.count)
            else:
                assert frame.kind in (Kind.PING, Kind.LOAD)
        return found

    def bye(self) -> int:
        while (frame := self.frame()) is not None:
            if frame.kind is Kind.BYE:
                return decode_bye(frame.head)
        raise AssertionError("the device left without a bye")

    def welcome(self, watermark: int = 0, **more: Any) -> Hello:
        """Reads the hello and answers it."""
        hello = self.hello()
        self.send_welcome(watermark, **more)
        return hello

    def send_welcome(self, watermark: int = 0, **more: Any) -> None:
        given: dict[str, Any] = {
            "heartbeat_s": 2.0, "silence_s": 8.0, "message_bytes": 1 << 20, "unacked_bytes": 1 << 20,
            "unacked_items": 100, **more,
        }  # fmt: skip
        self.send(Welcome(Totals(watermark, watermark), **given).encode())

    def closed(self) -> bool:
        while self.frame() is not None:
            pass
        return True


class Script:
    """A server that does what a test says."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(PATIENCE_S)
        self.port: int = self.listening.getsockname()[1]
        self.heard = Heard()
        self.links: list[Link] = []
        self.accepted: list[Accepted] = []

    def link(self, **more: Any) -> Link:
        link = make_link(self.port, self.heard, **more)
        self.links.append(link)
        link.start()
        return link

    def accept(self) -> Accepted:
        self.accepted.append(Accepted(self.listening.accept()[0]))
        return self.accepted[-1]

    def close(self) -> None:
        for link in self.links:
            link.abandon()
            assert link.join(PATIENCE_S), "the link does not end"
        for each in self.accepted:
            each.socket.close()
        self.listening.close()


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.close()


def test_a_session_from_hello_to_farewell(script: Script) -> None:
    link = script.link()
    server = script.accept()
    hello = server.welcome()
    assert (hello.device, hello.session, hello.chain, hello.acked) == ("device", SESSION, CHAIN, 0)
    for n in range(3):
        put(link, entry(n))
    put(link, ending(3))
    assert server.sequences(4) == [0, 1, 2, 3]
    server.send(ack(Totals(2, 2)), Costs(1.0, 1.0).encode(), PING, ack(Totals(4, 3, 0, {"overload": 1})))
    script.heard.wait_for("acked", 4)
    script.heard.wait_for("costs")
    link.leave()
    assert server.bye() == 4
    server.send(farewell(Totals(4, 3, 0, {"overload": 1})))
    assert link.join(PATIENCE_S)
    assert link.error is None
    assert server.closed()
    assert [each.entry.sequence for each in script.heard.acked] == [0, 1, 2, 3]
    assert script.heard.totals[-1].dropped == {"overload": 1}


def test_an_age_is_by_the_clock_of_the_link(script: Script) -> None:
    link = script.link(clock=lambda: 1000.0)
    server = script.accept()
    server.welcome()
    put(link, Entry(0, 1, 997.5, Encoder((), 0).encode((1,))))
    frame = server.frame()
    assert frame is not None
    assert ITEM.unpack_from(frame.head)[:2] == (0, 2_500_000)


def test_nothing_is_sent_between_hello_and_welcome(script: Script) -> None:
    now_s = [100.0]
    asked = threading.Semaphore(0)

    def clock() -> float:
        asked.release()
        return now_s[0]

    link = script.link(clock=clock)
    server = script.accept()
    server.hello()
    while asked.acquire(timeout=0.2):
        pass  # until it waits
    now_s[0] += 5.0  # a sign of life would be due
    welcome = Welcome(Totals(), 2.0, 8.0, 1 << 20, 1 << 20, 100).encode()
    server.send(welcome[:1])
    for _ in range(3):  # when it has heard it, when it looks what to send, how long it waits then
        assert asked.acquire(timeout=PATIENCE_S)
    server.send(welcome[1:])
    put(link, entry(0))
    frame = server.frame()
    assert frame is not None
    assert frame.kind is Kind.ITEM


def test_what_is_not_acknowledged_is_sent_again_in_order(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome()
    for n in range(6):
        put(link, entry(n))
    server.sequences(6)
    server.send(ack(Totals(2, 2)))
    script.heard.wait_for("acked", 2)
    server.socket.close()
    script.heard.wait_for("reasons")
    assert link.away
    put(link, entry(6))
    server = script.accept()
    assert server.welcome(watermark=4).acked == 2  # the acks of 2 and 3 were lost with the connection
    assert server.sequences(3) == [4, 5, 6]
    assert [each.entry.sequence for each in script.heard.acked] == [0, 1, 2, 3]
    assert not link.away
    assert link.away_s() > 0
    assert link.connections == 2


def test_it_says_whether_the_cloud_takes_what_is_put_in_and_how_long_it_was_away(script: Script) -> None:
    later_s = 0.0

    def away_in_a_second() -> bool:
        nonlocal later_s
        before_s = link.away_s()
        later_s += 1.0
        return link.away_s() != before_s

    link = script.link(clock=lambda: time.monotonic() + later_s, earlier=[DeviceSession(bytes(16), leaving=True)])
    server = script.accept()
    assert (link.away, link.takes_live, away_in_a_second()) == (True, False, True)
    server.welcome()
    script.heard.wait_for("welcomes")
    assert (link.away, link.takes_live, away_in_a_second()) == (False, False, False), "earlier sessions go first"
    server.bye()
    server.send(farewell(Totals()))
    server = script.accept()
    server.hello()
    assert (link.away, link.takes_live, away_in_a_second()) == (False, False, False)
    server.send_welcome()
    script.heard.wait_for("welcomes", 2)
    assert (link.away, link.takes_live, away_in_a_second()) == (False, True, False)
    assert link.reconnects == 0
    server.socket.close()
    script.heard.wait_for("reasons")
    assert (link.away, link.takes_live, away_in_a_second()) == (True, False, True)
    script.accept().welcome()
    script.heard.wait_for("welcomes", 3)
    assert (link.away, link.takes_live, away_in_a_second()) == (False, True, False)
    assert link.reconnects == 1
    assert link.away_s() >= 2.0


def test_a_cloud_that_has_everything_is_sent_nothing(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome()
    put(link, entry(0))
    server.sequences(1)
    server.socket.close()
    link.leave()
    server = script.accept()
    server.welcome(watermark=1)
    assert server.bye() == 1
    server.socket.close()  # without a farewell: it comes back to hear it
    server = script.accept()
    server.welcome(watermark=1)
    assert server.bye() == 1
    server.send(farewell(Totals(1, 1)))
    assert link.join(PATIENCE_S)
    assert link.error is None


def test_no_more_is_on_its_way_than_the_cloud_allows(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome(unacked_items=3)
    for n in range(10):
        put(link, entry(n))
    assert server.sequences(2) == [0, 1]
    with link.condition:
        assert link.live.outbox.sent_entries <= 3
    for acked in range(1, 11):
        if acked + 1 < 10:
            assert server.sequences(1) == [acked + 1]
        server.send(ack(Totals(acked, acked)))
        with link.condition:
            assert link.live.outbox.sent_entries <= 3
    script.heard.wait_for("acked", 10)


def test_it_counts_for_how_long_something_waits_for_the_window(script: Script) -> None:
    now_s = [100.0]
    link = script.link(clock=lambda: now_s[0])
    server = script.accept()
    server.welcome(unacked_items=1)
    put(link, entry(0))
    assert server.sequences(1) == [0]
    put(link, entry(1))
    asked = count()
    link.wait_until(lambda: next(asked) > 1)  # carries the connection on before it asks for the third time
    now_s[0] += 1.0
    server.send(ack(Totals(1, 1)))
    assert server.sequences(1) == [1]
    now_s[0] += 1.0  # one is on its way, but none waits
    assert link.full_s() == 1.0


def test_what_others_left_to_the_thread_that_waits_is_sent_before_it_waits(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_offload.transport.link.WAIT_S", 10 * PATIENCE_S)
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=10 * PATIENCE_S, silence_s=40 * PATIENCE_S)
    script.heard.wait_for("welcomes")
    asked: list[int] = []

    def ready() -> bool:
        """Asked for the second time when this thread has the connection: what is put in now, others left to it."""
        asked.append(len(asked))
        if len(asked) == 2:
            for n in range(3):
                put(link, entry(n))
        return len(asked) > 2 and not link.live.outbox.waiting_entries

    link.wait_until(ready)
    assert server.sequences(3) == [0, 1, 2]


def test_what_became_ready_while_the_connection_was_carried_on_is_not_asked_again(script: Script) -> None:
    """It may have taken its turn, and would not get another."""
    link = script.link()
    server = script.accept()
    server.welcome()
    script.heard.wait_for("welcomes")
    asked = count()

    def ready() -> bool:
        """Once only, while this thread has the connection, which has more to do."""
        if next(asked) != 1:
            return False
        put(link, entry(0))
        return True

    waits = threading.Thread(target=link.wait_until, args=[ready], daemon=True)
    waits.start()
    waits.join(PATIENCE_S)
    assert not waits.is_alive()
    assert next(asked) == 2
    assert server.sequences(1) == [0]


def test_what_is_put_in_while_a_thread_waits_is_sent_at_once(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_offload.transport.link.WAIT_S", 10 * PATIENCE_S)
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=10 * PATIENCE_S, silence_s=40 * PATIENCE_S)
    script.heard.wait_for("welcomes")
    waits = threading.Thread(target=link.wait_until, args=[lambda: link.live.acked == 20], daemon=True)
    waits.start()
    for n in range(20):
        put(link, entry(n))
        assert server.sequences(1) == [n]
        server.send(ack(Totals(n + 1, n + 1)))
    waits.join(PATIENCE_S)
    assert not waits.is_alive()


def test_what_is_put_in_while_the_link_s_own_thread_sends_is_sent_at_once(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=10 * PATIENCE_S, silence_s=40 * PATIENCE_S, unacked_items=2)
    script.heard.wait_for("welcomes")
    for n in range(3):
        put(link, entry(n))
    assert server.sequences(2) == [0, 1]
    puts = threading.Thread(target=lambda: put(link, entry(3)), daemon=True)

    def sent(size_bytes: int, cpu_s: float | None) -> None:
        """The link's thread has heard the ack, and sent item 2."""
        if not puts.ident:
            puts.start()
            puts.join(PATIENCE_S)

    monkeypatch.setattr(script.heard, "sent", sent)
    server.send(ack(Totals(2, 2)))
    assert server.sequences(2) == [2, 3]


def test_all_that_the_socket_takes_is_sent_at_once(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_offload.transport.exchange.QUEUE_BYTES", 1)
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=10 * PATIENCE_S, silence_s=40 * PATIENCE_S)
    script.heard.wait_for("welcomes")
    for n in range(5):
        link.put(entry(n))
    link.carry()
    assert server.sequences(5) == [0, 1, 2, 3, 4]


def test_a_message_larger_than_the_window_still_goes_alone(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome(unacked_bytes=1000)
    put(link, entry(0, 5000))
    put(link, entry(1, 5000))
    assert server.sequences(1) == [0]
    server.send(ack(Totals(1, 1)))
    assert server.sequences(1) == [1]


@pytest.mark.parametrize(
    ("family", "address"),
    [(10_000, ("::1", 1, 0, 0)), (socket.AF_INET, ("255.255.255.255", 1))],
    ids=["a kernel without this family", "no way there"],
)
def test_an_address_that_cannot_be_asked_is_passed_over(
    script: Script, monkeypatch: pytest.MonkeyPatch, family: int, address: tuple[Any, ...]
) -> None:
    """A name has IPv6 addresses for devices too that were started without IPv6, or have no route for it."""
    real = socket.getaddrinfo

    def with_another_first(*asked: Any, **more: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 0, "", address), *real(*asked, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", with_another_first)
    link = script.link()
    script.accept().welcome()
    script.heard.wait_for("welcomes")
    assert script.heard.reasons == []
    assert link.error is None


@pytest.fixture
def hole() -> Iterator[tuple[str, int]]:
    """An address that answers nothing, as behind a firewall: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as waiting:
        for _ in range(4):
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listening.getsockname())
        yield listening.getsockname()


def test_an_address_that_is_silent_leaves_time_for_the_next(
    script: Script, monkeypatch: pytest.MonkeyPatch, hole: tuple[str, int]
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: [*real(*hole, **more), *real(*asked, **more)])
    monkeypatch.setattr("task_offload.transport.link.CONNECT_TIMEOUT_S", 0.5)
    script.link()
    script.accept()


def test_a_server_that_is_silent_is_asked_again(monkeypatch: pytest.MonkeyPatch, hole: tuple[str, int]) -> None:
    monkeypatch.setattr("task_offload.transport.link.CONNECT_TIMEOUT_S", 0.1)
    heard = Heard()
    link = make_link(hole[1], heard)
    link.start()
    heard.wait_for("reasons", 2)
    link.abandon()
    assert link.join(PATIENCE_S)
    assert heard.reasons[0] == "Connection timed out; is the server running, and its port open?"


def test_a_device_without_a_network_says_so() -> None:
    heard = Heard()
    link = make_link(1, heard, host="255.255.255.255")
    link.start()
    heard.wait_for("reasons")
    link.abandon()
    assert link.join(PATIENCE_S)
    assert heard.reasons[0].startswith("Network is unreachable")


def test_its_messages_name_the_server_and_not_where_an_emulated_link_to_it_begins(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    link = make_link(1, script.heard, connect_to=("127.0.0.1", script.port))
    script.links.append(link)
    link.start()
    script.accept().socket.close()
    script.heard.wait_for("reasons")
    assert f"no connection to 127.0.0.1:1: {script.heard.reasons[0]}" in caplog.text


def test_a_host_that_cannot_be_a_name_is_one_clear_line() -> None:
    heard = Heard()
    link = make_link(1, heard, host="cloud..example")
    link.start()
    heard.wait_for("reasons")
    link.abandon()
    assert link.join(PATIENCE_S)
    assert link.error is None
    assert heard.reasons[0].startswith("the name cloud..example is not known (")


@pytest.mark.parametrize("code", [Refusal.VERSION, Refusal.CHAIN, Refusal.TOKEN])
def test_a_lasting_refusal_ends_a_starting_device(script: Script, code: Refusal) -> None:
    link = script.link()
    server = script.accept()
    server.hello()
    server.send(RefusalMessage(code, "not you").encode())
    assert link.join(PATIENCE_S)
    assert isinstance(link.error, RefusedError)
    assert str(link.error) == "not you"


@pytest.mark.parametrize("code", [Refusal.TOKEN, Refusal.BUSY, Refusal.REPLACED, Refusal.STOPPING, 999])
def test_a_running_device_asks_again_after_any_refusal(script: Script, code: int) -> None:
    link = script.link()
    server = script.accept()
    server.welcome()
    put(link, entry(0))
    server.sequences(1)
    server.send(RefusalMessage(code, "go away for now").encode())
    server.closed()
    server = script.accept()
    server.welcome()
    assert server.sequences(1) == [0]
    assert script.heard.reasons == ["go away for now"]


def test_a_running_device_outlives_a_token_that_is_being_written_anew(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is read before each connection, and may be empty just then."""
    link = script.link()
    server = script.accept()
    server.welcome()
    put(link, entry(0))
    server.sequences(1)
    found = iter([ConfigError("OFFLOAD_TOKEN_FILE token: this is not a token"), None])

    def find_token() -> Token | None:
        if (error := next(found)) is not None:
            raise error
        return None

    monkeypatch.setattr(link, "_find_token", find_token)
    server.socket.close()
    server = script.accept()
    server.welcome()
    assert server.sequences(1) == [0]
    assert script.heard.reasons[1:] == ["OFFLOAD_TOKEN_FILE token: this is not a token"]
    assert link.error is None


def test_a_busy_server_is_asked_again_by_a_starting_device_too(script: Script) -> None:
    script.link()
    server = script.accept()
    server.hello()
    server.send(RefusalMessage(Refusal.BUSY, "full", 0.001).encode())
    server.closed()
    script.accept().welcome()
    script.heard.wait_for("welcomes")
    assert script.heard.reasons == ["full"]


def test_waits_between_connections_grow_until_one_succeeds_and_are_longer_where_the_cloud_says_so(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand devices, or one that was shut out, must not keep a server busy."""
    waits: queue.SimpleQueue[float] = queue.SimpleQueue()
    monkeypatch.setattr(Link, "_sleep", lambda self, seconds: waits.put(seconds))
    script.link()

    def waited_s() -> float:
        """What it would have waited, but for the tests' chance, which makes it a hundredth."""
        return waits.get(timeout=PATIENCE_S) / 0.01

    def lose(*said: bytes, welcome: bool = False) -> float:
        server = script.accept()
        server.welcome() if welcome else server.hello()
        server.send(*said)
        server.socket.close()
        return waited_s()

    growing = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [lose() for _ in growing] == pytest.approx(growing)
    assert lose(welcome=True) == pytest.approx(0.25)
    assert lose() == pytest.approx(0.5)
    assert lose(RefusalMessage(Refusal.BUSY, "full", 7.0).encode()) == pytest.approx(7.0)
    assert lose(RefusalMessage(Refusal.TOKEN, "shut out").encode()) == pytest.approx(REFUSED_WAIT_S)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: ack(Totals(5, 5)),  # never sent
        lambda: farewell(Totals(0)),  # nobody said bye
        lambda: Welcome(Totals(), 2.0, 8.0, 1, 1, 1).encode(),  # twice
        lambda: b"HTTP/1.1 200 OK\r\n\r\n",
        lambda: ack(Totals(1, 1))[:-1] + b"\xff",
        lambda: b"\x11\0\0\0" + b"\xff" * 12,
        lambda: PING[:1] + b"\0" * 3 + b"\0" * 4 + b"\x01" + b"\0" * 7 + b"x",  # a body
        lambda: Hello("x", SESSION, bytes(32), CHAIN).encode(),
    ],
    ids=lambda make: None,
)
def test_a_server_that_breaks_the_protocol_is_left_and_tried_again(
    script: Script, nonsense: Callable[[], bytes]
) -> None:
    link = script.link()
    server = script.accept()
    server.welcome()
    put(link, entry(0))
    server.sequences(1)
    server.send(nonsense())
    assert server.closed()
    server = script.accept()
    server.welcome()
    assert server.sequences(1) == [0]
    assert link.error is None


@pytest.mark.parametrize(
    "limits",
    [
        {"heartbeat_s": 0.0},
        {"silence_s": 1.0},
        {"unacked_items": 0},
        {"unacked_bytes": 0},
        {"heartbeat_s": float("nan")},
    ],
)
def test_limits_that_make_no_sense(script: Script, limits: dict[str, float]) -> None:
    script.link()
    server = script.accept()
    server.welcome(**limits)
    assert server.closed()
    script.heard.wait_for("reasons")
    assert script.heard.reasons[0] == "the cloud's limits make no sense"


def test_a_silent_server_is_left(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=0.05, silence_s=0.2)
    frame = server.frame()
    assert frame is not None
    assert frame.kind is Kind.PING
    script.heard.wait_for("reasons")
    assert script.heard.reasons[0] == "the cloud has been silent for 0.2 s"
    assert link.away


def test_a_server_that_does_not_read_is_left(script: Script) -> None:
    """A full socket is no sign of life: the device notices within the stated time."""
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=0.05, silence_s=0.3, unacked_bytes=1 << 30, message_bytes=1 << 30)
    for n in range(4):
        put(link, entry(n, 8_000_000))
    script.heard.wait_for("reasons")
    assert script.heard.reasons[0] == "the cloud has been silent for 0.3 s"


def test_the_load_is_told(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.welcome(heartbeat_s=0.05)
    link.tell_load(Load(1.0, 0.5, 0.25, 60.0, 7))
    while True:
        frame = server.frame()
        assert frame is not None
        if frame.kind is Kind.LOAD:
            break
        assert frame.kind is Kind.PING
        server.send(PING)
    assert Load.decode(frame.head) == Load(1.0, 0.5, 0.25, 60.0, 7)


def test_abandoning_ends_it_at_once_whatever_it_does(script: Script) -> None:
    for stage in ("no answer", "welcomed"):
        link = script.link()
        server = script.accept()
        if stage == "welcomed":
            server.welcome()
            put(link, entry(0))
            server.sequences(1)
        else:
            server.hello()
        link.abandon()
        assert link.join(PATIENCE_S)
        assert link.error is None


def test_abandoning_while_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    heard = Heard()
    link = make_link(port, heard)
    link.start()
    heard.wait_for("reasons")
    assert heard.reasons[0] == "Connection refused; is the server running, and its port open?"
    link.abandon()
    assert link.join(PATIENCE_S)


def test_who_waits_for_room_is_woken_when_the_link_ends(script: Script) -> None:
    link = script.link()
    server = script.accept()
    server.hello()
    woken = threading.Event()

    def wait() -> None:
        with link.condition:
            link.condition.wait_for(lambda: link.error is not None, PATIENCE_S)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    server.send(RefusalMessage(Refusal.CHAIN, "no").encode())
    thread.join(PATIENCE_S)
    assert woken.is_set()
    assert isinstance(link.error, RefusedError)


# -- TLS ----------------------------------------------------------------------------------------------------------


def test_a_wrong_certificate_gets_no_secret(script: Script, tmp_path: Path) -> None:
    certificate = load_or_make_certificate(tmp_path / "state")
    link = script.link(tls=True, token=Token("device", bytes(32), b"s" * 32))
    raw, _ = script.listening.accept()
    raw.settimeout(PATIENCE_S)
    received = b""
    with raw, server_context(certificate).wrap_socket(raw, server_side=True) as secure:
        try:
            while data := secure.recv(4096):
                received += data
        except OSError:
            pass  # it hangs up without a goodbye
    assert received == b""
    assert link.join(PATIENCE_S)
    assert isinstance(link.error, RefusedError)
    assert "another certificate" in str(link.error)


def test_the_right_certificate_gets_the_secret(script: Script, tmp_path: Path) -> None:
    certificate = load_or_make_certificate(tmp_path / "state")
    link = script.link(tls=True, token=Token("named", certificate.fingerprint, b"s" * 32))
    raw, _ = script.listening.accept()
    server = Accepted(server_context(certificate).wrap_socket(raw, server_side=True))
    script.accepted.append(server)
    hello = server.welcome()
    assert (hello.device, hello.secret) == ("named", b"s" * 32)  # the token names the device
    put(link, entry(0, 200_000))
    assert server.sequences(1) == [0]


def test_a_server_that_never_finishes_tls_is_left(script: Script) -> None:
    now = [1000.0]
    link = script.link(tls=True, token=Token("device", bytes(32), bytes(32)), clock=lambda: now[0])
    server, _ = script.listening.accept()
    with server:
        server.settimeout(PATIENCE_S)
        assert server.recv(1) == b"\x16"  # its client hello
        now[0] += 10.1
        link.leave()  # wakes it
        script.heard.wait_for("reasons")
    assert script.heard.reasons[0] == "the server did not finish the TLS handshake"


def test_devices_do_not_come_back_together_nor_earlier_than_the_cloud_asked() -> None:
    own = [pause_s(8.0, 0.0, random.Random(seed)) for seed in range(50)]
    asked = [pause_s(0.25, 10.0, random.Random(seed)) for seed in range(50)]
    assert 4.0 <= min(own) < 5.0 < 7.0 < max(own) <= 8.0
    assert 10.0 <= min(asked) < 11.0 < 14.0 < max(asked) <= 15.0
