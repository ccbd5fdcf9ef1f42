"""Units run on a Dask cluster: for work that outgrows one machine. Needs the package `dask[distributed]`.

Each worker of the pool is an actor on the cluster, which has the app loaded and keeps its sessions' states. The
coordinator stays the door and the book-keeper; it talks to the cluster's workers directly, past their scheduler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task_offload.engines.base import Done, Finished, Lane, TaskTimeoutError, Unit, WorkerGoneError, WorkerLostError
from task_offload.engines.pool import Pool
from task_offload.engines.remote import Call, NearSide, RemoteRunner, Reply, without_buffers
from task_offload.errors import AppError, ConfigError, LinkError
from task_offload.task import Chain
from task_offload.wire.codec import BODY_ALIGNMENT
from task_offload.wire.memory import MemoryPool

log = logging.getLogger(__name__)

CONNECT_S = 10.0
START_S = 60.0  # for an actor to load the app
START_TRIES = 3
RETURN_S = 30.0  # for a worker of the cluster to be there again
RETURN_LOOK_S = 0.2
NOTICE_S = 3.0  # for the scheduler to notice that a worker has gone
LOOK_S = 1.0  # between looks whether a call's worker is still there
BATCH_NS = 8_000_000  # a round trip takes a millisecond and more, so an actor gets work for several
LEAST_AT_ONCE = 2  # one travels while the other is worked on
CALL_BYTES = 1024 * 1024  # of several units in one call
KEPT_BYTES = 16 * 1024 * 1024

LOST = (OSError, ValueError, RuntimeError, KeyError, CancelledError)  # what Dask says of an actor that is no more

Bytes = NDArray[np.uint8]  # what Dask sends without a copy, and gives back writable


class DaskEngine:
    """A pool of actors, and the connection to their cluster.

    Arguments:
        address: of a scheduler; "" starts a cluster on this machine.

    Raises:
        ConfigError: Dask is not installed.
        LinkError: no cluster answers, or no worker of it starts.
        AppError: the app does not load there.
    """

    def __init__(
        self, chain: Chain, address: str, workers: int, stateful: bool, finished: Finished, timeout_s: float
    ) -> None:
        self._cluster, self._client = _connect(address, workers)
        places = Places(self._client)
        try:
            self._pool = Pool(
                lambda: DaskWorker(chain, self._client, places, timeout_s),
                workers, stateful, True, finished, timeout_s, BATCH_NS, LEAST_AT_ONCE,
            )  # fmt: skip
        except BaseException:
            self._disconnect()
            raise

    def submit(self, units: Sequence[Unit]) -> None:
        self._pool.submit(units)

    def forget(self, lane: Lane) -> None:
        self._pool.forget(lane)

    def close(self) -> None:
        self._pool.close()
        self._disconnect()

    @property
    def waiting(self) -> int:
        return self._pool.waiting

    @property
    def taken(self) -> int:
        return self._pool.taken

    def _disconnect(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _connect(address: str, workers: int) -> tuple[Any, Any]:
    """A cluster of our own or None, and a client."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--engine dask needs Dask: pip install 'dask[distributed]'") from error
    if address:
        try:
            return None, Client(  # type: ignore[no-untyped-call]
                address, timeout=CONNECT_S, direct_to_workers=True, set_as_default=True
            )
        except (OSError, ValueError) as error:
            raise LinkError(f"--engine dask:{address}: no Dask scheduler answers there ({error})") from error
    cluster = local_cluster(workers)
    try:
        return cluster, Client(cluster, direct_to_workers=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        cluster.close()
        raise LinkError(f"--engine dask: its own cluster does not answer ({error}); try again") from error


def local_cluster(workers: int) -> Any:
    """A cluster on this machine, whose workers always come back.

    Raises:
        LinkError: a worker died as it started.
    """
    import dask
    from distributed import LocalCluster

    # Dask gives a worker up that is away so long after it was away, though its nanny is just starting it again.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"})
    # Ctrl-C is for the server, which ends its workers. Threads and processes inherit what their starter does not hear.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        )
    except RuntimeError as error:
        raise LinkError(
            f"--engine dask: the workers could not be started ({error}); have they enough memory?"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


class DaskActor:
    """The far side, on a worker of the cluster."""

    def __init__(self, app: str) -> None:
        self._runner = RemoteRunner(app)

    def run(self, calls: Sequence[Call], *bodies: Bytes) -> list[tuple[Reply, list[Bytes]]]:
        replies = []
        for call, body in zip(calls, bodies, strict=True):
            reply = self._runner.run(call, body.data)
            buffers = reply.payload.buffers if reply.payload is not None else ()
            replies.append((without_buffers(reply), [np.frombuffer(each, np.uint8) for each in buffers]))
        return replies

    def forget(self, lane: int) -> None:
        self._runner.forget(lane)


class Places:
    """Which worker of the cluster each actor is on: one each, so that an actor that dies takes no other with it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._of: dict[object, str] = {}
        self._most = 0  # workers of the cluster, when it had all of them

    def choose(self, actor: object) -> str:
        """The address of a worker that has the fewest actors. One that is just starting again is waited for.

        Raises:
            LinkError: the cluster has no workers.
        """
        with self._lock:
            lost = self._of.pop(actor, None)
        now = time.monotonic()
        noticed_at, ends_at = now + NOTICE_S, now + RETURN_S
        while True:
            workers: list[str] = list(self._client.nthreads())
            if lost in workers and time.monotonic() < noticed_at:  # it may be gone, and the scheduler not have noticed
                workers.remove(lost)
            else:
                lost = None  # it lost its actor only, or another has its address
            with self._lock:
                self._most = max(self._most, len(workers))
                actors = Counter(self._of.values())
                address = min(workers, key=lambda each: actors[each], default=None)
                if address is not None and (not actors[address] or len(workers) == self._most):
                    self._of[actor] = address
                    return address
                if time.monotonic() > ends_at:
                    self._most = len(workers)
                    if address is None:
                        raise LinkError("--engine dask: the cluster has no workers; start some")
            time.sleep(RETURN_LOOK_S)

    def came_to(self, actor: object, address: str) -> None:
        """The scheduler puts an actor elsewhere while the chosen worker takes none: when it is starting, or paused."""
        with self._lock:
            self._of[actor] = address

    def leave(self, actor: object) -> None:
        with self._lock:
            self._of.pop(actor, None)


class DaskWorker:
    """Runs units on one actor, and makes another when that one is lost."""

    def __init__(self, chain: Chain, client: Any, places: Places, timeout_s: float) -> None:
        self._near = NearSide(chain)
        self._in_order = chain.stateful_between(chain.splits[0], len(chain.tasks) - 1)
        self._client = client
        self._places = places
        self._timeout_s = timeout_s
        self._memory = MemoryPool(KEPT_BYTES)
        self._actor: Any = None
        self._coming: Any = None
        self._start()

    def _start(self) -> None:
        self._chosen = self._places.choose(self)
        self._coming = self._client.submit(
            DaskActor,
            self._near.app,
            actor=True,
            pure=False,
            workers=[self._chosen],
            allow_other_workers=True,
        )

    def wait(self) -> None:
        if self._actor is not None:
            return
        problem: Exception | None = None
        for _ in range(START_TRIES):  # the cluster may not know yet that the worker it chooses is lost
            try:
                if self._coming is None:
                    self._start()
                coming, self._coming = self._coming, None
                self._actor = self._come(coming)
                self._places.came_to(self, self._actor._address)
                return
            except AppError as error:
                raise AppError(f"--engine dask: a worker of the cluster could not load the app: {error}") from error
            except Exception as error:  # whatever keeps an actor from being there
                problem = error
        raise LinkError(f"--engine dask: no actor could be started on the cluster: {problem!r}") from problem

    def _come(self, coming: Any) -> Any:
        """The actor, once it is there. An actor on its way to a worker that left may never come."""
        ends_at = time.monotonic() + START_S
        while True:
            try:
                return coming.result(timeout=LOOK_S)
            except (TimeoutError, asyncio.TimeoutError):
                if time.monotonic() >= ends_at:
                    raise
                if self._chosen not in self._client.nthreads():
                    raise RuntimeError("its worker has left the cluster") from None

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        away = []
        for unit in units:
            if (done := self._near.run_here(unit)) is not None:
                yield done
            else:
                away.append(unit)
        if not away:
            return
        if self._actor is None:
            raise WorkerLostError("no actor could be started on the Dask cluster")
        calls = list(_calls(away))
        # Each call that is on its way has a connection of its own, so a later one may be there first.
        for together in [[call] for call in calls] if self._in_order else [calls]:
            sent_ns = perf_counter_ns()
            for call, future in zip(together, self._send(together), strict=True):
                replies = self._result(future, len(call))
                for unit, (reply, buffers) in zip(call, replies, strict=True):
                    yield self._near.done(unit, reply, self._joined(buffers), sent_ns)

    def _send(self, calls: Sequence[Sequence[Unit]]) -> list[Any]:
        try:
            return [self._actor.run([Call.of(unit) for unit in call], *map(_body, call)) for call in calls]
        except LOST as error:
            self._actor = None
            raise WorkerGoneError(
                f"a worker of the Dask cluster was lost while it had nothing to do ({error})"
            ) from error

    def _result(self, future: Any, units: int) -> list[tuple[Reply, list[Bytes]]]:
        ends_at = time.monotonic() + self._timeout_s
        try:
            while True:
                try:
                    replies: list[tuple[Reply, list[Bytes]]] = future.result(timeout=min(LOOK_S, self._timeout_s))
                    return replies
                except (TimeoutError, asyncio.TimeoutError):
                    if time.monotonic() >= ends_at:
                        raise
                    if self._actor._address not in self._client.nthreads():  # Dask does not end every call then
                        raise RuntimeError("its worker has left the cluster") from None
        except (TimeoutError, asyncio.TimeoutError):
            self._restart()
            text = f"more than {self._timeout_s:g} s"
            if units == 1:
                raise TaskTimeoutError(text) from None
            raise WorkerLostError(f"a worker of the Dask cluster took {text}") from None
        except LOST as error:
            self._actor = None
            raise WorkerLostError(f"a worker of the Dask cluster was lost ({error})") from error

    def _restart(self) -> None:
        """Ends the cluster's worker whose actor hangs: nothing else ends a task there. Its nanny starts it again."""
        actor, self._actor = self._actor, None
        only = {"workers": [actor._address], "on_error": "ignore"}
        try:
            # The worker itself answers only where its task lets other threads run.
            if not self._client.run(_kill_worker, nanny=True, **only):
                self._client.run(os._exit, 1, **only)
        except Exception as error:  # it may be gone
            log.debug("a worker of the Dask cluster could not be ended: %r", error)

    def forget(self, lane: Lane) -> None:
        if self._actor is not None:
            try:
                self._actor.forget(lane.number)
            except LOST:
                pass  # one that was lost has forgotten

    def kill(self) -> bool:
        return True  # `run` has a time limit of its own

    def close(self) -> None:
        self._actor = self._coming = None
        self._places.leave(self)

    def _joined(self, buffers: Sequence[Bytes]) -> memoryview:
        """The body that the buffers make, each padded. One that fills its padding exactly is taken as it is."""
        if len(buffers) == 1 and not len(buffers[0]) % BODY_ALIGNMENT:
            return buffers[0].data
        sizes = [len(each) + -len(each) % BODY_ALIGNMENT for each in buffers]
        body = self._memory.take(sum(sizes)) if buffers else memoryview(b"")
        at = 0
        for buffer, size_bytes in zip(buffers, sizes, strict=True):
            end = at + len(buffer)
            body[at:end] = buffer.data
            at += size_bytes
            body[end:at] = bytes(at - end)
        return body


def _kill_worker(dask_worker: Any) -> None:
    """Runs in the nanny of a worker, which starts it again."""
    os.kill(dask_worker.pid, signal.SIGKILL)


def _calls(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units that travel together: many small ones, or one large one."""
    call: list[Unit] = []
    size_bytes = 0
    for unit in units:
        if call and size_bytes + unit.size_bytes > CALL_BYTES:
            yield call
            call, size_bytes = [], 0
        call.append(unit)
        size_bytes += unit.size_bytes
    yield call


def _body(unit: Unit) -> Bytes:
    return np.frombuffer(unit.body if unit.body is not None else b"", np.uint8)
