"""The cloud as a whole, with devices spoken by hand: its books and its acks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from task_offload.cloud import Cloud
from task_offload.config import CloudConfig
from task_offload.errors import AppError, LinkError, StoreError
from task_offload.results.sqlite import SqliteStore
from task_offload.transport.identity import CloudIdentity
from task_offload.transport.loopback import find_loopback_token
from task_offload.wire.messages import Ending, Kind, Refusal, RefusalMessage, bye, decode_totals
from tests.support.peers import Peer, hello, item
from tests.support.worlds import COUNTER, Held, World, ended, pass_by, totals, worlds


@pytest.fixture
def make(tmp_path: Path, undo_imports: None) -> Iterator[Callable[..., World]]:
    with worlds(tmp_path) as build:
        yield build


def test_items_and_endings_in_sequence_order(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(
            item(0, 2, 1, 1), ended(1, 3), item(4, 1, 4), ended(5, 2, Ending.FILTERED, "keep_most"), item(7, 2, 8, 64)
        )
        found = totals(peer, 8)
    assert found.completed == 2
    assert found.filtered == 3  # 8 is filtered in the cloud
    assert found.dropped == {"overload": 3}
    rows = world.rows()
    assert [(row["sequence"], row["ending"], row["detail"]) for row in rows] == [
        (0, "completed", None), (1, "dropped", "overload"), (2, "dropped", "overload"), (3, "dropped", "overload"),
        (4, "completed", None),
    ] + [(n, "filtered", "keep_most") for n in (5, 6, 7)]  # fmt: skip


def test_times_are_the_clouds_less_the_items_age(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(
            item(0, 2, 1, 1, age_us=1_500_000),
            ended(1, 3, Ending.FILTERED, "keep_most", oldest_age_us=3_000_000, newest_age_us=1_000_000),
        )
        totals(peer, 4)
    assert [world.unix_now - row["captured_at"] for row in world.rows()] == [1.5, 3.0, 2.0, 1.0]
    assert {row["finished_at"] for row in world.rows()} == {world.unix_now}


def test_nothing_is_acknowledged_before_it_is_recorded(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a while; then everything is recorded once, and acknowledged."""
    full, tried = threading.Event(), threading.Event()
    full.set()
    write = SqliteStore.write

    def maybe(self: SqliteStore, *args: Any) -> None:
        if full.is_set():
            tried.set()
            raise StoreError("the disk is full")
        write(self, *args)

    monkeypatch.setattr(SqliteStore, "write", maybe)
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(20)))
        assert tried.wait(20)
        again, welcome = world.connect()  # it comes back meanwhile, and is told the truth
        assert welcome.totals.next_sequence == 0
        with again:
            again.send(*(item(n, 2, 1, 1) for n in range(25)))
            full.clear()
            assert totals(again, 25).completed == 25
    assert [row["sequence"] for row in world.rows()] == list(range(25))


def test_a_later_server_knows_what_is_recorded(make: Callable[..., World], tmp_path: Path) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1), ended(1))
        totals(peer, 2)
    world.close()
    second = make()
    peer, welcome = second.connect()
    with peer:
        assert (welcome.totals.next_sequence, welcome.totals.completed) == (2, 1)
        assert welcome.totals.dropped == {"overload": 1}
        peer.send(item(2, 2, 3, 9), bye(3))
        farewell = decode_totals(peer.until(Kind.FAREWELL).head)
    assert (farewell.completed, farewell.next_sequence) == (2, 3)


def test_a_bye_waits_for_the_last_record(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(200)), bye(200))
        assert decode_totals(peer.until(Kind.FAREWELL).head).completed == 200
        assert peer.closed()
    assert len(world.rows()) == 200


def test_other_devices_are_not_concerned(make: Callable[..., World]) -> None:
    world = make()
    first, _ = world.connect(device="first")
    second, _ = world.connect(device="second")  # the same session's number, by chance
    with first, second:
        for peer in (first, second):
            peer.send(item(0, 2, 1, 1))
            totals(peer, 1)
    assert sorted(row["device"] for row in world.rows()) == ["first", "second"]


def test_a_stopping_server_finishes_what_has_come_in_and_takes_no_more(make: Callable[..., World]) -> None:
    world = make()
    held = Held(world)
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(3)))
        while len(held.units) < 3:
            pass_by(world)
        world.cloud.stop()
        refusal = stranger(world)
        while refusal is None:
            refusal = stranger(world)
        assert refusal.code == Refusal.STOPPING
        assert refusal.retry_after_s > 0
        peer.send(item(3, 2, 1, 1))
        stranger(world)  # that has come now
        held.let_go()
        assert totals(peer, 3).completed == 3
        world.close()
        assert peer.closed()
    assert held.units == []
    assert [row["sequence"] for row in world.rows()] == [0, 1, 2]


ONLY_HERE = """
import multiprocessing

if multiprocessing.parent_process() is not None:
    raise RuntimeError("not in a worker's process")

def first():
    return True, 1

def last(number):
    return True

tasks = [first, last]
"""


@pytest.mark.parametrize("use_tls", [True, False])
def test_a_weight_of_a_device_that_is_not_enrolled_is_told_at_the_start(
    use_tls: bool, tmp_path: Path, undo_imports: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Without TLS nobody is enrolled, and names are free."""
    CloudIdentity(tmp_path / "state").enroll("door")
    config = CloudConfig(
        host="127.0.0.1", port=0, app=COUNTER, workers=1, results=("none",), state_dir=tmp_path / "state",
        use_tls=use_tls, weights={"door": 2.0, "yard": 3.0, "attic": 0.5},
    )  # fmt: skip
    cloud = Cloud(config)
    try:
        cloud.start()
    finally:
        cloud.close()
    told = [record.getMessage() for record in caplog.records if "--weight" in record.getMessage()]
    assert len(told) == use_tls
    assert all("is enrolled as attic or yard;" in line for line in told)


@pytest.mark.usefixtures("undo_imports")
@pytest.mark.parametrize("failing", ["port", "engine"])
def test_what_has_started_is_closed_again_where_a_later_part_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    app = tmp_path / "only_here.py"
    app.write_text(ONLY_HERE)
    store = tmp_path / "results.sqlite"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if failing == "engine":
            taken.close()
        config = CloudConfig(
            host="127.0.0.1", port=port, app=str(app), engine="processes", workers=2,
            results=(f"sqlite:{store}", f"jsonl:{tmp_path / 'results.jsonl'}"), state_dir=tmp_path / "state",
        )  # fmt: skip
        threads = set(threading.enumerate())
        with pytest.raises(LinkError if failing == "port" else AppError):
            Cloud(config)
    assert set(threading.enumerate()) == threads
    assert multiprocessing.active_children() == []
    assert find_loopback_token(port) is None
    socket.create_server(("127.0.0.1", port)).close()
    SqliteStore(store).close()  # nobody has its lock


def stranger(world: World) -> RefusalMessage | None:
    """Asks to be let in. Returns why not, if that is so."""
    with Peer(world.cloud.port) as peer:
        peer.send(hello(world.chain, "stranger", os.urandom(16)).encode())
        frame = peer.frame()
        assert frame is not None
        return RefusalMessage.decode(frame.head) if frame.kind is Kind.REFUSAL else None
