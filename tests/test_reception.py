"""Who is let in, what is taken in, what is told, and what is forgotten; with devices spoken by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from task_offload.cloud_session import CloudSession
from task_offload.observe.cloud_costs import Shares
from task_offload.reception import (
    COSTS_EVERY_S,
    FORGET_AFTER_S,
    FULL_COME_BACK_S,
    LINES_PER_MINUTE,
    MEASURE_EVERY_S,
    MOST_SESSIONS,
)
from task_offload.wire.messages import Costs, Ending, Kind, Refusal, bye, decode_totals, item_prefix
from tests.support.peers import Peer, hello, item
from tests.support.worlds import SESSION, Held, World, ended, pass_by, totals, worlds


@pytest.fixture
def make(tmp_path: Path, undo_imports: None) -> Iterator[Callable[..., World]]:
    with worlds(tmp_path) as build:
        yield build


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


def test_without_results_it_begins_where_the_device_says(make: Callable[..., World]) -> None:
    world = make(results="none")
    peer, welcome = world.connect(acked=70)
    with peer:
        assert welcome.totals.next_sequence == 70
        peer.send(item(70, 2, 1, 1))
        found = totals(peer, 71)
    assert (found.completed, found.next_sequence) == (1, 71)


def test_a_store_that_is_an_older_backup_goes_on_from_its_counts(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1), ended(1), bye(2))
        peer.until(Kind.FAREWELL)
    peer, welcome = world.connect(acked=70)
    with peer:
        assert (welcome.totals.next_sequence, welcome.totals.completed) == (70, 1)
        peer.send(item(70, 2, 1, 1))
        found = totals(peer, 71)
    assert (found.completed, found.dropped) == (2, {"overload": 1})


def test_a_bye_that_forgets_items_is_an_error(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1), bye(2))
        assert peer.refusal().code == Refusal.PROTOCOL


def test_a_device_that_was_killed_may_leave_without_knowing_how_far_it_had_come(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(*(item(n, 2, 1, 1) for n in range(3)))
        totals(peer, 3)
    again, _ = world.connect()
    with again:
        again.send(bye(1))
        assert decode_totals(again.until(Kind.FAREWELL).head).next_sequence == 3


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


def test_a_full_cloud_tells_new_devices_when_to_come_back_and_keeps_those_it_has(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_offload.reception.MAX_DEVICES", 2)
    world = make()
    first, _ = world.connect(device="first")
    second, _ = world.connect(device="second")
    with first, second:
        third = Peer(world.cloud.port)
        with third:
            third.send(hello(world.chain, "third", os.urandom(16)).encode())
            refusal = third.refusal()
        assert (refusal.code, refusal.retry_after_s) == (Refusal.BUSY, FULL_COME_BACK_S)
        assert "2 devices are connected" in refusal.message
        again, _ = world.connect(device="first")  # its session is known
        with again:
            again.send(item(0, 2, 1, 1))
            totals(again, 1)
        second.send(item(0, 2, 1, 1))
        totals(second, 1)
    assert world.cloud.reception.rejected["busy"] == 1


@contextmanager
def held_at(gate: str, folder: Path) -> Iterator[None]:
    """Items stay at a gate of the app until the block ends."""
    os.mkfifo(folder / gate)
    file = os.open(folder / gate, os.O_RDWR)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(gate, str(folder / gate))
            yield
    finally:
        os.close(file)


def pass_time(world: World, seconds: float) -> None:
    """The reception looks every half second how full the cloud is; meanwhile a device that it knows connects again."""
    for _ in range(int(seconds / MEASURE_EVERY_S)):
        world.connect()[0].socket.close()  # the listener is done with its last tick
        world.now += MEASURE_EVERY_S
        while world.cloud.reception._measured_at < world.now:
            world.connect()[0].socket.close()


@pytest.mark.parametrize(("gate", "queue"), [("WORK_GATE", 0), ("LAST_GATE", 1)])
def test_one_slow_item_does_not_fill_the_cloud(
    gate: str, queue: int, make: Callable[..., World], tmp_path: Path
) -> None:
    world = make()
    with held_at(gate, tmp_path):
        peer, _ = world.connect()
        with peer:
            peer.send(item(0, 2, 1, 1))
            while not world.cloud.queues()[queue].taken:
                pass_by(world)
            pass_time(world, 20.0)
            world.connect(device="new")[0].socket.close()


def test_what_waits_for_an_earlier_item_of_its_device_does_not_fill_the_cloud(
    make: Callable[..., World], tmp_path: Path
) -> None:
    world = make()
    with held_at("WORK_GATE", tmp_path):
        peer, _ = world.connect()
        with peer:
            peer.send(item(0, 2, 1, 1), *(ended(n, ending=Ending.FILTERED, detail="square") for n in range(1, 100)))
            peer.send(item(100, 4, {"number": 1}))
            while world.cloud.queues()[0].taken < 2:
                pass_by(world)
            pass_time(world, 20.0)
            world.connect(device="new")[0].socket.close()


@pytest.mark.parametrize("gate", ["WORK_GATE", "LAST_GATE"])
def test_a_cloud_whose_items_wait_takes_no_new_devices_until_they_do_not(
    gate: str, make: Callable[..., World], tmp_path: Path
) -> None:
    world = make()
    with held_at(gate, tmp_path):
        peer, _ = world.connect()
        with peer:
            peer.send(*(item(number, 2, 1, 1) for number in range(6)))
            while sum(queue.waiting for queue in world.cloud.queues()) < 4:
                pass_by(world)
            pass_time(world, 6.0)
            new = Peer(world.cloud.port)
            with new:
                new.send(hello(world.chain, "new", os.urandom(16)).encode())
                refusal = new.refusal()
            assert (refusal.code, refusal.retry_after_s) == (Refusal.BUSY, FULL_COME_BACK_S)
            assert "the cloud is full" in refusal.message
    peer, welcome = world.connect()
    with peer:
        if welcome.totals.next_sequence < 6:
            totals(peer, 6)
        pass_time(world, 6.0)
        world.connect(device="new")[0].socket.close()


def test_a_device_has_the_weight_that_it_was_given(make: Callable[..., World]) -> None:
    world = make(weights={"door": 4.0})
    door, _ = world.connect(device="door")
    yard, _ = world.connect(device="yard")
    with door, yard:
        weights = {each.device: each.lane.weight for each in world.cloud.reception.sessions.values()}
    assert weights == {"door": 4.0, "yard": 1.0}


def test_busy_time_is_known_by_a_number_that_no_other_session_ever_has(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object's id is another's as soon as the object has gone."""
    measured: list[set[int]] = []
    measure = Shares.measure

    def told(self: Shares, sessions: Mapping[int, Any], now_s: float) -> Any:
        measured.append(set(sessions))
        return measure(self, sessions, now_s)

    monkeypatch.setattr(Shares, "measure", told)
    world = make()
    peer, _ = world.connect()
    with peer:
        before = len(measured)
        world.now += 1.0
        while len(measured) == before:
            pass_by(world)
        assert world.cloud.reception.sessions["device", SESSION].lane.number in measured[-1]


def test_costs_are_told_with_an_ack_where_they_are_due(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        world.now += COSTS_EVERY_S
        peer.send(item(0, 2, 1, 1))
        assert Costs.decode(peer.until(Kind.COSTS).head).queued == 1
        totals(peer, 1)


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


def test_a_bad_payload_of_a_connection_that_is_gone_does_not_end_the_next(make: Callable[..., World]) -> None:
    world = make()
    held = Held(world)
    session = take_in_and_go_away(world, held, item_prefix(0, 0, 2, 0, 4, 0) + b"\xff" * 4)
    held.let_go()
    while session.totals.next_sequence == 0:
        pass_by(world)
    pass_by(world)
    peer, welcome = world.connect()
    with peer:
        assert welcome.totals.dropped == {"bad_payload": 1}
        peer.send(item(1, 2, 1, 1))
        while not held.units:
            pass_by(world)
        held.let_go()
        assert totals(peer, 2).completed == 1


def take_in_and_go_away(world: World, held: Held, *messages: bytes) -> CloudSession:
    """A session whose messages were taken in, and whose connection is gone."""
    peer, _ = world.connect()
    session = world.cloud.reception.sessions["device", SESSION]
    with peer:
        peer.send(*messages)
        while len(held.units) < len(messages):
            pass_by(world)
    while session.connection is not None:
        pass_by(world)
    return session


def test_a_session_that_stays_away_is_forgotten_but_not_its_books(make: Callable[..., World]) -> None:
    world = make()
    peer, _ = world.connect()
    with peer:
        peer.send(item(0, 2, 1, 1))
        totals(peer, 1)
    while world.cloud.reception.sessions["device", SESSION].connection is not None:
        world.connect(session=os.urandom(16), device="other")[0].socket.close()
    world.now += FORGET_AFTER_S + 1
    watcher, _ = world.connect(device="watcher")
    with watcher:
        for sequence in range(100):
            watcher.send(item(sequence, 2, 1, 1))
            totals(watcher, sequence + 1)
            if ("device", SESSION) not in world.cloud.reception.sessions:
                break
            world.now += 0.6
    assert ("device", SESSION) not in world.cloud.reception.sessions
    peer, welcome = world.connect()
    with peer:
        assert welcome.totals.next_sequence == 1


def test_a_device_that_crashes_again_and_again_takes_little_memory(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Each run begins a session that never leaves. Those with items on their way stay."""
    world = make()
    sessions = world.cloud.reception.sessions
    with caplog.at_level("INFO"):
        for number in range(100):
            peer, _ = world.connect(session=number.to_bytes(16, "big"))
            with peer:
                peer.send(item(0, 2, 1, 1))
                totals(peer, 1)
            if number == 0:
                sessions["device", bytes(16)].expected += 1  # one more that is not recorded yet
    assert len(sessions) <= 2 * MOST_SESSIONS  # the closing of some may not have been noticed yet
    assert ("device", bytes(16)) in sessions
    assert len([each for each in caplog.records if "device device" in each.message]) <= LINES_PER_MINUTE
    peer, welcome = world.connect(session=(50).to_bytes(16, "big"))
    with peer:
        assert welcome.totals.next_sequence == 1
    sessions["device", bytes(16)].expected -= 1


def test_what_devices_may_send_is_by_the_memory_that_the_server_may_have(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_offload.reception.memory_limit_bytes", lambda: 4_000_000)
    assert make().cloud.reception._memory_bytes == 1_000_000


def test_a_device_waits_when_it_has_its_part_of_the_memory(make: Callable[..., World]) -> None:
    """A thousand devices that each may have 64 MiB would have all of it after an outage."""
    world = make()
    held = Held(world)
    reception = world.cloud.reception
    reception._memory_bytes = 1_000_000
    greedy, _ = world.connect()
    other, _ = world.connect(device="other")
    with greedy, other:
        greedy.send(*(item(number, 2, bytes(100_000)) for number in range(20)))
        session = reception.sessions["device", SESSION]
        connection = session.connection
        assert connection is not None
        while not connection.paused:
            pass_by(world)
        other.send(item(0, 2, 1, 1))
        while not any(unit.item.device == "other" for unit in held.units):
            pass_by(world)
        assert session.expected < 8
        while session.totals.next_sequence < 20:
            assert session.unacked_bytes < 700_000
            held.let_go()
            pass_by(world)
        totals(greedy, 20)
        totals(other, 1)


def test_a_new_session_has_no_memory_of_its_own(make: Callable[..., World]) -> None:
    world = make()
    held = Held(world)
    reception = world.cloud.reception
    reception._memory_bytes = 1_000_000
    for number in range(3):
        peer, _ = world.connect(session=bytes([number] * 16))
        with peer:
            peer.send(item(0, 2, bytes(400_000)))
            while len(held.units) <= number:
                pass_by(world)
    again = Peer(world.cloud.port)
    with again:
        again.send(hello(world.chain, "device", os.urandom(16)).encode())
        refusal = again.refusal()
    assert (refusal.code, refusal.retry_after_s) == (Refusal.BUSY, FULL_COME_BACK_S)
    assert "earlier runs of this device" in refusal.message
    peer, _ = world.connect(session=bytes([2] * 16))
    with peer:
        connection = reception.sessions["device", bytes([2] * 16)].connection
        assert connection is not None
        peer.send(item(1, 2, bytes(400_000)), item(2, 2, 1, 1), bye(3))
        while not connection.paused:
            pass_by(world)
        units = [*held.units[2:], *held.units[:2]]  # its own first, and that is not enough
        held.units.clear()
        for unit in units:
            held.submit([unit])
            while unit.owner.totals.next_sequence <= unit.item.sequence:
                pass_by(world)
        assert connection.paused
        world.now += 0.6  # what waits for an earlier session is found at a tick
        while connection.paused:
            pass_by(world)
        while not held.units:
            pass_by(world)
        held.let_go()
        peer.until(Kind.FAREWELL)
