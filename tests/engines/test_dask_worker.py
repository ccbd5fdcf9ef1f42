"""What a Dask worker's near side does when the cluster is not as it should be; with a cluster of our own making."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("distributed")

from task_offload.engines.base import Lane, Unit, WorkerLostError
from task_offload.engines.dask import DaskWorker, Places
from task_offload.task import Item, load_app


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
