"""What a device's run sees of its cloud, of what earlier runs left, and from one look to the next."""

from __future__ import annotations

import pytest

from task_offload.observe.books import Books
from task_offload.observe.load import Delays
from task_offload.observe.meters import DeviceMeters
from task_offload.observer import CloudView, Observer
from task_offload.scheduling.observation import PayloadCost, TaskCost
from task_offload.transport.exchange import DeviceSession
from task_offload.wire.codec import Payload
from task_offload.wire.messages import Costs, Ending, PayloadBusy, TaskBusy, Totals, Welcome
from task_offload.wire.outbox import Entry
from tests.support.links import FakeLink

COSTS = Costs(2.0, 0.5, 100, 1, 500_000, 10_000, (TaskBusy(1, 4, 4, 4000),), (PayloadBusy(1, 0, 4, 800),))


class FakeDelays:
    """Counts how often somebody looked."""

    def __init__(self) -> None:
        self.looks = 0

    def measure(self) -> Delays:
        self.looks += 1
        return Delays(0.5 * self.looks, 3.0)


class World:
    """A run that sees what a test shows it."""

    def __init__(self, *codecs: str, max_latency_s: float | None = None) -> None:
        self.now = 1000.0
        self.cpu_s = 7.0
        self.link = FakeLink()
        self.session = self.link.live
        self.books, self.meters, self.delays = Books(), DeviceMeters(5, max_latency_s), FakeDelays()
        self.cloud = CloudView(
            ("host", 1), self.session, codecs or ("none",), self.books, self.meters, lambda: self.now
        )  # fmt: skip
        self.observer = Observer(
            self.books, self.meters, self.link, self.cloud, 30.0, 2, self.delays, lambda: self.cpu_s
        )  # type: ignore[arg-type]  # fmt: skip
        self.observe = self.observer.observe

    def welcome(self, *codecs: str, session: DeviceSession | None = None, **more: bool) -> None:
        told = Welcome(Totals(), 2.0, 8.0, 1 << 26, 1 << 26, 1024, 2.0, 0.5, codecs, **more)
        self.cloud.welcomed(session or self.session, told)

    def acknowledge(self, session: DeviceSession, *, again: bool = False) -> None:
        """One item is sent and acknowledged: by an ack, or by the welcome of the connection after (`again`)."""
        outbox = session.outbox
        outbox.add(Entry(0, 1, self.now, Payload(b"", (), 50_000)))
        outbox.sent(1.0, 0)
        if again:
            outbox.rewind()
        self.cloud.learned(session, outbox.acknowledge(1), Totals(1, completed=1))


def test_each_welcome_says_which_codecs_the_cloud_has_and_how_much_it_takes() -> None:
    world = World("zstd", "lz4", "none")
    assert world.observe(1.0).codecs == {"zstd", "lz4", "none"}
    assert world.cloud.window == 1
    assert not world.cloud.found.is_set()
    for codecs in (("none", "zstd"), ("none",), ("none", "lz4", "zstd", "one of the future")):
        world.welcome(*codecs)
        found = world.observe(1.0)
        assert found.codecs == set(codecs) & {"zstd", "lz4", "none"}
        assert (found.window, found.workers, found.main_share) == (1024, 2.0, 0.5)
    assert world.cloud.found.is_set()


def test_a_jpeg_needs_nothing_that_the_cloud_may_lack() -> None:
    world = World("jpeg:90")
    world.welcome("none")
    assert world.observe(1.0).codecs == {"jpeg:90"}


def test_an_app_of_other_source_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.welcome("none")
    assert "source" not in caplog.text
    world.welcome("none", source_differs=True)
    assert "the server's app is other source code than this device's" in caplog.text


def test_what_an_earlier_run_left_tells_the_scheduler_nothing() -> None:
    """It is delivered first, in codecs, at splits and under a load that this run knows nothing of."""
    world, earlier = World(), DeviceSession(bytes(16))
    world.link.takes_live = False
    world.meters.tag("none")
    world.welcome("none", session=earlier)
    world.cloud.cost(earlier, COSTS)
    world.acknowledge(earlier)
    found = world.observe(1.0)
    assert found.in_local_outage
    assert (found.finished, found.acked, found.acked_bytes, found.transfer_bytes) == (0, 0, 0, 0)
    assert found.payloads == {}
    assert found.cloud == (TaskCost(),) * 5
    assert world.books.delivered_earlier == 1

    world.link.takes_live = True
    world.welcome("none")
    world.cloud.cost(world.session, COSTS)
    world.acknowledge(world.session)
    found = world.observe(2.0)
    assert not found.in_local_outage
    assert (found.finished, found.acked, found.acked_bytes, found.transfer_bytes) == (1, 1, 50_000, 500_000)
    assert found.payloads == {(1, "none"): PayloadCost(0, 0, 0.0, 4, 800e-6)}
    assert found.cloud[1] == TaskCost(4, 0.004, 4)


def test_what_a_welcome_acknowledges_says_nothing_of_the_new_link() -> None:
    """It was sent on the connection before, and came over that."""
    world = World()
    world.acknowledge(world.session, again=True)
    found = world.observe(1.0)
    assert found.finished == 1
    assert (found.acked, found.acked_bytes, found.rtt_s) == (0, 0, None)


def test_only_what_is_finished_has_a_latency() -> None:
    world = World(max_latency_s=0.1)
    outbox = world.session.outbox
    for sequence, kind in enumerate((Ending.DROPPED, Ending.FILTERED)):
        outbox.add(Entry(sequence, 1, world.now - 60.0, ending=kind, detail="overload"))
        outbox.sent(1.0, 0)
    world.cloud.learned(world.session, outbox.acknowledge(1), Totals(1, dropped={"overload": 1}))
    found = world.observe(1.0)
    assert (world.meters.latency.count, found.finished, found.late) == (0, 0, 0)
    world.cloud.learned(world.session, outbox.acknowledge(2), Totals(2, 0, 1, {"overload": 1}))
    found = world.observe(2.0)
    assert (world.meters.latency.count, found.finished, found.late) == (1, 1, 1)


def test_an_observation_is_of_what_came_since_the_one_before() -> None:
    world = World()
    world.cpu_s = 8.0
    world.link.busy_seconds = 0.25  # of earlier sessions' items, before the run began
    world.observer.begin(10.0)
    world.cpu_s, world.link.busy_seconds, world.link.full_seconds = 8.5, 0.5, 0.125
    world.meters.captured, world.books.completed = 5, 2
    first = world.observe(10.5)
    assert world.observer.observed_at == 10.5
    assert (first.interval_s, first.cpu_s, first.link_busy_s, first.window_full_s) == (0.5, 0.5, 0.5, 0.125)
    assert (first.captured, first.backlog, first.source_rate, first.cores) == (5, 3, 30.0, 2)
    assert (first.delayed_s, first.threads) == (1.0, 3.0), "the second look: the first one began"
    world.link.go_away()
    world.cpu_s, world.link.busy_seconds = 8.75, 1.5
    second = world.observe(11.5)
    assert (second.interval_s, second.cpu_s, second.link_busy_s, second.window_full_s) == (1.0, 0.25, 1.0, 0.0)
    assert (second.captured, second.backlog, second.in_local_outage) == (0, 3, True)
