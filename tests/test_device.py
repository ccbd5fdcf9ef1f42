"""The device's side, wired: what its scheduler sees of a link that changes clouds, and of what earlier runs left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from task_offload.config import parse_device
from task_offload.device import ROOM_ENTRIES, OffloadRun
from task_offload.scheduling.observation import PayloadCost, TaskCost
from task_offload.task import load_app
from task_offload.transport.exchange import DeviceSession
from task_offload.wire.codec import Payload
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import Costs, Ending, PayloadBusy, TaskBusy, Totals, Welcome
from task_offload.wire.outbox import Entry
from tests.support.fault_proxy import FaultProxy
from tests.support.processes import APPS, Lab, Server

NOW = 1_800_000_000.0
COSTS = Costs(2.0, 0.5, 100, 1, 500_000, 10_000, (TaskBusy(1, 4, 4, 4000),), (PayloadBusy(1, 0, 4, 800),))


def welcome(*codecs: str) -> Welcome:
    return Welcome(Totals(), 2.0, 8.0, 1 << 26, 1 << 26, 1024, 2.0, 0.5, codecs)


def take_up(run: OffloadRun, session: DeviceSession, *codecs: str) -> None:
    """The cloud welcomes a session."""
    run.link._welcomed(session)
    run.welcomed(session, welcome(*codecs))


@pytest.fixture
def started(undo_imports: None) -> Iterator[Callable[..., OffloadRun]]:
    """A run whose link is up, as far as it knows; no thread of it runs."""
    made: list[OffloadRun] = []

    def start(*options: str) -> OffloadRun:
        config = parse_device(["1", "--host", "127.0.0.1", "--port", "1", "--no-tls", *options], {})
        run = OffloadRun(config, load_app(str(APPS / "counter.py")))
        run.link.away = False
        made.append(run)
        return run

    yield start
    for run in made:
        run.link.abandon()
        run.link.start()  # it ends at once, and closes what it had opened
        assert run.link.join(20.0)


def acknowledged(run: OffloadRun, session: DeviceSession, *, again: bool) -> None:
    """One item is sent and acknowledged: by an ack, or by the welcome of the connection after (`again`)."""
    outbox = session.outbox
    outbox.add(Entry(0, 1, NOW, Payload(b"", (), 50_000)))
    outbox.sent(1.0, 0)
    if again:
        outbox.rewind()
    run.learned(session, outbox.acknowledge(1), Totals(1, completed=1))


def test_the_scheduler_hears_at_each_connection_which_codecs_the_cloud_has(
    started: Callable[..., OffloadRun],
) -> None:
    run = started("--codec", "auto")
    for codecs in (("none", "zstd"), ("none",), ("none", "lz4", "zstd", "one of the future")):
        take_up(run, run.session, *codecs)
        assert run.observe(1.0).codecs == set(codecs) & set(available_codecs())


def test_a_jpeg_needs_nothing_that_the_cloud_may_lack(started: Callable[..., OffloadRun]) -> None:
    run = started("--codec", "jpeg:90")
    take_up(run, run.session, "none")
    assert run.observe(1.0).codecs == {"jpeg:90"}


def test_what_an_earlier_run_left_tells_the_scheduler_nothing(started: Callable[..., OffloadRun]) -> None:
    """It is delivered first, in codecs, at splits and under a load that this run knows nothing of."""
    run, earlier = started(), DeviceSession(bytes(16))
    run.meters.tag("none")
    take_up(run, earlier, "none")
    run.cost(earlier, COSTS)
    acknowledged(run, earlier, again=False)
    found = run.observe(1.0)
    assert found.in_local_outage
    assert (found.finished, found.acked, found.acked_bytes, found.transfer_bytes) == (0, 0, 0, 0)
    assert found.payloads == {}
    assert found.cloud == (TaskCost(),) * 5
    assert run.books.delivered_earlier == 1

    take_up(run, run.session, "none")
    run.cost(run.session, COSTS)
    acknowledged(run, run.session, again=False)
    found = run.observe(2.0)
    assert not found.in_local_outage
    assert (found.finished, found.acked, found.acked_bytes, found.transfer_bytes) == (1, 1, 50_000, 500_000)
    assert found.payloads == {(1, "none"): PayloadCost(0, 0, 0.0, 4, 800e-6)}
    assert found.cloud[1] == TaskCost(4, 0.004, 4)


def test_what_a_welcome_acknowledges_says_nothing_of_the_new_link(started: Callable[..., OffloadRun]) -> None:
    """It was sent on the connection before, and came over that."""
    run = started()
    take_up(run, run.session, "none")
    acknowledged(run, run.session, again=True)
    found = run.observe(1.0)
    assert found.finished == 1
    assert (found.acked, found.acked_bytes, found.rtt_s) == (0, 0, None)


def test_only_what_is_finished_has_a_latency(started: Callable[..., OffloadRun]) -> None:
    run = started("--max-latency", "100")
    take_up(run, run.session, "none")
    outbox = run.session.outbox
    for sequence, kind in enumerate((Ending.DROPPED, Ending.FILTERED)):
        outbox.add(Entry(sequence, 1, time.monotonic() - 60.0, ending=kind, detail="overload"))
        outbox.sent(1.0, 0)
    run.learned(run.session, outbox.acknowledge(1), Totals(1, dropped={"overload": 1}))
    found = run.observe(1.0)
    assert (run.meters.latency.count, found.finished, found.late) == (0, 0, 0)
    run.learned(run.session, outbox.acknowledge(2), Totals(2, 0, 1, {"overload": 1}))
    found = run.observe(2.0)
    assert (run.meters.latency.count, found.finished, found.late) == (1, 1, 1)


def check_rows(server: Server, count: int) -> None:
    assert [(row["ending"], row["detail"], row["result"]) for row in server.rows()] == [
        ("completed", None, 20_000 * number) for number in range(count)
    ]


def test_a_cloud_without_the_codec_gets_none_of_it_not_even_of_an_outage(
    lab: Lab, proxies: Callable[..., FaultProxy]
) -> None:
    pytest.importorskip("zstandard")
    server = lab.server("plane", "--no-tls", env=lab.lacking("zstandard"))
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = lab.device(
        "plane", "1", "--no-tls", "--codec", "zstd", port=proxy.port,
        env={"LOUD": "1", "CAPTURE_GATE": str(gate.path)},
    )  # fmt: skip
    gate.let(5)
    proxy.tap.wait_for_ack(5)
    device.wait_for("codec zstd -> none: payloads encoded with none instead of zstd: the cloud cannot decode zstd")
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(5)
    device.wait_for("count 9$")
    proxy.refuse(False)
    proxy.tap.wait_for_ack(10)
    gate.close()
    device.finish()
    server.stop()
    check_rows(server, 10)


@pytest.mark.parametrize("options", [(), ("--spool", "spool")], ids=["in memory", "on disk"])
def test_what_waits_in_a_codec_survives_a_cloud_that_comes_back_without_it(
    lab: Lab, proxies: Callable[..., FaultProxy], options: tuple[str, ...]
) -> None:
    pytest.importorskip("zstandard")
    server = lab.server("plane", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = lab.device(
        "plane", "1", "--no-tls", "--codec", "zstd", *options, port=proxy.port,
        env={"LOUD": "1", "CAPTURE_GATE": str(gate.path)},
    )  # fmt: skip
    gate.let(5)
    proxy.tap.wait_for_ack(5)
    proxy.refuse()
    proxy.cut()
    server.stop()
    device.wait_for("no connection to")
    gate.let(20)
    device.wait_for("count 24$")
    server = lab.server("plane", "--no-tls", env=lab.lacking("zstandard"))
    proxy.retarget(server.port)
    proxy.refuse(False)
    proxy.tap.wait_for_ack(25)
    gate.close()
    assert device.finish()["reconnects"] == 1
    server.stop()
    check_rows(server, 25)


def room(run: OffloadRun) -> bool:
    with run.link.condition:
        return run._has_room()


def deliver(run: OffloadRun) -> None:
    """The oldest entry is sent, and acknowledged."""
    outbox = run.session.outbox
    entry = outbox.next()
    assert entry is not None
    outbox.sent(1.0, 0)
    outbox.acknowledge(entry.sequence + entry.count)


def test_what_an_outage_leaves_in_memory_is_bounded_by_bytes(started: Callable[..., OffloadRun]) -> None:
    """While the cloud is away all payloads are those of one split; those after it may be a thousand times as large."""
    run = started("--overload", "newest", "--spool-limit", "100k")
    run.link.away = True
    outbox, sequence = run.session.outbox, 0
    while not outbox.full:
        assert run._wait_for_room()
        outbox.add(Entry(sequence, 1, NOW, Payload(b"", (), 200)))
        sequence += 1
    run.link.away = False
    take_up(run, run.session, "none")
    end = sequence + 100
    for large in range(sequence, end):
        while not room(run):  # two entries are delivered, and the backlog is shorter than it was
            deliver(run)
        outbox.add(Entry(large, 1, NOW, Payload(b"", (), 50_000)))
        assert outbox.waiting_bytes < 150 * 1024, "the limit, and the item that goes beyond it"
    assert run.observe(1.0).dropped > 0
    outbox.take_all()


def test_live_items_are_as_new_as_before_an_outage_in_the_end(started: Callable[..., OffloadRun]) -> None:
    """Three are captured while the link carries one."""
    run = started("--overload", "newest")
    outbox, sequence = run.session.outbox, 0
    run.link.away = True
    for sequence in range(50):
        assert room(run)
        outbox.add(Entry(sequence, 1, NOW, Payload(b"", (), 200)))
    run.link.away = False
    take_up(run, run.session, "none")
    taken = 0
    for tick in range(400):
        if room(run):
            sequence, taken = sequence + 1, taken + 1
            outbox.add(Entry(sequence, 1, NOW, Payload(b"", (), 200)))
        if tick % 3 == 0:
            deliver(run)
    assert outbox.waiting_entries <= ROOM_ENTRIES
    assert taken > 50, "half of what the link carried, and all of it when the backlog had gone"
    outbox.take_all()


def test_live_items_wait_on_disk_while_those_of_an_earlier_run_are_delivered(
    started: Callable[..., OffloadRun], tmp_path: Path
) -> None:
    run, earlier = started("--overload", "newest", "--spool", str(tmp_path)), DeviceSession(bytes(16))
    take_up(run, earlier, "none")
    outbox = run.session.outbox
    for sequence in range(10):
        assert room(run), "they would be dropped"
        outbox.add(Entry(sequence, 1, NOW, Payload(b"", (), 200)))

    take_up(run, run.session, "none")
    for _ in range(10):
        assert room(run), "the backlog goes first"
        deliver(run)
    assert room(run)
    for sequence in (10, 11):
        outbox.add(Entry(sequence, 1, NOW, Payload(b"", (), 200)))
    assert not room(run), "from here on the newest wins"
    assert run.spool is not None
    outbox.take_all()
    run.spool.close()
