"""Units run on a Dask cluster: for work that outgrows one machine. An extra: pip install 'task-offload[dask]'.

Each worker of the pool is an actor on the cluster, which has the app loaded and keeps its sessions' states. The
coordinator stays the door and the book-keeper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from time import perf_counter_ns
from typing import Any

from task_offload.engines.base import Done, Lane, TaskTimeoutError, Unit, WorkerLostError
from task_offload.engines.remote import Call, NearSide, RemoteRunner, Reply
from task_offload.errors import ConfigError
from task_offload.task import Chain
from task_offload.wire.codec import BODY_ALIGNMENT, Payload

CONNECT_S = 10.0


class DaskActor:
    """The far side, on a worker of the cluster."""

    def __init__(self, app: str) -> None:
        self._runner = RemoteRunner(app)

    def run(self, call: Call, body: Any) -> tuple[Reply, list[memoryview]]:
        reply = self._runner.run(call, memoryview(body).cast("B"))
        if reply.payload is None:
            return reply, []
        buffers = list(reply.payload.buffers)
        payload = Payload(reply.payload.head, (), reply.payload.size_bytes)
        return (
            Reply(reply.kind, reply.task, reply.busy_ns, reply.decode_ns, reply.cpu_ns, reply.error, payload),
            buffers,
        )

    def forget(self, lane: int) -> None:
        self._runner.forget(lane)


def connect(address: str, workers: int) -> Any:
    """A client of the cluster at an address; with no address, of one that it starts here.

    Raises:
        ConfigError: Dask is not installed, or no cluster answers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError("--engine dask needs Dask: pip install 'task-offload[dask]'") from error
    if not address:
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers, threads_per_worker=1, dashboard_address=None
        )
        return Client(cluster)  # type: ignore[no-untyped-call]
    try:
        return Client(address, timeout=CONNECT_S)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--engine dask:{address}: no Dask scheduler answers there ({error})") from error


class DaskWorker:
    """Runs units on one actor, and makes another when that one is lost."""

    def __init__(self, chain: Chain, client: Any, timeout_s: float) -> None:
        self._near = NearSide(chain)
        self._client = client
        self._timeout_s = timeout_s
        self._actor: Any = None

    def wait(self) -> None:
        if self._actor is None:
            self._actor = self._client.submit(DaskActor, self._near.app, actor=True, pure=False).result(
                timeout=self._timeout_s
            )

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        for unit in units:
            if (done := self._near.run_here(unit)) is None:
                done = self._run_away(unit)
            yield done

    def _run_away(self, unit: Unit) -> Done:
        sent_ns = perf_counter_ns()
        try:
            body = unit.body if unit.body is not None else b""
            reply, buffers = self._actor.run(Call.of(unit), body).result(timeout=self._timeout_s)
        except TimeoutError:
            self._actor = None
            raise TaskTimeoutError(f"more than {self._timeout_s:g} s") from None
        except (OSError, ValueError, RuntimeError, CancelledError) as error:
            self._actor = None
            raise WorkerLostError(f"a worker of the Dask cluster was lost ({error})") from error
        return self._near.done(unit, reply, _joined(buffers), sent_ns)

    def forget(self, lane: Lane) -> None:
        if self._actor is not None:
            self._actor.forget(lane.number)

    def kill(self) -> bool:
        return True  # `run` has a time limit of its own

    def close(self) -> None:
        self._actor = None


def _joined(buffers: list[Any]) -> memoryview:
    """The body that the buffers make, each padded. One that fills its padding exactly is taken as it is."""
    if len(buffers) == 1 and not len(buffers[0]) % BODY_ALIGNMENT:
        return memoryview(bytearray(buffers[0]))
    body = bytearray()
    for buffer in buffers:
        body += buffer
        body += bytes(-len(buffer) % BODY_ALIGNMENT)
    return memoryview(body)
