"""What a Dask worker's near side does when the cluster is not as it should be; with a cluster of our own making."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("distributed")

from task_offload.engines.base import Lane, Unit, WorkerLostError
from task_offload.engines.dask import CALL_BYTES, DaskActor, DaskEngine, DaskWorker, Places
from task_offload.errors import LinkError
from task_offload.task import Item, load_app
from task_offload.wire.codec import Encoder


class Silent:
    """A future, an actor and a client in one: an actor's worker leaves with its first call, which never ends."""

    _address = "tcp://here"

    def __init__(self) -> None:
        self.workers = {self._address: 1}

    def nthreads(self) -> dict[str, int]:
        return self.workers

    def submit(self, *given: Any, **options: Any) -> Started:
        return Started(self)

    def run(self, *given: Any) -> Silent:
        self.workers = {}
        return self

    def result(self, timeout: float) -> Any:
        raise TimeoutError


class Started:
    """The future of an actor that is there."""

    def __init__(self, actor: Silent) -> None:
        self._actor = actor

    def result(self, timeout: float) -> Silent:
        return self._actor


def test_a_call_that_never_ends_is_lost_with_its_worker_and_no_timeout_of_its_task() -> None:
    silent = Silent()
    worker = DaskWorker(load_app("tests.engines.deeds"), silent, Places(silent), timeout_s=1000.0)
    worker.wait()
    unit = Unit(Lane(), Item("device", "0" * 32, 0, 0.0, 1), b"", None, 0, None)
    with pytest.raises(WorkerLostError, match="has left the cluster"):
        list(worker.run([unit]))


class Recorded(Silent):
    """One whose calls are answered when they are asked for, and which says when it is called and asked."""

    def __init__(self, app: str) -> None:
        super().__init__()
        self.events: list[str] = []
        self._far = DaskActor(app)

    def run(self, *given: Any) -> Any:
        self.events.append("call")
        return Answer(self, self._far.run(*given))


class Answer:
    """A call's future."""

    def __init__(self, actor: Recorded, value: Any) -> None:
        self._actor = actor
        self._value = value

    def result(self, timeout: float) -> Any:
        self._actor.events.append("answer")
        return self._value


@pytest.mark.parametrize(
    ("app", "events"),
    [("deeds", ["call", "call", "answer", "answer"]), ("stateful_deeds", ["call", "answer", "call", "answer"])],
)
def test_calls_overtake_each_other_so_one_that_needs_the_state_of_another_is_made_after_it(
    app: str, events: list[str]
) -> None:
    app = f"tests.engines.{app}"
    actor = Recorded(app)
    worker = DaskWorker(load_app(app), actor, Places(actor), timeout_s=1000.0)
    worker.wait()
    head, lane = Encoder().encode(("double", 1)).head, Lane()
    items = [Item("device", "0" * 32, number, 0.0, 1) for number in range(2)]
    dones = list(worker.run([Unit(lane, item, head, None, 0, None, size_bytes=CALL_BYTES) for item in items]))
    assert [done.outcome.value[-1] for done in dones] == [2, 2]
    assert actor.events == events


class Listed:
    """A client of a cluster whose workers are told by a script: those of each look, the last ones for ever."""

    def __init__(self, *looks: str) -> None:
        self._looks = list(looks)

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self._looks.pop(0) if len(self._looks) > 1 else self._looks[0], 1)


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once, and a worker that does not come is waited for until the test's end."""
    monkeypatch.setattr("task_offload.engines.dask.RETURN_LOOK_S", 0.0)
    monkeypatch.setattr("task_offload.engines.dask.RETURN_S", 1000.0)


@pytest.mark.usefixtures("no_time_passes")
def test_actors_have_a_worker_each_and_one_that_returns_is_waited_for() -> None:
    places = Places(Listed("ab", "ab", "b", "b", "bc"))
    assert [places.choose(1), places.choose(2)] == ["a", "b"]
    assert places.choose(1) == "c"


@pytest.mark.usefixtures("no_time_passes")
def test_a_worker_whose_actor_was_lost_is_not_taken_again_before_the_scheduler_can_have_noticed() -> None:
    places = Places(Listed("ab", "ab", "ab", "ab", "b", "bc"))
    assert [places.choose(1), places.choose(2)] == ["a", "b"]
    assert places.choose(1) == "c"


@pytest.mark.usefixtures("no_time_passes")
@pytest.mark.parametrize("looks", [("ab",), ("ab", "ab", "b", "ab")], ids=["it lives", "another has its address"])
def test_a_worker_that_is_there_though_its_actor_was_lost_is_taken_again(
    looks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(looks) == 1:
        monkeypatch.setattr("task_offload.engines.dask.NOTICE_S", 0.0)
    places = Places(Listed(*looks))
    assert [places.choose(1), places.choose(2)] == ["a", "b"]
    assert places.choose(1) == "a"


@pytest.mark.usefixtures("no_time_passes")
def test_an_actor_is_counted_where_the_scheduler_has_put_it() -> None:
    places = Places(Listed("ab", "ab", "a", "a"))
    assert [places.choose(1), places.choose(2)] == ["a", "b"]
    places.came_to(1, "b")
    assert places.choose(1) == "a"  # "b" has gone, with both


class Cluster:
    """A cluster that a client cannot reach."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_cluster_of_our_own_that_no_client_reaches_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise OSError("nobody answers")

    cluster = Cluster()
    monkeypatch.setattr("task_offload.engines.dask.local_cluster", lambda workers: cluster)
    monkeypatch.setattr("distributed.Client", refuse)
    with pytest.raises(LinkError, match="nobody answers"):
        DaskEngine(load_app("tests.engines.deeds"), "", 1, False, lambda dones: None, 60.0)
    assert cluster.closed
