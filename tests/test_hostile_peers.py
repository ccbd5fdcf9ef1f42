"""A real server that is fed garbage while a real device goes on: a closed connection, a line, a count, and no more."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from task_offload.task import Chain, load_app
from task_offload.wire.codec import Encoder
from task_offload.wire.messages import (
    FRAME,
    PING,
    Ending,
    EndingRange,
    Kind,
    Refusal,
    RefusalMessage,
    Welcome,
    bye,
    decode_totals,
    frame,
    item_prefix,
)
from tests.support.links import try_once
from tests.support.peers import Peer, hello, item
from tests.support.processes import APPS, Gate, Lab, Server, check_order


class Bystander:
    """A server, and a device on it that must not notice anything of what the test does."""

    def __init__(self, lab: Lab, tls: bool) -> None:
        options = () if tls else ("--no-tls",)
        self.server: Server = lab.server("counter", *options, env={"LOUD": "1"})
        self.gate: Gate = lab.gate("bystander")
        self.device = lab.device(
            "counter", "2", *options, port=self.server.port, name="bystander",
            env={"CAPTURE_GATE": str(self.gate.path)},
        )  # fmt: skip
        self.items = 0
        self.goes_on()

    def goes_on(self) -> None:
        """It still gets items through."""
        self.gate.let(3)
        self.server.wait_for(f"report bystander {self.items + 1}$")
        self.items += 3

    def finish(self) -> dict[str, Any]:
        self.goes_on()
        self.gate.close()
        report = self.device.finish()
        assert report["items"]["captured"] == self.items
        assert report["items"]["dropped"] == {}
        assert report["reconnects"] == 0
        cloud = self.server.stop()
        check_order(self.server.rows())
        return cloud


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bystander]:
    """Without TLS, so that the tests reach the protocol."""
    lab = Lab(tmp_path_factory.mktemp("plain"))
    bystander = Bystander(lab, tls=False)
    yield bystander
    try:
        cloud = bystander.finish()
        assert sum(cloud["rejected"].values()) > 0
    finally:
        lab.close()


@pytest.fixture(scope="module")
def chain() -> Chain:
    return load_app(str(APPS / "counter.py"))


def names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"stranger-{number}"


_names = names()


def introduced(plain: Bystander, chain: Chain, name: str = "", session: bytes = b"") -> Peer:
    peer = Peer(plain.server.port)
    peer.send(hello(chain, name or next(_names), session or os.urandom(16)).encode())
    welcome = Welcome.decode(peer.until(Kind.WELCOME).head)
    assert welcome.totals.next_sequence == 0
    return peer


def test_random_bytes(plain: Bystander) -> None:
    rng = random.Random(1)
    for size in (1, 15, 16, 17, 100, 5000, 200_000):
        with Peer(plain.server.port) as peer:
            try:
                peer.send(b"\xff" + rng.randbytes(size - 1))
                peer.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was closed at the first bytes
            assert peer.closed()
    plain.goes_on()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        FRAME.pack(255, 0, 0, 0, 0),
        FRAME.pack(Kind.HELLO, 1, 0, 10, 0),
        FRAME.pack(Kind.HELLO, 0, 0, 0xFFFFFFFF, 0),
        FRAME.pack(Kind.HELLO, 0, 0, 10, 0xFFFFFFFFFFFFFFFF),
        FRAME.pack(Kind.HELLO, 0, 0, 10, 1),
        frame(Kind.HELLO, b""),
        frame(Kind.HELLO, b"PTOF\x01\x00" + bytes(28)),
        frame(Kind.HELLO, b"XXXX" + bytes(200)),
        frame(Kind.ITEM, bytes(100)),
        frame(Kind.WELCOME, bytes(100)),
        bye(0),
        PING,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_introduction(plain: Bystander, data: bytes) -> None:
    with Peer(plain.server.port) as peer:
        peer.send(data)
        assert peer.refusal().code == Refusal.PROTOCOL
    plain.goes_on()


def test_half_an_introduction_and_gone(plain: Bystander, chain: Chain) -> None:
    whole = hello(chain).encode()
    for size in (1, FRAME.size, FRAME.size + 1, len(whole) - 1):
        with Peer(plain.server.port) as peer:
            peer.send(whole[:size])
    plain.goes_on()


def test_a_wrong_version(plain: Bystander, chain: Chain) -> None:
    data = bytearray(hello(chain).encode())
    struct.pack_into("<H", data, FRAME.size + 4, 77)
    with Peer(plain.server.port) as peer:
        peer.send(bytes(data))
        refusal = peer.refusal()
    assert refusal.code == Refusal.VERSION
    assert "the device version 77" in refusal.message
    plain.goes_on()


def test_another_chain(plain: Bystander) -> None:
    with Peer(plain.server.port) as peer:
        peer.send(hello(load_app(str(APPS / "failing.py"))).encode())
        refusal = peer.refusal()
    assert refusal.code == Refusal.CHAIN
    assert "the cloud's chain has 5 tasks, the device's has 4" in refusal.message
    plain.goes_on()


def _ending(first: int, **more: Any) -> bytes:
    given = {"count": 1, "ending": Ending.DROPPED, "split": 2, "detail": "why", **more}
    return EndingRange(first, **given).encode()


def _range(*fields: int, detail: bytes = b"") -> bytes:
    return frame(Kind.ENDINGS, struct.pack("<QIBBHQQ", *fields) + detail)


@pytest.mark.parametrize(
    "offence",
    [
        lambda: item(5, 2, 1),  # 0 was due
        lambda: item(0, 2, 1) + item(0, 2, 1),
        lambda: item(0, 0, 1),
        lambda: item(0, 5, 1),
        lambda: item(2**64 - 1, 2, 1),
        lambda: frame(Kind.ITEM, bytes(3)),
        lambda: FRAME.pack(Kind.ITEM, 0, 0, 2**32 - 1, 0),
        lambda: FRAME.pack(Kind.ITEM, 0, 0, 24, 2**64 - 1),
        lambda: FRAME.pack(Kind.PING, 0, 0, 0, 64) + bytes(64),
        lambda: _ending(3),
        lambda: _range(0, 0, 2, 2, 0, 0, 0),
        lambda: _range(0, 2**32 - 1, 2, 2, 0, 0, 0),
        lambda: _range(0, 1, 9, 2, 0, 0, 0),
        lambda: _range(0, 1, 2, 99, 0, 0, 0),
        lambda: _range(0, 1, 2, 2, 50, 0, 0, detail=b"short"),
        lambda: _range(0, 1, 2, 2, 2, 0, 0, detail=b"\xff\xff"),
        lambda: _range(0, 1, 2, 2, 0, 1, 2),
        lambda: frame(Kind.LOAD, b"x"),
        lambda: bye(7),
        lambda: frame(Kind.ACK, bytes(41)),
        lambda: b"\x00" * 16,
    ],
    ids=lambda offence: None,
)
def test_an_introduced_device_that_breaks_the_protocol(
    plain: Bystander, chain: Chain, offence: Callable[[], bytes]
) -> None:
    with introduced(plain, chain) as peer:
        peer.send(offence())
        assert peer.refusal().code == Refusal.PROTOCOL
    plain.goes_on()


@pytest.mark.parametrize(
    "head",
    [b"", b"x", bytes(64), b"\x80\x05cos\nsystem\n.", random.Random(3).randbytes(50)],
    ids=["none", "x", "zeros", "pickle", "any"],
)
def test_a_payload_that_may_not_be_decoded(plain: Bystander, chain: Chain, head: bytes) -> None:
    with introduced(plain, chain) as peer:
        peer.send(item_prefix(0, 0, 2, 0, len(head), 0) + head)
        assert peer.refusal().code == Refusal.PAYLOAD
    plain.goes_on()


def test_a_sequence_beyond_what_the_store_holds(plain: Bystander, chain: Chain) -> None:
    """What it acknowledged in an earlier life is the device's word."""
    for acked in (2**63 - 1, 2**63, 2**64 - 1):
        with Peer(plain.server.port) as peer:
            peer.send(hello(chain, next(_names), os.urandom(16), acked=acked).encode())
            assert peer.refusal().code == Refusal.PROTOCOL
    plain.goes_on()


def test_an_item_that_is_older_than_the_universe(plain: Bystander, chain: Chain) -> None:
    with introduced(plain, chain) as peer:
        peer.send(item(0, 2, 1, 1, age_us=2**64 - 1), _ending(1, oldest_age_us=2**64 - 1), bye(2))
        peer.until(Kind.FAREWELL)
        assert peer.closed()
    plain.goes_on()


def test_arguments_that_the_tasks_do_not_expect(plain: Bystander, chain: Chain) -> None:
    """A task error of that device."""
    with introduced(plain, chain, name="liar") as peer:
        peer.send(item(0, 2), item(1, 2, "a", "b"), item(2, 2, 1, 2, 3, 4), item(3, 4, None), bye(4))
        peer.until(Kind.FAREWELL)
    rows = [row for row in plain.server.rows() if row["device"] == "liar"]
    assert [row["ending"] for row in rows] == ["dropped"] * 4
    assert all(row["detail"].startswith("task_error: ") for row in rows)
    plain.server.may_fail = True  # their tracebacks
    plain.goes_on()


def test_a_peer_cannot_forge_log_lines(plain: Bystander, chain: Chain) -> None:
    """Nor a name, nor a reason, nor a farewell of its own reaches the log's next line, or a terminal's controls."""
    forged = "evil\n12:00:00 INFO device bystander left\x1b[2J"
    with Peer(plain.server.port) as peer:
        peer.send(hello(chain, forged, os.urandom(16)).encode())
        assert peer.refusal().code == Refusal.PROTOCOL
    with introduced(plain, chain) as peer:
        plain_text = RefusalMessage(Refusal.PROTOCOL, "x" * len(forged)).encode()
        peer.send(plain_text.replace(b"x" * len(forged), forged.encode()))
        assert peer.closed()
    with introduced(plain, chain) as peer:
        peer.send(_ending(0, detail=forged), bye(1))
        peer.until(Kind.FAREWELL)
    renamed = replace(chain, tasks=(replace(chain.tasks[0], name=forged), *chain.tasks[1:]))
    with Peer(plain.server.port) as peer:
        peer.send(hello(renamed).encode())
        assert peer.refusal().code == Refusal.CHAIN
    plain.goes_on()
    assert not [line for line in plain.server.err.splitlines() if line.startswith("12:00:00")]
    assert "\x1b" not in plain.server.err


def test_a_thousand_reasons_stay_few_in_the_books(plain: Bystander, chain: Chain) -> None:
    with introduced(plain, chain) as peer:
        peer.send(*(_ending(n, detail=f"reason-{n}") for n in range(1000)), bye(1000))
        totals = decode_totals(peer.until(Kind.FAREWELL).head)
    assert sum(totals.dropped.values()) == 1000
    assert len(totals.dropped) <= 33
    plain.goes_on()


def test_a_flood_of_connections_that_say_nothing(plain: Bystander) -> None:
    peers = [Peer(plain.server.port) for _ in range(200)]
    plain.goes_on()
    for peer in peers:
        peer.socket.close()
    plain.goes_on()


def test_half_an_item_and_gone(plain: Bystander, chain: Chain) -> None:
    """It is as if it had never been sent; the session takes it up again."""
    session = os.urandom(16)
    name = next(_names)
    whole = item(0, 2, 1, 1) + item(1, 2, 3, 9)
    with introduced(plain, chain, name, session) as peer:
        peer.send(whole[:-3])
        assert peer.until(Kind.ACK)
    with Peer(plain.server.port) as peer:
        peer.send(hello(chain, name, session).encode())
        welcome = Welcome.decode(peer.until(Kind.WELCOME).head)
        assert welcome.totals.next_sequence == 1
        peer.send(item(1, 2, 3, 9), bye(2))
        peer.until(Kind.FAREWELL)
    rows = [row for row in plain.server.rows() if row["device"] == name]
    assert [row["result"]["number"] for row in rows] == [1, 3]


def test_what_is_sent_twice_is_recorded_once(plain: Bystander, chain: Chain) -> None:
    session = os.urandom(16)
    name = next(_names)
    with introduced(plain, chain, name, session) as peer:
        peer.send(item(0, 2, 1, 1), item(1, 2, 3, 9))
        peer.until(Kind.ACK)
    with Peer(plain.server.port) as peer:
        peer.send(hello(chain, name, session).encode())
        peer.until(Kind.WELCOME)
        peer.send(item(0, 2, 1, 1), item(1, 2, 3, 9), item(2, 2, 4, 16), bye(3))
        peer.until(Kind.FAREWELL)
    rows = [row for row in plain.server.rows() if row["device"] == name]
    assert [(row["sequence"], row["result"]["number"]) for row in rows] == [(0, 1), (1, 3), (2, 4)]


def test_a_tls_server_that_is_fed_garbage(lab: Lab) -> None:
    bystander = Bystander(lab, tls=True)
    rng = random.Random(2)
    for data in (b"GET / HTTP/1.0\r\n\r\n", rng.randbytes(3000), b"\x16\x03\x01" + rng.randbytes(500), b""):
        with (
            socket.create_connection(("127.0.0.1", bystander.server.port), timeout=20) as sock,
            contextlib.suppress(OSError),  # it may hang up at the first bytes
        ):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        bystander.goes_on()
    cloud = bystander.finish()
    assert cloud["rejected"]["connection"] >= 3


@pytest.mark.parametrize("speech", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64, b"SSH-2.0-x\r\n", b""])
@pytest.mark.parametrize("tls", [True, False])
def test_a_server_that_speaks_something_else(speech: bytes, tls: bool) -> None:
    """The device's link says so and tries again; see `test_link` for what it does then."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        reason = try_once(listening, speech, tls)
    assert reason
    assert "\n" not in reason


def test_payloads_of_the_wrong_buffers(plain: Bystander, chain: Chain) -> None:
    """A head that tells of arrays, with a body that is not theirs."""
    payload = Encoder((), 0).encode((np.zeros(100_000, np.uint8), 2))
    body = b"".join(bytes(buffer) for buffer in payload.buffers)
    for wrong in (body[:-64], body + bytes(64), b""):
        with introduced(plain, chain) as peer:
            peer.send(item_prefix(0, 0, 2, 0, len(payload.head), len(wrong)), payload.head, wrong)
            assert peer.refusal().code == Refusal.PAYLOAD
    plain.goes_on()
