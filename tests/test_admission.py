"""The way in: who waits, for what, and what an outage leaves before the items that come after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from task_offload.admission import ROOM_ENTRIES, Admission
from task_offload.observe.books import Books
from task_offload.observe.meters import DeviceMeters
from task_offload.observer import CloudView
from task_offload.scheduling.mix import Mixer
from task_offload.scheduling.observation import Decision, Route
from task_offload.spool import DiskSpool
from task_offload.spooled_outbox import SpooledOutbox
from task_offload.wire.codec import Payload
from task_offload.wire.outbox import Entry, Outbox
from tests.support.links import FakeLink, WaitsError

OUTAGE_ROUTE = Route(4, "zstd")


class World:
    """An admission whose link says what a test lets it say, on a clock that stands still."""

    def __init__(self, outbox: Outbox | None = None, newest: bool = False) -> None:
        self.now = 100.0
        self.link = FakeLink(outbox)
        self.outbox = self.link.live.outbox
        self.books, self.meters = Books(), DeviceMeters(5)
        self.cloud = CloudView(("host", 1), self.link.live, ("zstd", "none"), self.books, self.meters)
        self.mixer = Mixer(Decision({2: 1.0}, "", codec="zstd"))
        self.admission = Admission(
            self.link, self.cloud, self.mixer, OUTAGE_ROUTE, self.books, self.meters, newest, lambda: self.now
        )  # type: ignore[arg-type]  # fmt: skip
        self.sequence = 0

    def put(self, size_bytes: int = 200) -> None:
        self.outbox.add(Entry(self.sequence, 1, self.now, Payload(b"", (), size_bytes)))
        self.sequence += 1

    def has_room(self) -> bool:
        try:
            return self.admission.wait_for_room()
        except WaitsError:
            return False

    def next_route(self, stopping: Callable[[], bool] = lambda: False) -> Route:
        return self.admission.next_route(stopping)

    def dropped(self) -> int:
        return self.meters.observe(0, 1, 0, 0, None, 1, 1, False).dropped

    def held_s(self) -> float:
        return self.meters.observe(0, 1, 0, 0, None, 1, 1, False).held_s


# -- routes -------------------------------------------------------------------------------------------------------


def test_a_route_is_the_decisions_and_another_one_while_the_cloud_is_away() -> None:
    world = World()
    assert world.next_route() == Route(2, "zstd")
    world.link.go_away()
    assert world.next_route() == OUTAGE_ROUTE
    world.link.come_back()
    world.mixer.follow(Decision({1: 1.0}, ""))
    assert world.next_route() == Route(1, "zstd")


def test_a_route_has_no_codec_that_the_cloud_lacks() -> None:
    world = World()
    world.cloud.codecs = frozenset(("none",))
    assert world.next_route() == Route(2, "none")
    world.link.go_away()
    assert world.next_route() == Route(4, "none"), "it is the same cloud that comes back, as far as we know"


def inside(world: World, items: int, most: float) -> World:
    world.meters.captured, world.admission.most_inside = items, most
    return world


def test_an_item_waits_until_those_before_it_let_it_be_in_time() -> None:
    world = inside(World(), 3, 3.0)

    def one_ends() -> None:
        world.now += 0.25
        world.books.completed += 1

    world.link.meanwhile = [one_ends]
    assert world.next_route() == Route(2, "zstd")
    assert world.link.meanwhile == []
    assert world.held_s() == 0.25, "the first task was held up for so long"
    assert world.next_route() == Route(2, "zstd")
    assert world.held_s() == 0.0


def test_who_waits_to_be_in_time_goes_on_when_the_cloud_goes_away() -> None:
    """What is captured now cannot be in time anyway, and the spool takes it."""
    world = inside(World(), 3, 3.0)
    world.link.meanwhile = [world.link.go_away]
    assert world.next_route() == OUTAGE_ROUTE


@pytest.mark.parametrize("how", ["the admission closes", "nothing more is captured", "the link ends"])
def test_nobody_waits_to_be_in_time_when(how: str) -> None:
    world, stop = inside(World(), 3, 3.0), [False]
    with pytest.raises(WaitsError):
        world.next_route()
    world.link.meanwhile = {
        "the admission closes": [world.admission.close],
        "nothing more is captured": [lambda: stop.__setitem__(0, True)],
        "the link ends": [lambda: setattr(world.link, "ended", True)],
    }[how]
    world.next_route(lambda: stop[0])
    assert world.link.meanwhile == []


# -- room ---------------------------------------------------------------------------------------------------------


def test_few_entries_wait_for_the_window() -> None:
    world = World()
    for _ in range(ROOM_ENTRIES):
        assert world.has_room()
        world.put()
    assert not world.has_room()
    world.link.meanwhile = [world.link.deliver]
    assert world.has_room()


@pytest.mark.parametrize("how", ["close", "ended"])
def test_no_more_room_at_the_end(how: str) -> None:
    world = World()
    for _ in range(ROOM_ENTRIES):
        world.put()
    world.link.meanwhile = [world.admission.close if how == "close" else lambda: setattr(world.link, "ended", True)]
    assert world.admission.wait_for_room() is False
    assert world.link.meanwhile == []


def test_a_full_spool_holds_items_up_where_none_may_be_dropped() -> None:
    world = World(Outbox(limit_bytes=10_000))
    world.link.go_away()
    while not world.outbox.full:
        assert world.has_room()
        world.put()
    assert not world.has_room()
    world.link.come_back()
    assert not world.has_room()
    world.link.deliver()
    assert world.has_room()
    assert world.dropped() == 0


def test_what_an_outage_leaves_in_memory_is_bounded_by_bytes() -> None:
    """While the cloud is away all payloads are those of one split; those after it may be a thousand times as large."""
    world = World(Outbox(100 * 1024), newest=True)
    outbox = world.outbox
    world.link.go_away()
    while not outbox.full:
        assert world.has_room()
        world.put()
    world.link.come_back()
    for _ in range(100):
        while not world.has_room():  # two entries are delivered, and the backlog is shorter than it was
            world.link.deliver()
        world.put(50_000)
        assert outbox.waiting_bytes < 150 * 1024, "the limit, and the item that goes beyond it"
    assert world.dropped() > 0


def test_live_items_are_as_new_as_before_an_outage_in_the_end() -> None:
    """Three are captured while the link carries one."""
    world = World(newest=True)
    world.link.go_away()
    for _ in range(50):
        assert world.has_room()
        world.put()
    world.link.come_back()
    taken = 0
    for tick in range(400):
        if world.has_room():
            taken += 1
            world.put()
        if tick % 3 == 0:
            world.link.deliver()
    assert world.outbox.waiting_entries <= ROOM_ENTRIES
    assert taken > 50, "half of what the link carried, and all of it when the backlog had gone"


def test_live_items_wait_on_disk_while_those_of_an_earlier_run_are_delivered(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path, 1 << 20)
    spool.begin("ab" * 16, b"")
    world = World(SpooledOutbox(spool, "ab" * 16, 1 << 20, drop_when_full=True), newest=True)
    world.link.takes_live = False
    for _ in range(10):
        assert world.has_room(), "they would be dropped"
        world.put()

    world.link.takes_live = True
    for _ in range(10):
        assert world.has_room(), "the backlog goes first"
        world.link.deliver()
    assert world.has_room()
    for _ in range(2):
        world.put()
    assert not world.has_room(), "from here on the newest wins"
    world.outbox.take_all()
    spool.close()
