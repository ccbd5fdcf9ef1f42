"""The listener with raw sockets: limits, times by an injected clock, slow peers, and peers that meet a bug."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from task_offload.errors import LinkError
from task_offload.transport.listener import STRANGERS_A_TURN, Connection, Listener, ListenerLimits, _origin
from task_offload.transport.stream import Stream
from task_offload.wire.framing import FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import (
    MAGIC,
    PING,
    ChainSpec,
    Hello,
    Kind,
    Load,
    Refusal,
    RefusalMessage,
    TaskSpec,
    Totals,
    Welcome,
    ack,
    frame,
)
from task_offload.wire.session import Arrived, CloudEvent, CloudSide
from tests.support.peers import Peer, item

PATIENCE_S = 20.0
CHAIN = ChainSpec((TaskSpec("a"), TaskSpec("b"), TaskSpec("c")))
HELLO = Hello("device", bytes(16), bytes(32), CHAIN).encode()
WELCOME = Welcome(Totals(), 2.0, 8.0, 1 << 20, 1 << 20, 100).encode()
LOAD = Load(0.5, 0.5, 0.5, 50.0, 1000).encode()


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Handler:
    """Lets everybody in, and writes down what it hears."""

    def __init__(self) -> None:
        self.listener: Listener
        self.changed = threading.Condition()
        self.greetings: list[Hello] = []
        self.events: list[CloudEvent] = []
        self.closings: list[str] = []
        self.ticks = 0
        self.flushes = 0
        self.connection: Connection | None = None
        self.on_arrived: Callable[[Connection, CloudEvent], None] = lambda connection, event: None
        self.on_flush: Callable[[], None] = lambda: None

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.connection = connection
        self._add(self.greetings, hello)
        self.listener.accept(connection, hello.device, WELCOME)

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        self.on_arrived(connection, event)
        self._add(self.events, event)

    def closed(self, connection: Connection, reason: str) -> None:
        self._add(self.closings, reason)

    def flush(self) -> None:
        self.on_flush()
        with self.changed:
            self.flushes += 1
            self.changed.notify_all()

    def tick(self) -> None:
        with self.changed:
            self.ticks += 1
            self.changed.notify_all()

    def _add(self, where: list[Any], what: Any) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait_for(self, reached: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(reached, PATIENCE_S), self.__dict__


class World:
    def __init__(self, host: str = "127.0.0.1", **limits: Any) -> None:
        self.clock = Clock()
        self.handler = Handler()
        self.listener = Listener(
            host,
            0,
            self.handler,
            lambda: CloudSide(3, (1, 2)),
            limits=ListenerLimits(**limits),
            clock=self.clock,
        )
        self.handler.listener = self.listener
        self.listener.start()
        self.pass_()

    def connect(self) -> Peer:
        return Peer(self.listener.port)

    def introduced(self) -> Peer:
        peer = self.connect()
        peer.send(HELLO)
        peer.until(Kind.WELCOME)
        self.pass_()  # so that it knows when it sent that
        return peer

    def advance(self, seconds: float) -> None:
        """Time passes, and the listener has noticed; at least as much as lies between its ticks."""
        ticks = self.handler.ticks
        self.clock.now += seconds
        self.listener.wake()
        self.handler.wait_for(lambda: self.handler.ticks > ticks)
        self.pass_()  # so that the tick is over

    def pass_(self) -> None:
        """Waits until the listener has gone around."""
        flushes = self.handler.flushes
        self.listener.wake()
        self.handler.wait_for(lambda: self.handler.flushes > flushes)

    def connections(self, count: int) -> None:
        """Waits until the listener has so many connections."""
        self.handler.wait_for(lambda: self.listener.connections == count)


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(**limits: Any) -> World:
        made.append(World(**limits))
        return made[-1]

    yield build
    for world in made:
        world.listener.close()
        assert not world.listener.alive


def test_what_comes_is_handed_on_in_order(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        peer.send(*(item(n, 1, n) for n in range(50)), LOAD)
        world.handler.wait_for(lambda: len(world.handler.events) == 51)
    assert [event.sequence for event in world.handler.events if isinstance(event, Arrived)] == list(range(50))
    assert world.handler.events[50] == Load.decode(LOAD[16:])
    world.handler.wait_for(lambda: world.handler.closings == ["the device closed the connection"])


def test_byte_by_byte_is_the_same(make: Callable[..., World]) -> None:
    world = make()
    with world.connect() as peer:
        for byte in HELLO + item(0, 1, "slow") + PING + item(1, 2, "still slow"):
            peer.send(bytes([byte]))
        world.handler.wait_for(lambda: len(world.handler.events) == 2)
    assert world.handler.greetings[0].device == "device"


def test_half_a_body_holds_nobody_up(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as slow, world.introduced() as quick:
        whole = item(0, 1, bytes(300_000))
        slow.send(whole[:150_000])
        quick.send(item(0, 2, "quick"))
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        slow.send(whole[150_000:])
        world.handler.wait_for(lambda: len(world.handler.events) == 2)
    assert [event.split for event in world.handler.events] == [2, 1]


def test_a_transfer_is_what_came_after_its_first_piece(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        message = item(0, 1, np.zeros(300_000, np.uint8))
        peer.send(message[:-290_000])
        world.pass_()
        peer.send(message[-290_000:])
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        connection = world.handler.connection
        assert connection is not None
        assert connection.transfer_bytes == 290_000
        assert connection.transfer_ns > 0


def test_what_came_while_a_device_was_paused_says_nothing_of_its_link(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        connection = world.handler.connection
        assert connection is not None

        def pause(paused: bool) -> None:
            world.handler.on_flush = lambda: world.listener.pause(connection, paused)
            world.pass_()
            world.handler.on_flush = lambda: None

        message = item(0, 1, np.zeros(100_000, np.uint8))
        peer.send(message[:-90_000])
        world.pass_()
        pause(True)
        peer.send(message[-90_000:])
        pause(False)
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        assert connection.transfer_bytes < 90_000


def test_a_body_that_came_fast_and_becomes_slow_is_heard_all_the_same(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        message = item(0, 1, np.zeros(900_000, np.uint8))
        begin = len(message) - 600_000
        peer.send(message[:begin])
        world.pass_()
        for position in range(begin, begin + 20):  # 20 s, in which each byte is a sign of life
            peer.send(message[position : position + 1])
            world.advance(1.0)
        assert world.handler.closings == []
        peer.send(message[begin + 20 :])
        world.handler.wait_for(lambda: len(world.handler.events) == 1)


def test_who_does_not_introduce_himself_is_closed(make: Callable[..., World]) -> None:
    world = make()
    with world.connect() as peer, world.connect() as half, world.introduced() as device:
        half.send(HELLO[:30])
        world.connections(3)
        world.advance(5.0)
        device.send(item(0, 1, 0))
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        world.advance(4.7)
        assert world.listener.connections == 3
        world.advance(0.5)
        assert peer.closed()
        assert half.closed()
        assert world.listener.rejected == {"greeting_time": 2}


def test_strangers_from_one_address_are_few(make: Callable[..., World]) -> None:
    world = make(greeting_per_address=3)
    strangers = [world.connect() for _ in range(3)]
    world.connections(3)
    with world.connect() as fourth:
        assert fourth.closed()
    assert world.listener.rejected == {"connections": 1}
    strangers[0].send(HELLO)  # no stranger any more
    strangers[0].until(Kind.WELCOME)
    with world.introduced():
        pass
    for each in strangers:
        each.socket.close()


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_an_ipv6_peer_has_a_network_of_addresses(address: str, origin: str) -> None:
    assert _origin(address) == origin


def test_the_silent_of_one_address_give_way_while_others_wait(make: Callable[..., World]) -> None:
    """They would lock everybody out: as each is closed, the next takes its place."""
    world = make(greeting=3, greeting_per_address=3)
    silent = [world.connect() for _ in range(3)]
    world.connections(3)
    with world.connect() as device:
        device.send(HELLO)
        world.advance(1.9)
        assert world.handler.greetings == []
        world.advance(0.3)
        device.until(Kind.WELCOME)
        assert silent[0].closed()
        assert world.listener.rejected == {"greeting_time": 1}
        assert world.listener.connections == 3
    for each in silent:
        each.socket.close()


@pytest.mark.parametrize("limit", ["greeting", "connections"])
def test_who_finds_no_place_waits_and_is_served_later(make: Callable[..., World], limit: str) -> None:
    world = make(**{limit: 2})
    first, second = world.connect(), world.connect()
    world.connections(2)
    with world.connect() as third:
        third.send(HELLO)
        world.advance(1.0)
        assert world.listener.connections == 2
        first.socket.close()
        third.until(Kind.WELCOME)
    second.socket.close()


def test_a_silent_device_is_taken_for_gone(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as silent, world.introduced() as talks:
        world.advance(7.0)
        talks.send(item(0, 1, 1))
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        world.advance(1.1)
        assert silent.closed()
        world.handler.wait_for(lambda: world.handler.closings == ["the device has been silent for 8 s"])
        talks.send(item(1, 1, 1))
        world.handler.wait_for(lambda: len(world.handler.events) == 2)


def test_heartbeats(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        world.advance(1.9)
        world.advance(0.3)
        world.advance(0.3)
        world.listener.close()
        kinds = []
        while (frame_ := peer.frame()) is not None:
            kinds.append(frame_.kind)
    assert kinds == [Kind.PING]


def test_a_paused_device_is_not_read_and_is_taken_up_where_it_was(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        world.handler.on_arrived = lambda connection, event: world.listener.pause(connection, True)
        peer.send(item(0, 1, 0))
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
        peer.send(item(1, 1, 1))
        world.handler.on_arrived = lambda connection, event: None
        world.advance(60.0)  # a full disk may take its time
        assert len(world.handler.events) == 1
        connection = world.handler.connection
        assert connection is not None

        def resume() -> None:
            world.handler.on_flush = lambda: None
            world.listener.pause(connection, False)

        world.handler.on_flush = resume
        world.advance(1.0)
        world.handler.wait_for(lambda: len(world.handler.events) == 2)
        assert world.handler.closings == []


def test_what_came_with_the_item_that_paused_a_device_waits_too(make: Callable[..., World]) -> None:
    """One read may bring a thousand small messages, and each of them a thousand rows."""
    world = make()
    with world.introduced() as peer:
        world.handler.on_arrived = lambda connection, event: world.listener.pause(connection, True)
        peer.send(*(item(n, 1, n) for n in range(5)))
        for arrived in (1, 2, 3):
            world.handler.wait_for(lambda arrived=arrived: len(world.handler.events) == arrived)
            world.pass_()
            assert len(world.handler.events) == arrived
            connection = world.handler.connection
            assert connection is not None
            assert connection.paused

            def resume(connection: Connection = connection) -> None:
                world.handler.on_flush = lambda: None
                world.listener.pause(connection, False)

            world.handler.on_flush = resume
        world.handler.on_arrived = lambda connection, event: None
        world.handler.wait_for(lambda: len(world.handler.events) == 5)
    assert [event.sequence for event in world.handler.events if isinstance(event, Arrived)] == list(range(5))


@pytest.mark.parametrize("sign", [PING, LOAD], ids=["pings", "loads"])
def test_signs_of_life_are_few(make: Callable[..., World], sign: bytes) -> None:
    """Nothing that the cloud has to acknowledge slows their sender down."""
    world = make()
    with world.introduced() as device, world.introduced() as flood:
        for number in range(3):
            device.send(sign * 200, item(number, 1, number))
            world.handler.wait_for(
                lambda number=number: sum(isinstance(e, Arrived) for e in world.handler.events) > number
            )
            world.advance(0.3)
        flood.send(sign * 257)
        assert flood.refusal().code == Refusal.LIMIT
        assert world.listener.rejected == {"limit": 1}
        device.send(item(3, 1, 3))
        world.handler.wait_for(lambda: sum(isinstance(event, Arrived) for event in world.handler.events) == 4)


def test_a_paused_device_that_goes_away_is_noticed(make: Callable[..., World]) -> None:
    """Its closed socket is found by what is sent to it."""
    world = make()
    peer = world.introduced()
    world.handler.on_arrived = lambda connection, event: world.listener.pause(connection, True)
    peer.send(item(0, 1, 0))
    world.handler.wait_for(lambda: len(world.handler.events) == 1)
    peer.send(item(1, 1, 1))
    peer.socket.close()  # with something unread: a reset
    world.advance(2.1)
    if not world.handler.closings:
        world.advance(2.1)
    assert len(world.handler.closings) == 1
    assert world.listener.connections == 0


def test_who_does_not_read_is_closed_and_costs_no_memory(make: Callable[..., World]) -> None:
    world = make(outgoing_bytes=200_000)
    with world.introduced() as peer:
        reader = world.handler.connection
        assert reader is not None

        def flood(connection: Connection, event: CloudEvent) -> None:
            if connection is reader:
                world.listener.send(connection, ack(Totals(1)) * 400_000)  # more than a socket takes

        world.handler.on_arrived = flood
        peer.send(item(0, 1, 0))
        world.handler.wait_for(lambda: world.handler.closings == ["the device does not read what it is sent"])
        assert world.listener.rejected == {"limit": 1}
        assert reader.stream.outgoing_bytes == 0
    with world.introduced() as other:
        other.send(item(0, 1, 0))
        world.handler.wait_for(lambda: len(world.handler.events) == 2)


def test_one_address_fills_no_log(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    world = make()

    def bother(times: int) -> None:
        for _ in range(times):
            with world.connect() as peer:
                peer.send(b"GET / HTTP/1.0\r\n\r\n")
                assert peer.refusal().code == Refusal.PROTOCOL

    with caplog.at_level(logging.WARNING):
        bother(30)
        assert len(caplog.records) == 10
        assert "more like this is only counted for a minute" in caplog.records[-1].message
        assert world.listener.rejected == {"protocol": 30}
        world.advance(61.0)
        bother(1)
        assert len(caplog.records) == 11


def test_a_bug_that_one_device_meets_costs_that_device_only(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make()

    def fails(connection: Connection, event: CloudEvent) -> None:
        if isinstance(event, Load):
            raise RuntimeError("a bug")

    world.handler.on_arrived = fails
    with world.introduced() as unlucky, world.introduced() as other:
        unlucky.send(LOAD)
        assert unlucky.refusal().code == Refusal.PROTOCOL
        other.send(item(0, 1, 0))
        world.handler.wait_for(lambda: len(world.handler.events) == 1)
    assert "a bug" in caplog.text
    assert world.listener.alive


def test_a_device_may_refuse_too(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        peer.send(RefusalMessage(Refusal.PROTOCOL, "I have enough").encode())
        assert peer.closed()
    world.handler.wait_for(lambda: world.handler.closings == ["I have enough"])


def test_strangers_may_send_little(make: Callable[..., World]) -> None:
    world = make()
    for data in (frame(Kind.HELLO, MAGIC + bytes(64 * 1024)), b"\x01\0\0\0" + b"\xff" * 4 + bytes(8)):
        with world.connect() as peer:
            peer.send(data)
            assert "at most 65536 are allowed" in peer.refusal().message


def test_a_flood_of_one_device_leaves_turns_to_others(make: Callable[..., World]) -> None:
    """More than one turn's budget waits on one connection; the other's item comes through in between."""
    world = make()
    with world.introduced() as greedy, world.introduced() as modest:
        ready = threading.Event()

        def wait_once(connection: Connection, event: CloudEvent) -> None:
            assert ready.wait(PATIENCE_S)

        world.handler.on_arrived = wait_once
        big = b"".join(item(n, 1, bytes(100_000)) for n in range(60))
        sender = threading.Thread(target=greedy.send, args=(big,))
        sender.start()
        world.handler.wait_for(lambda: world.handler.connection is not None)
        modest.send(item(0, 2, "modest"))
        ready.set()
        world.handler.wait_for(lambda: len(world.handler.events) == 61)
        sender.join()
    place = [event.split for event in world.handler.events if isinstance(event, Arrived)].index(2)
    assert place < 40


class EndlessItems(Stream):
    """A socket from which items without arguments come as fast as they are read."""

    def __init__(self) -> None:
        super().__init__(socket.socket())
        self._number = 0
        self._left = b""

    def receive_into(self, buffer: memoryview) -> int:
        parts = [self._left]
        size = len(self._left)
        while size < len(buffer):
            parts.append(item(self._number, 1))
            self._number += 1
            size += len(parts[-1])
        data = b"".join(parts)
        buffer[:] = data[: len(buffer)]
        self._left = data[len(buffer) :]
        return len(buffer)


def test_without_a_free_descriptor_connections_wait_and_one_line_a_minute_says_so(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket()
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        waiting.connect(("127.0.0.1", world.listener.port))
        for _ in range(5):
            world.advance(1.0)
        lines = [each.message for each in caplog.records]
        world.advance(60.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert lines == ["no descriptor is free for another connection; raise the hard limit (ulimit -Hn, LimitNOFILE)"]
    assert len(caplog.records) == 2
    with waiting:
        world.advance(1.0)
        world.connections(1)


def test_a_listener_that_never_started_closes_its_port() -> None:
    listener = Listener("127.0.0.1", 0, Handler(), lambda: CloudSide(3, (1, 2)))
    listener.close()
    socket.create_server(("127.0.0.1", listener.port)).close()


def test_a_flood_of_small_messages_leaves_turns_to_others(make: Callable[..., World]) -> None:
    """What a message costs is not its bytes."""
    world = make()
    world.listener.close()  # its thread would wait for a real socket
    side = CloudSide(3, (1, 2))
    side.open()
    stream = EndlessItems()
    connection = Connection(stream, "192.0.2.7", side, FrameReader(MemoryPool(0), FrameLimits()), 0.0)
    world.listener._receive(connection)
    stream.close()
    assert 1000 < len(world.handler.events) < 4000
    assert not connection.closed


def test_a_crowd_of_strangers_leaves_turns_to_devices(make: Callable[..., World]) -> None:
    """Each step of a TLS handshake takes its time."""
    world = make()
    with world.introduced() as device:
        strangers = [world.connect() for _ in range(100)]
        world.connections(101)
        busy, ready = threading.Event(), threading.Event()

        def be_busy() -> None:
            world.handler.on_flush = lambda: None
            busy.set()
            assert ready.wait(PATIENCE_S)

        world.handler.on_flush = be_busy
        world.listener.wake()
        assert busy.wait(PATIENCE_S)
        for each in strangers:
            each.send(HELLO)
        greeted: list[int] = []
        world.handler.on_arrived = lambda connection, event: greeted.append(len(world.handler.greetings) - 1)
        device.send(item(0, 1, 0))
        ready.set()
        world.handler.wait_for(lambda: len(world.handler.greetings) == 101)
        for each in strangers:
            each.until(Kind.WELCOME)
            each.socket.close()
    assert len(greeted) == 1
    assert greeted[0] <= STRANGERS_A_TURN


def test_closing_says_so_and_ends_the_thread(make: Callable[..., World]) -> None:
    world = make()
    with world.introduced() as peer:
        world.listener.close()
        assert peer.closed()
    assert not world.listener.alive
    assert world.handler.closings == ["the server stops"]


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkError) as refused:
            Listener("127.0.0.1", port, Handler(), lambda: CloudSide(3, (1, 2)))
    assert str(refused.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; is a server running there already? "
        "choose another --port"
    )


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_all_addresses_of_ipv6_are_those_of_ipv4_too(make: Callable[..., World], address: str) -> None:
    world = make(host="::")
    with Peer(world.listener.port, address) as peer:
        peer.send(HELLO)
        peer.until(Kind.WELCOME)
    connection = world.handler.connection
    assert connection is not None
    assert connection.address == address


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(LinkError, match=r"cannot listen on 192\.0\.2\.1:0"):
        Listener("192.0.2.1", 0, Handler(), lambda: CloudSide(3, (1, 2)))


def test_nothing_spins_while_nobody_speaks(make: Callable[..., World]) -> None:
    """With connections of every kind the listener goes around when it is woken, and not else."""
    world = make()
    with world.introduced(), world.connect() as half:
        half.send(HELLO[:7])
        world.connections(2)
        world.pass_()
        before = world.handler.flushes
        for _ in range(5):
            world.pass_()
        assert world.handler.flushes - before <= 12
