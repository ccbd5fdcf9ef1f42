"""The cloud in this process, with devices spoken by hand: its books, its acks, and what it forgets."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from task_offload.cloud import FORGET_AFTER_S, Cloud
from task_offload.config import CloudConfig
from task_offload.errors import StoreError
from task_offload.results.sqlite import SqliteStore
from task_offload.task import Chain, load_app
from task_offload.wire.messages import (
    Costs,
    Ending,
    EndingRange,
    Kind,
    Load,
    Refusal,
    RefusalMessage,
    Totals,
    Welcome,
    bye,
    decode_totals,
)
from tests.support.peers import Peer, hello, item
from tests.support.processes import APPS, Row, read_rows

COUNTER = str(APPS / "counter.py")
SESSION = bytes(range(16))


class World:
    def __init__(self, folder: Path, results: str | None = None) -> None:
        self.now = 1000.0
        self.unix_now = 1_800_000_000.0
        self.store = folder / "results.sqlite"
        config = CloudConfig(
            host="127.0.0.1", port=0, app=COUNTER, workers=2, results=(results or f"sqlite:{self.store}",),
            use_tls=False, drain_s=5.0,
        )  # fmt: skip
        self.cloud = Cloud(config, clock=lambda: self.now, unix_clock=lambda: self.unix_now)
        self.chain: Chain = load_app(COUNTER)
        self._thread = threading.Thread(target=self.cloud.run)
        self.cloud.start()
        self._thread.start()

    def connect(self, session: bytes = SESSION, device: str = "device", acked: int = 0) -> tuple[Peer, Welcome]:
        peer = Peer(self.cloud.port)
        peer.send(hello(self.chain, device, session, acked=acked).encode())
        return peer, Welcome.decode(peer.until(Kind.WELCOME).head)

    def rows(self) -> list[Row]:
        return read_rows(self.store)

    def close(self) -> None:
        self.cloud.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.cloud.close()


@pytest.fixture
def make(tmp_path: Path, undo_imports: None) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(**more: Any) -> World:
        made.append(World(tmp_path, **more))
        return made[-1]

    yield build
    for world in made:
        world.close()


def totals(peer: Peer, items: int) -> Totals:
    """The first ack that covers so many items."""
    while (found := decode_totals(peer.until(Kind.ACK).head)).next_sequence < items:
        pass
    return found


def ended(first: int, count: int = 1, ending: Ending = Ending.DROPPED, detail: str = "overload", **more: Any) -> bytes:
    return EndingRange(first, count, ending, 2, detail, **more).encode()


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


def test_a_range_of_which_a_part_came_before(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(ended(0, 2))
        totals(peer, 2)
    peer, welcome = world.connect()
    with peer:
        assert welcome.totals.next_sequence == 2
        peer.send(ended(0, 5), item(5, 2, 1, 1))
        found = totals(peer, 6)
    assert (found.completed, found.dropped) == (1, {"overload": 5})
    assert [row["sequence"] for row in world.rows()] == list(range(6))


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


def test_without_results_it_begins_where_the_device_says(make: Callable[..., World]) -> None:
    world = make(results="none")
    peer, welcome = world.connect(acked=70)
    with peer:
        assert welcome.totals.next_sequence == 70
        peer.send(item(70, 2, 1, 1))
        found = totals(peer, 71)
    assert (found.completed, found.next_sequence) == (1, 71)


def test_a_bye_waits_for_the_last_record(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(200)), bye(200))
        assert decode_totals(peer.until(Kind.FAREWELL).head).completed == 200
        assert peer.closed()
    assert len(world.rows()) == 200


def test_a_bye_that_forgets_items_is_an_error(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1), bye(2))
        assert peer.refusal().code == Refusal.PROTOCOL


def test_the_same_session_on_a_newer_connection(make: Callable[..., World]) -> None:
    """The device lost the old connection before the cloud noticed."""
    world = make()
    old, _ = world.connect()
    new, _ = world.connect()
    with old, new:
        assert old.refusal().code == Refusal.REPLACED
        new.send(item(0, 2, 1, 1))
        totals(new, 1)


def test_a_newer_session_of_a_device_wins_while_it_is_there(make: Callable[..., World]) -> None:
    world = make()
    old, _ = world.connect()
    new, _ = world.connect(session=os.urandom(16))
    with old, new:
        assert old.refusal().code == Refusal.REPLACED
        again = Peer(world.cloud.port)
        with again:
            again.send(hello(world.chain, "device", SESSION).encode())
            assert "give each device its own --device-name" in again.refusal().message
        new.send(bye(0))
        new.until(Kind.FAREWELL)
    back, _ = world.connect()
    with back:
        back.send(item(0, 2, 1, 1))
        totals(back, 1)


def test_other_devices_are_not_concerned(make: Callable[..., World]) -> None:
    world = make()
    first, _ = world.connect(device="first")
    second, _ = world.connect(device="second")  # the same session's number, by chance
    with first, second:
        for peer in (first, second):
            peer.send(item(0, 2, 1, 1))
            totals(peer, 1)
    assert sorted(row["device"] for row in world.rows()) == ["first", "second"]


def test_costs_are_told(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1, tag=3), item(1, 4, {"number": 1}, tag=4))
        totals(peer, 2)
        world.now += 1.0  # the listener looks a few times a second
        costs = Costs.decode(peer.until(Kind.COSTS).head)
    assert {(each.split, each.tag): each.items for each in costs.payloads} == {(2, 3): 1, (4, 4): 1}
    assert {each.task: each.items for each in costs.tasks} == {2: 1, 3: 1, 4: 2}
    assert costs.queued == 2


def test_a_devices_load_is_known(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    load = Load(0.5, 0.25, 0.75, 55.5, 123456)
    with peer:
        peer.send(load.encode(), item(0, 2, 1, 1))
        totals(peer, 1)
        [session] = world.cloud._sessions.values()
        assert session.load == load


def test_a_session_that_stays_away_is_forgotten_but_not_its_books(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1))
        totals(peer, 1)
    while world.cloud._sessions["device", SESSION].connection is not None:
        world.connect(session=os.urandom(16), device="other")[0].socket.close()
    world.now += FORGET_AFTER_S + 1
    watcher, _ = world.connect(device="watcher")
    with watcher:
        for sequence in range(100):
            watcher.send(item(sequence, 2, 1, 1))
            totals(watcher, sequence + 1)
            if ("device", SESSION) not in world.cloud._sessions:
                break
            world.now += 0.6
    assert ("device", SESSION) not in world.cloud._sessions
    peer, welcome = world.connect()
    with peer:
        assert welcome.totals.next_sequence == 1


def test_a_stopping_server_says_so(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(50)))
        totals(peer, 50)
        world.close()
        refusal: RefusalMessage | None = None
        while (frame := peer.frame()) is not None:
            if frame.kind is Kind.REFUSAL:
                refusal = RefusalMessage.decode(frame.head)
    assert refusal is None or refusal.code == Refusal.STOPPING
    assert len(world.rows()) == 50
