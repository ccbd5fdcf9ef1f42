"""One suite for all engines: what goes in comes out once, whatever its tasks do to the worker."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from task_offload.engines import make_engine
from task_offload.engines.base import Done, Engine, Lane, TaskTimeoutError, Unit, WorkerLostError
from task_offload.engines.dask import local_cluster
from task_offload.errors import AppError, ConfigError, LinkError, ProtocolError
from task_offload.picture import Picture
from task_offload.runner import Kind, Runner, TaskErrorLog
from task_offload.task import Item, load_app
from task_offload.wire.codec import Encoder, padded_body
from tests.engines import deeds
from tests.support.shared_memory import left_of, mapped_by

PATIENCE_S = 100.0  # a worker of a Dask cluster takes seconds to start again, more on a busy machine
pytestmark = pytest.mark.filterwarnings("ignore:Creating scratch directories")  # of Dask, on a busy machine
ENGINES = ("threads", "processes", "dask")
REMOTE = ("processes", "dask")
DEEDS, STATEFUL = "tests.engines.deeds", "tests.engines.stateful_deeds"


class Bench:
    """An engine with what came out of it."""

    def __init__(self, name: str, app: str = DEEDS, workers: int = 2, timeout_s: float = 60.0) -> None:
        self.name = name
        self._changed = threading.Condition()
        self._dones: list[Done] = []
        self._chain = load_app(app)
        self._sent = 0
        self.engine: Engine = make_engine(name, self._chain, workers, self._finished, timeout_s)

    def _finished(self, dones: Sequence[Done]) -> None:
        with self._changed:
            self._dones += dones
            self._changed.notify()

    def send(self, *deeds_: tuple[Any, ...], lane: Lane | None = None) -> None:
        """One unit for each deed, at once; on one lane, or each on a lane of its own."""
        units = []
        for deed in deeds_:
            payload = Encoder(picture_quality=0).encode(deed)
            body = b"".join(padded_body(payload))
            item = Item("device", "0" * 32, self._sent, 1234.5, 1)
            self._sent += 1
            units.append(Unit(lane or Lane(), item, payload.head, memoryview(bytearray(body)) or None, 0, None))
        self.engine.submit(units)

    def wait(self, count: int) -> list[Done]:
        """So many outcomes, in the order of their items; and no more than these have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._dones) >= count, PATIENCE_S), self._dones
            dones, self._dones = self._dones, []
        assert len(dones) == count
        return sorted(dones, key=lambda done: done.unit.item.sequence)

    def values(self, *deeds_: tuple[Any, ...], lane: Lane | None = None) -> list[Any]:
        self.send(*deeds_, lane=lane)
        dones = self.wait(len(deeds_))
        assert all(done.outcome.kind is Kind.CONTINUED for done in dones), dones
        return [done.outcome.value for done in dones]


HOW = "distributed.worker.multiprocessing-method"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Dask cluster that all tests share: one of our own takes seconds to start.

    Its workers are forked from a process that has imported Dask, since the tests kill them again and again.
    """
    dask, _ = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with dask.config.set({HOW: "forkserver"}):
        made = local_cluster(2)
        yield made.scheduler_address
        made.close()


@pytest.fixture
def own_clusters() -> Iterator[None]:
    """A cluster that an engine starts is as users have it: its workers are started afresh."""
    try:
        import dask
        import distributed  # noqa: F401 (its defaults must be there before, or the end of `set` takes them away)
    except ImportError:
        yield
        return
    with dask.config.set({HOW: "spawn"}):
        yield


Make = Callable[..., Bench]
DEATHS = 4


async def until_gone(address: str, dask_scheduler: Any) -> None:
    """Runs in the scheduler's process, until that has noticed the worker's end."""
    from distributed import SchedulerPlugin

    gone = asyncio.Event()

    class Watch(SchedulerPlugin):  # type: ignore[misc]
        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            if worker == address:
                gone.set()

    dask_scheduler.add_plugin(Watch(), name="until gone")
    if address in dask_scheduler.workers:
        await gone.wait()
    dask_scheduler.remove_plugin("until gone")


def held_units() -> int:
    """Units of this process that somebody still refers to."""
    gc.collect()
    return sum(type(each) is Unit for each in gc.get_objects())


@pytest.fixture(scope="module")
def make_bench(request: pytest.FixtureRequest) -> Make:
    def make(name: str, app: str = DEEDS, workers: int = 2, timeout_s: float = 60.0) -> Bench:
        if name == "dask":
            name = f"dask:{request.getfixturevalue('cluster')}"
        return Bench(name, app, workers, timeout_s)

    return make


@pytest.fixture(scope="module", params=ENGINES)
def bench(request: pytest.FixtureRequest, make_bench: Make) -> Iterator[Bench]:
    made = make_bench(request.param)
    yield made
    made.engine.close()


@pytest.fixture(scope="module", params=ENGINES)
def stateful(request: pytest.FixtureRequest, make_bench: Make) -> Iterator[Bench]:
    made = make_bench(request.param, STATEFUL)
    yield made
    made.engine.close()


def test_every_unit_comes_back_with_its_result(bench: Bench) -> None:
    values = bench.values(*[("double", number) for number in range(200)])
    assert [value[2] for value in values] == [2 * number for number in range(200)]
    here = {value[0] == os.getpid() for value in values}
    assert here == {bench.name == "threads"}


def test_arrays_and_pictures_travel_whole(bench: Bench) -> None:
    images = [np.full((40, 50, 3), number, np.uint8) for number in range(4)]
    bench.send(*[("shape", image) for image in images])
    for image, done in zip(images, bench.wait(4), strict=True):
        (shown, shape) = done.outcome.value
        assert type(shown) is Picture
        assert (shown.image == image + 1).all()
        assert shape == (40, 50, 3)


def test_results_stay_as_they_are_while_more_units_run(bench: Bench) -> None:
    """Arguments of the last task must not lie in memory that is used again."""
    small = bench.values(*[("large", 100_000)] * 6)
    big = bench.values(*[("large", 3_000_000)] * 2)
    bench.values(*[("shape", np.zeros((400, 400, 3), np.uint8))] * 6)
    assert all(array.size in (100_000, 3_000_000) and (array == 7).all() for (array,) in small + big)
    assert all(array.flags.writeable for (array,) in small + big)


def test_filtered_failed_and_broken_units_are_told_apart(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.send(("drop", 0), ("raise", 1), ("return", 2), ("raise", 3))
    dropped, raised, broken, again = (done.outcome for done in bench.wait(4))
    assert (dropped.kind, dropped.task) == (Kind.FILTERED, 1)
    log = TaskErrorLog(("take", "do", "show"))
    assert log.failed(raised, "device", 1).endswith("ValueError: cannot do 1")
    assert "it returned int" in log.failed(broken, "device", 2)
    log.failed(again, "device", 3)
    assert len(caplog.records) == 2  # once for each kind
    assert "deeds.py" in caplog.text  # the traceback of the side where it ran
    assert 'raise ValueError(f"cannot do {value}")' in caplog.text


@pytest.mark.parametrize("name", REMOTE)
def test_arguments_that_cannot_be_made_again_cost_their_item_and_no_other_gets_them(
    name: str, make_bench: Make
) -> None:
    bench = make_bench(name, workers=1)
    try:
        lane = Lane()
        lane.cost_ns = 1000  # so that the worker takes all of them at once
        bench.send(("double", 0), ("box", 0), *[("double", number) for number in range(2, 6)], lane=lane)
        first, box, *others = bench.wait(6)
        assert [done.outcome.value[-1] for done in (first, *others)] == [0, 4, 6, 8, 10]
        assert box.outcome.kind is Kind.FAILED
        assert box.forbidden is None  # the app is to blame, not the device
        assert "a box has a width" in TaskErrorLog(("take", "do", "show")).failed(box.outcome, "device", 1)
    finally:
        bench.engine.close()


def test_costs_are_measured(bench: Bench) -> None:
    bench.send(*[("double", number) for number in range(20)])
    for done in bench.wait(20):
        assert done.decode_ns > 0
        assert done.cpu_ns > 0
        assert done.queued_ns >= 0
        assert len(done.outcome.busy_ns) == 1


def test_a_forbidden_payload_is_told_from_a_tasks_error(bench: Bench) -> None:
    item = Item("device", "0" * 32, 0, 1234.5, 1)
    bench.engine.submit([Unit(Lane(), item, b"nonsense", None, 0, None)])
    (done,) = bench.wait(1)
    assert isinstance(done.forbidden, ProtocolError)


def test_a_unit_with_no_task_before_the_last_is_decoded_only(bench: Bench) -> None:
    payload = Encoder().encode(("ball", 1))
    item = Item("device", "0" * 32, 0, 1234.5, 2)
    bench.engine.submit([Unit(Lane(), item, payload.head, None, 0, None)])
    (done,) = bench.wait(1)
    assert done.outcome.value == ("ball", 1)
    assert done.outcome.busy_ns == []


def test_state_sees_its_session_in_order_on_one_worker(stateful: Bench) -> None:
    lanes = [Lane() for _ in range(5)]
    for number in range(1, 21):
        for lane in lanes:
            stateful.send(("sum", number), lane=lane)
    of_lane: dict[Lane, list[Any]] = {}
    for done in stateful.wait(100):
        of_lane.setdefault(done.unit.lane, []).append(done.outcome.value)
    for lane in lanes:
        assert [total for _, total in of_lane[lane]] == [n * (n + 1) // 2 for n in range(1, 21)]
        assert len({pid for pid, _ in of_lane[lane]}) == 1
    if stateful.name != "threads":
        assert len({values[0][0] for values in of_lane.values()}) == 2  # the lanes are spread


def test_a_session_that_is_forgotten_begins_anew(stateful: Bench) -> None:
    lane, other = Lane(), Lane()
    assert stateful.values(("sum", 5), lane=lane)[0][1] == 5
    assert stateful.values(("sum", 5), lane=other)[0][1] == 5
    stateful.engine.forget(lane)
    if stateful.name != "threads":  # there the lane itself has the state, and goes with its session
        again = Lane()
        again.number, again.slot = lane.number, lane.slot
        assert stateful.values(("sum", 1), lane=again)[0][1] == 1
    assert stateful.values(("sum", 5), lane=other)[0][1] == 10


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", REMOTE)
def test_a_worker_that_dies_costs_a_retry_and_twice_the_item(
    name: str, make_bench: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(name)
    try:
        marks = [("die once", str(tmp_path / "a")), ("double", 1), ("double", 2)]
        assert [value[-1] for value in bench.values(*marks)] == ["alive", 2, 4]
        assert "with item 0 of device device" in caplog.text
        bench.send(("double", 1), ("die", 0), *[("double", number) for number in range(2, 8)])
        first, dead, *others = bench.wait(8)
        assert [done.outcome.value[-1] for done in (first, *others)] == [2, *range(4, 16, 2)]
        assert isinstance(dead.outcome.value, WorkerLostError)
        log = TaskErrorLog(("take", "do", "show"))
        assert "2 times with this item" in log.failed(dead.outcome, "device", 1)
        assert bench.values(("double", 4))[0][-1] == 8
    finally:
        bench.engine.close()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", REMOTE)
def test_workers_that_die_again_and_again_leave_nothing_held(name: str, make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(name)
    try:
        lanes = [Lane() for _ in range(5)]
        bench.values(*[("double", number) for number in range(20)])
        before = held_units()
        for death in range(DEATHS):
            for lane in lanes:
                bench.send(*[("shape", np.full((100, 100, 3), number, np.uint8)) for number in range(10)], lane=lane)
            bench.send(("die once", str(tmp_path / str(death))))
            dones = bench.wait(51)
            assert all(done.outcome.kind is Kind.CONTINUED for done in dones)
            del dones
        assert all((tmp_path / str(death)).exists() for death in range(DEATHS))
        assert held_units() <= before
        if name == "dask":  # an actor for each worker is all that the cluster keeps, wherever: one may be restarting
            from distributed import Client

            with Client(bench.name.partition(":")[2], set_as_default=False) as client:
                assert 1 <= sum(map(len, client.has_what().values())) <= 2
    finally:
        bench.engine.close()


@pytest.mark.timeout(60)
def test_a_worker_of_a_local_cluster_comes_back_however_long_it_takes(own_clusters: None) -> None:
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 ms"})
    made = local_cluster(1)
    try:
        with distributed.Client(made.scheduler_address, set_as_default=False) as client:
            ((address, pid),) = client.run(os.getpid).items()
            os.kill(pid, signal.SIGKILL)
            client.run_on_scheduler(until_gone, address)
            client.wait_for_workers(1, timeout=40)
            assert len(made.workers) == 1, "the cluster gave it up, and ends it as soon as it is there"
    finally:
        made.close()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("app", [DEEDS, STATEFUL])
@pytest.mark.parametrize("name", REMOTE)
def test_workers_that_die_while_they_have_nothing_to_do_cost_no_item(name: str, app: str, make_bench: Make) -> None:
    others = set(multiprocessing.active_children())  # the shared cluster's
    bench = make_bench(name, app)
    try:
        lanes = [Lane() for _ in range(4)]
        for lane in lanes:
            bench.values(("double", 1), lane=lane)
        if name == "dask":
            from distributed import Client

            with Client(bench.name.partition(":")[2], set_as_default=False) as client:
                for address, pid in client.run(os.getpid).items():
                    os.kill(pid, signal.SIGKILL)
                    client.run_on_scheduler(until_gone, address)
        else:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
                process.join()
        for lane in lanes[2:]:
            bench.engine.forget(lane)
        assert [bench.values(("double", number), lane=lanes[0])[0][-1] for number in range(4)] == [0, 2, 4, 6]
        assert bench.values(("double", 2), lane=lanes[1])[0][-1] == 4
    finally:
        bench.engine.close()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ENGINES)
def test_a_unit_that_takes_too_long_ends_and_its_worker_is_replaced(
    name: str, make_bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(name, workers=1, timeout_s=2.0)
    try:
        bench.values(("double", 0))
        bench.send(("double", 1), ("hang", 0), ("double", 2), ("double", 3))
        before, late, *after = bench.wait(4)
        assert isinstance(late.outcome.value, TaskTimeoutError)
        assert "2 s" in str(late.outcome.value)
        assert [done.outcome.value[-1] for done in (before, *after)] == [2, 4, 6]
        if name == "threads":
            assert "1 so far" in caplog.text
            deeds.let_go.set()
        assert bench.values(("double", 5))[0][-1] == 10
    finally:
        bench.engine.close()
        deeds.let_go.clear()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", REMOTE)
def test_a_unit_that_lets_no_other_thread_run_ends_too(name: str, make_bench: Make) -> None:
    bench = make_bench(name, workers=1, timeout_s=1.0)
    try:
        bench.send(("hang and let nothing else run", 0))
        (late,) = bench.wait(1)
        assert isinstance(late.outcome.value, TaskTimeoutError)
        assert bench.values(("double", 5))[0][-1] == 10
    finally:
        bench.engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_is_left_behind(name: str, own_clusters: None) -> None:
    if name == "dask":
        pytest.importorskip("distributed")
    gc.collect()
    threads, others = set(threading.enumerate()), mapped_by(psutil.Process())
    before = set(psutil.Process().children(recursive=True))
    bench = Bench(name)
    bench.values(*[("large", 100_000)] * 4)
    shared = mapped_by(psutil.Process()) - others
    assert bool(shared) == (name == "processes")
    bench.engine.close()
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=5)
    assert [child for child in alive if "resource_tracker" not in "".join(child.cmdline())] == []
    assert left_of(shared) == set()
    if name != "dask":  # whose loop has a pool of threads for the process
        assert set(threading.enumerate()) - threads == set()  # those of an earlier test's loop may end meanwhile


@pytest.mark.parametrize("name", REMOTE)
def test_what_waits_is_not_run_after_close(name: str, make_bench: Make) -> None:
    bench = make_bench(name, workers=1)
    bench.send(*[("hang", 0)] * 3)
    bench.engine.close()
    assert bench.wait(0) == []


@pytest.mark.parametrize("name", REMOTE)
def test_an_app_that_does_not_load_there_is_one_clear_error(
    name: str, monkeypatch: pytest.MonkeyPatch, own_clusters: None
) -> None:
    if name == "dask":
        pytest.importorskip("distributed")
    monkeypatch.setenv("DEEDS_PID", str(os.getpid()))
    monkeypatch.setenv(deeds.IN_CHILD, "fail")
    with pytest.raises(AppError, match=r"RuntimeError: no such camera"):
        Bench(name)


@pytest.mark.parametrize("name", REMOTE)
def test_a_worker_that_dies_while_it_starts_is_started_again(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_clusters: None
) -> None:
    if name == "dask":
        pytest.importorskip("distributed")
    monkeypatch.setenv("DEEDS_PID", str(os.getpid()))
    monkeypatch.setenv("DEEDS_DIE_ONCE", str(tmp_path / "died"))
    bench = Bench(name)
    try:
        assert (tmp_path / "died").exists()
        assert [value[-1] for value in bench.values(("double", 1), ("double", 2))] == [2, 4]
    finally:
        bench.engine.close()


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="choose threads, processes, dask or dask:ADDRESS"):
        Bench("fibres")


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("task_offload.engines.dask.CONNECT_S", 0.5)
    with pytest.raises(LinkError, match="no Dask scheduler answers there"):  # it may come up later
        Bench("dask:tcp://127.0.0.1:1")


def test_the_runner_of_the_last_task_takes_what_engines_give(bench: Bench) -> None:
    (value,) = bench.values(("double", 21))
    chain = load_app(DEEDS)
    outcome = Runner(chain).run(Item("device", "0" * 32, 0, 1.0, 1), Lane().states, value, 2, 3)
    assert outcome.value[-1] == 42
