"""The device's stages before the link, with fakes behind them: order, back-pressure, drops, and every way to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from task_offload.emulated_cpu import EmulatedCpu
from task_offload.errors import OffloadError, SourceError
from task_offload.observe.meters import MEASURED, DeviceMeters
from task_offload.pipeline import Pipeline
from task_offload.scheduling.observation import MOST_AHEAD, Route
from task_offload.task import Chain, Contract, Task, current_item
from task_offload.wire.codec import Decoder, Encoder
from task_offload.wire.messages import Ending
from task_offload.wire.outbox import Entry

PATIENCE_S = 20.0


class World:
    """A pipeline whose link is a list."""

    def __init__(
        self, *functions: Callable[..., Any], contracts: dict[int, Contract] | None = None, **more: Any
    ) -> None:
        contracts = contracts or {}
        self.chain = Chain(
            "test",
            tuple(Task(f"t{n}", function, contracts.get(n, Contract())) for n, function in enumerate(functions, 1)),
        )
        self.meters = DeviceMeters(len(functions))
        self.changed = threading.Condition()
        self.entries: list[Entry] = []
        self.carried = 0  # of the entries
        self.room = True
        self.routes: Iterator[Route] | None = None
        given: dict[str, Any] = {"newest": False, "cores": 1, **more}
        split = given.pop("split", 1)
        self.next_route: Callable[[Callable[[], bool]], Route] = lambda stopping: (
            next(self.routes) if self.routes else Route(split)
        )
        self.pipeline = Pipeline(
            self.chain,
            "device",
            "0" * 32,
            Encoder((), 0),
            "none",
            self.meters,
            lambda stopping: self.next_route(stopping),
            self._wait_for_room,
            self._put,
            self._carry,
            given.pop("newest"),
            given.pop("cores"),
            **given,
        )

    def _wait_for_room(self) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.room, PATIENCE_S)

    def _put(self, entry: Entry) -> None:
        with self.changed:
            self.entries.append(entry)
            self.changed.notify_all()

    def _carry(self) -> None:
        with self.changed:
            self.carried = len(self.entries)

    def wait_for(self, reached: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(reached, PATIENCE_S)

    def run(self) -> list[Entry]:
        self.pipeline.start()
        return self.end()

    def end(self) -> list[Entry]:
        for thread in (self.pipeline._capture_thread, *self.pipeline._workers):
            thread.join(PATIENCE_S)
        assert self.pipeline.ended
        assert self.carried == len(self.entries)
        return self.entries


def numbers(count: int) -> Callable[[], Any]:
    """A first task."""
    left = iter(range(count))

    def capture() -> Any:
        number = next(left, None)
        return False if number is None else (True, number)

    return capture


def last(*args: Any) -> bool:
    return False


def decoded(entry: Entry) -> tuple[Any, ...]:
    assert entry.payload is not None
    body = b"".join(bytes(buffer) + bytes(-len(buffer) % 64) for buffer in entry.payload.buffers)
    return tuple(Decoder(()).decode(memoryview(bytes(entry.payload.head)), memoryview(bytearray(body))))


def test_items_become_entries_in_order() -> None:
    world = World(numbers(20), lambda n: (True, n * 10), last, split=2)
    entries = world.run()
    assert [(entry.sequence, entry.split, decoded(entry)) for entry in entries] == [
        (n, 2, (n * 10,)) for n in range(20)
    ]
    assert world.meters.captured == 20
    assert world.meters.splits == {2: 20}


def test_a_task_sees_the_time_of_day_an_entry_has_the_steady_clocks() -> None:
    """An entry's age is told when it is sent, and the time of day may have been set meanwhile."""
    seen = []

    def work(n: int) -> Any:
        seen.append(current_item().captured_at)
        return n > 0, n

    before, steady_before = time.time(), time.monotonic()
    entries = World(numbers(2), work, last, split=2).run()
    assert before <= min(seen) <= max(seen) <= time.time()
    for entry in entries:
        assert steady_before <= entry.captured_at <= time.monotonic()


def test_the_order_is_restored_behind_several_workers() -> None:
    """The first item is held up until all others are through."""
    others = threading.Event()
    seen = []

    def work(n: int) -> Any:
        if n == 0:
            assert others.wait(PATIENCE_S)
        else:
            seen.append(n)
            if len(seen) == 9:
                others.set()
        return True, n

    world = World(numbers(10), work, last, split=2, cores=3)
    assert [entry.sequence for entry in world.run()] == list(range(10))
    assert sorted(seen) == list(range(1, 10))


def test_no_more_is_done_before_an_item_than_is_kept() -> None:
    """The first item is held up until all are captured; those that are dropped count as done."""
    first, done = threading.Event(), []

    def work(n: int) -> Any:
        if n == 0:
            assert first.wait(PATIENCE_S)
        done.append(n)
        return True, n

    world = World(numbers(100), work, last, split=2, newest=True, cores=2)
    world.pipeline.start()
    world.pipeline._capture_thread.join(PATIENCE_S)
    assert len(done) < 2 * MOST_AHEAD
    first.set()
    assert [entry.sequence for entry in world.end()] == list(range(100))


def test_stateful_tasks_get_one_worker() -> None:
    world = World(numbers(1), lambda n: (True, n), last, contracts={2: Contract("device", True)}, split=2, cores=4)
    assert len(world.pipeline._workers) == 1
    world.run()


def test_it_tells_what_its_workers_are_at() -> None:
    begun, held = threading.Barrier(3), threading.Event()

    def work(n: int) -> Any:
        begun.wait(PATIENCE_S)
        assert held.wait(PATIENCE_S)
        return True, n

    world = World(numbers(2), lambda n: (True, n), work, last, split=3, cores=2)
    assert world.pipeline.longest_running() is None
    before_s = time.monotonic()
    world.pipeline.start()
    begun.wait(PATIENCE_S)
    running = world.pipeline.longest_running()
    assert running is not None
    assert before_s <= running.since_s <= time.monotonic()
    assert world.pipeline.task_of(running.item) == "t3"
    held.set()
    world.end()
    assert world.pipeline.longest_running() is None


def test_a_first_task_that_waits_is_not_at_work() -> None:
    waits, sensor = threading.Event(), threading.Event()

    def capture() -> Any:
        waits.set()
        return not sensor.wait(PATIENCE_S)

    world = World(capture, last)
    world.pipeline.start()
    assert waits.wait(PATIENCE_S)
    assert world.pipeline.longest_running() is None
    sensor.set()
    world.end()


def test_splits_may_change_with_every_item() -> None:
    world = World(numbers(30), lambda n: (True, (n, "a")), lambda n, a: (True, (n, a, "b")), last, cores=2)
    world.routes = (Route(1 + n % 3) for n in range(100))
    for n, entry in enumerate(world.run()):
        assert (entry.sequence, entry.split) == (n, 1 + n % 3)
        assert decoded(entry) == (n, "a", "b")[: entry.split]


def test_filtered_and_failing_items_are_entries_too() -> None:
    def work(n: int) -> Any:
        if n % 3 == 1:
            return False
        if n % 3 == 2:
            raise ValueError("no")
        return True, n

    entries = World(numbers(6), work, last, split=2).run()
    assert [(entry.ending, entry.detail) for entry in entries] == [
        (None, ""), (Ending.FILTERED, "t2"), (Ending.DROPPED, "task_error: t2: ValueError: no"),
    ] * 2  # fmt: skip


def test_items_that_end_without_a_payload_are_counted_by_their_route() -> None:
    world = World(numbers(6), lambda n: (n >= 4, n), last)
    world.routes = iter([Route(2, "zstd"), Route(1), *[Route(2)] * 5])
    world.run()
    assert world.meters.observe(0, 1, 0, 0, None, 1, 1, False).unsent == {(2, "zstd"): 1, (2, "none"): 2}
    assert not world.meters.observe(0, 1, 0, 0, None, 1, 1, False).unsent


def test_what_cannot_travel_is_a_task_error() -> None:
    [entry] = World(numbers(1), lambda n: (True, object()), last, split=2).run()
    assert entry.ending is Ending.DROPPED
    assert entry.detail.startswith("task_error: t2: PayloadError: ")


def test_what_cannot_travel_goes_on_to_a_split_where_it_can(caplog: pytest.LogCaptureFixture) -> None:
    chain = (numbers(3), lambda n: (True, (n, object())), lambda n, _: (True, n), last)
    world = World(*chain, split=2, detours=(1, 2, 3))
    assert [(entry.split, entry.ending, decoded(entry)) for entry in world.run()] == [(3, None, (n,)) for n in range(3)]
    observed = world.meters.observe(0, 1, 0, 0, None, 1, 1, False)
    assert observed.impossible == {2}
    assert observed.unsent == {(2, "none"): 3}
    assert dict(world.meters.splits) == {3: 3}
    assert caplog.text.count("split 2 is not possible, so its items go on to 3: ") == 1


def test_block_makes_the_first_task_wait() -> None:
    captured = []

    def capture() -> Any:
        captured.append(len(captured))
        return len(captured) <= 10, len(captured)

    world = World(capture, last)
    world.room = False
    world.pipeline.start()
    world.pipeline._capture_thread.join(0.05)
    assert world.pipeline._capture_thread.is_alive()
    assert len(captured) <= 4  # the queue's room, the one that waits, and one a worker may hold
    with world.changed:
        world.room = True
        world.changed.notify_all()
    assert len(world.end()) == 10
    assert world.meters.observe(0, 1, 0, 0, None, 1, 1, False).held_s > 0


def test_newest_drops_the_oldest_that_waits() -> None:
    world = World(numbers(10), last, newest=True)
    world.room = False
    world.pipeline.start()
    world.wait_for(lambda: len(world.entries) >= 8)  # the drops come out at once, in order
    with world.changed:
        world.room = True
        world.changed.notify_all()
    entries = world.end()
    assert [entry.sequence for entry in entries] == list(range(10))
    assert [entry.detail for entry in entries] == ["overload"] * 8 + ["", ""]
    assert decoded(entries[-1]) == (9,)


@pytest.mark.parametrize("count", [1, 3])
def test_it_ends_after_so_many_items(count: int) -> None:
    assert len(World(numbers(100), last, items=count).run()) == count


def test_pace() -> None:
    world = World(numbers(5), last, pace_s=3600.0)
    world.pipeline.start()
    world.wait_for(lambda: world.entries)
    world.pipeline.stop()
    assert len(world.end()) == 1


def test_stop_captures_nothing_more_and_finishes_what_is_captured() -> None:
    held, begun = threading.Event(), threading.Event()

    def work(n: int) -> Any:
        begun.set()
        assert held.wait(PATIENCE_S)
        return True, n

    world = World(numbers(1000), work, last, split=2)
    world.pipeline.start()
    assert begun.wait(PATIENCE_S)
    world.pipeline.stop()
    held.set()
    entries = world.end()
    assert len(entries) == world.meters.captured < 1000


def test_abort_gives_up_what_waits_and_what_is_worked_on() -> None:
    held, begun = threading.Event(), threading.Event()

    def work(n: int) -> Any:
        begun.set()
        assert held.wait(PATIENCE_S)
        return True, n

    world = World(numbers(1000), work, last, split=2)
    world.pipeline.start()
    assert begun.wait(PATIENCE_S)
    world.pipeline.abort()
    held.set()
    assert world.end() == []


def test_a_stop_while_an_item_waits_for_its_route_captures_nothing() -> None:
    asked, stopped = threading.Event(), threading.Event()
    told: list[bool] = []
    world = World(numbers(1000), last)

    def wait_for_route(stopping: Callable[[], bool]) -> Route:
        told.append(stopping())
        asked.set()
        assert stopped.wait(PATIENCE_S)
        told.append(stopping())
        return Route(1)

    world.next_route = wait_for_route
    world.pipeline.start()
    assert asked.wait(PATIENCE_S)
    world.pipeline.stop()
    stopped.set()
    assert world.end() == []
    assert told == [False, True]
    assert world.meters.captured == 0


def test_a_source_that_is_gone_ends_it_with_its_error() -> None:
    captured = numbers(3)

    def capture() -> Any:
        found = captured()
        if found is False:
            raise SourceError("unplugged")
        return found

    world = World(capture, last)
    assert len(world.run()) == 3
    assert str(world.pipeline.error) == "unplugged"


def test_a_sensor_that_fails_is_tried_again() -> None:
    calls = []

    def capture() -> Any:
        calls.append(1)
        if len(calls) <= 3:
            raise OSError("bus error")
        return len(calls) <= 5, len(calls)

    world = World(capture, last)
    entries = world.run()
    assert [entry.detail for entry in entries] == ["task_error: t1: OSError: bus error"] * 3 + ["", ""]
    assert world.pipeline.error is None


def test_nothing_more_when_there_will_be_no_room() -> None:
    world = World(numbers(10), last)
    world.pipeline._wait_for_room = lambda: False
    world.pipeline.start()
    world.pipeline._workers[0].join(PATIENCE_S)
    assert not world.pipeline._workers[0].is_alive()
    world.pipeline.abort()
    world.end()
    assert world.entries == []


def test_a_bug_ends_the_run_with_an_error_and_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    world = World(numbers(1000), last)

    def broken(entry: Entry) -> None:
        raise RuntimeError("a bug")

    world.pipeline._put = broken
    world.run()
    assert isinstance(world.pipeline.error, OffloadError)
    assert "a bug" in str(world.pipeline.error)
    assert "the pipeline failed" in caplog.text


def test_a_sensor_that_waits_does_not_keep_an_emulated_core_from_the_others() -> None:
    sensor = threading.Event()
    numbers = iter(range(2))

    def capture() -> Any:
        number = next(numbers)
        if number == 1:
            sensor.wait(PATIENCE_S)
            return False
        return True, number

    world = World(capture, lambda n: (True, n), last, split=2, cpu=EmulatedCpu(2.0))
    world.pipeline.start()
    world.wait_for(lambda: len(world.entries) == 1)
    assert not sensor.is_set()
    sensor.set()
    world.end()
    assert [entry.sequence for entry in world.entries] == [0]


@pytest.mark.parametrize("more", [{}, {"live": True}, {"cpu": EmulatedCpu(1.0)}])
def test_cpu_time_is_measured_of_some_items_only(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an emulated processor's always, since it is what is stretched; and a live source's time is its CPU time."""
    asked = []
    monkeypatch.setattr("task_offload.runner.thread_time_ns", lambda: asked.append(1) or 0)
    items = 3 * MEASURED
    world = World(numbers(items), lambda x: (True, x), last, split=2, **more)
    assert len(world.run()) == items
    first, second = (items, items) if "cpu" in more else (items, MEASURED) if "live" in more else (MEASURED, MEASURED)
    # At its begin and end, of a few more that were captured meanwhile, and of the capture that ends the stream.
    least = 2 * (first + second)
    assert least <= len(asked) <= least + 2 * (2 * 4 + 1)
