"""Units run in processes: for tasks that hold the interpreter lock. Payloads and arguments travel in shared memory.

Each worker's process gets the bodies of its units in memory that this side owns, and puts the arguments of the last
task into memory that it owns; only what is small goes through the pipe. A process that dies is replaced.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from time import perf_counter_ns

from task_offload.engines.base import Done, Lane, TaskTimeoutError, Unit, WorkerGoneError, WorkerLostError
from task_offload.engines.remote import Call, NearSide, RemoteRunner, without_buffers
from task_offload.errors import AppError, OffloadError
from task_offload.task import Chain
from task_offload.wire.codec import padded_body
from task_offload.wire.memory import MemoryPool

FIRST_BYTES = 1024 * 1024
KEPT_BYTES = 16 * 1024 * 1024
START_S = 60.0  # for a process to load the app
START_TRIES = 3
END_S = 1.0  # for a process to end by itself

_context = multiprocessing.get_context("spawn")  # a fork would copy other threads' locks as they are


class ProcessWorker:
    """Runs units in one process, which it starts, and starts again when it dies."""

    def __init__(self, chain: Chain, timeout_s: float) -> None:
        self._near = NearSide(chain)
        self._timeout_s = timeout_s
        self._memory = MemoryPool(KEPT_BYTES)
        self._killed = False
        self._process: BaseProcess | None = None
        self._loaded = False
        self._pipe: Connection
        self._life: Connection  # the process ends when this is closed, whatever it is at
        self._there = Region()  # what the process gets
        self._back: SharedMemory | None = None  # what it gives
        self._start()

    def wait(self) -> None:
        if self._loaded:
            return
        for _ in range(START_TRIES):
            if self._process is None:
                self._start()
            try:
                problem = self._pipe.recv() if self._pipe.poll(START_S) else f"it took more than {START_S:g} s"
            except (EOFError, OSError):
                problem = f"it died, {START_TRIES} times"
                self._end()
                continue  # whoever killed it may not kill the next one
            if not problem:
                self._loaded = True
                return
            break
        self._end()
        raise AppError(f"--engine processes: a worker's process could not load the app: {problem}")

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        away = []
        for unit in units:
            if (done := self._near.run_here(unit)) is not None:
                yield done
            else:
                away.append(unit)
        if not away:
            return
        if not self._loaded:
            raise WorkerLostError("a worker's process could not be started")
        self._killed = False
        sent_ns = perf_counter_ns()
        try:
            name, places = self._there.put([unit.body or b"" for unit in away])
            calls = [(Call.of(unit), *place) for unit, place in zip(away, places, strict=True)]
            try:
                self._pipe.send((name, calls))
            except OSError as error:
                self._end()
                raise WorkerGoneError("a worker's process died while it had nothing to do") from error
            for unit in away:
                reply, name, begin, end = self._pipe.recv()
                yield self._near.done(unit, reply, self._body(name, begin, end), sent_ns)
                self._killed = False  # whoever did it meant the unit that has just ended: the next one is tried again
        except (EOFError, OSError) as error:
            self._end()
            if self._killed:
                raise TaskTimeoutError(f"more than {self._timeout_s:g} s") from None
            raise WorkerLostError("a worker's process died") from error
        except BaseException:
            self._end()  # replies that nobody has read would be taken for those of the next units
            raise

    def _body(self, name: str, begin: int, end: int) -> memoryview:
        """A copy of what the process gave, so that it may use its memory again."""
        if begin == end:
            return memoryview(b"")
        if self._back is None or self._back.name != name:
            if self._back is not None:
                self._back.close()
            self._back = SharedMemory(name)
        return copied(self._back, begin, end, self._memory)

    def forget(self, lane: Lane) -> None:
        if self._loaded:
            try:
                self._pipe.send(lane.number)
            except OSError:
                pass  # a process that died has forgotten

    def kill(self) -> bool:
        self._killed = True
        process = self._process
        if process is not None:
            with suppress(ValueError):  # its own thread has just closed it
                process.kill()
        return True

    def close(self) -> None:
        self._end()
        self._there.close()

    def _start(self) -> None:
        self._pipe, pipe = _context.Pipe()
        life, self._life = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_serve, args=(pipe, life, self._near.app), name="offload worker", daemon=True
        )
        # Ctrl-C is for the server, which ends its workers. A process inherits what its starter does not hear; the
        # tracker, which the first one would start on its way, makes its starter hear again.
        resource_tracker.ensure_running()
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        atexit.register(self._process.kill)  # or the interpreter would wait for it at its end
        pipe.close()
        life.close()

    def _end(self) -> None:
        process, self._process, self._loaded = self._process, None, False
        if process is not None:
            self._pipe.close()
            process.join(END_S)
            process.kill()
            process.join()
            atexit.unregister(process.kill)
            self._life.close()
            process.close()
        if self._back is not None:
            self._back.close()
            try:
                self._back.unlink()  # a process that was killed could not
            except FileNotFoundError:
                pass
            self._back = None


class Region:
    """Shared memory that grows. What it was before it grew stays until `put` is called again."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._at = 0
        self._old: list[SharedMemory] = []

    def put(self, bodies: Sequence[bytes | memoryview]) -> tuple[str, list[tuple[int, int]]]:
        """Copies bodies in, at its beginning.

        Returns:
            the memory's name, and where each body begins and ends in it.
        """
        self.clear()
        self._reserve(sum(map(len, bodies)))
        places = [self._copy([body]) for body in bodies]
        return self._name, places

    def add(self, parts: Sequence[bytes | memoryview]) -> tuple[str, int, int]:
        """Copies a body's parts in, behind what is there. Returns the memory's name, and where it begins and ends."""
        self._reserve(sum(map(len, parts)))
        begin, end = self._copy(parts)
        return self._name, begin, end

    def clear(self) -> None:
        """Nobody needs any more what is there."""
        self._at = 0
        while self._old:
            _remove(self._old.pop())

    def close(self) -> None:
        self.clear()
        if self._memory is not None:
            _remove(self._memory)
            self._memory = None

    @property
    def _name(self) -> str:
        return self._memory.name if self._memory is not None else ""

    def _reserve(self, size_bytes: int) -> None:
        if not size_bytes or (self._memory is not None and self._memory.size - self._at >= size_bytes):
            return
        if self._memory is not None:
            self._old.append(self._memory)
            size_bytes = max(size_bytes, 2 * self._memory.size)
        self._memory = SharedMemory(create=True, size=max(FIRST_BYTES, size_bytes))
        self._at = 0

    def _copy(self, parts: Sequence[bytes | memoryview]) -> tuple[int, int]:
        begin = self._at
        if self._memory is not None:
            buffer = self._memory.buf
            assert buffer is not None
            for part in parts:
                end = self._at + len(part)
                buffer[self._at : end] = part
                self._at = end
        return begin, self._at


def _remove(memory: SharedMemory) -> None:
    memory.close()
    try:
        memory.unlink()
    except FileNotFoundError:
        pass  # the other side was faster


def copied(region: SharedMemory, begin: int, end: int, memory: MemoryPool) -> memoryview:
    """What lies in shared memory, copied: its owner writes the next there, and a task may keep its arrays."""
    buffer = region.buf
    assert buffer is not None
    copy = memory.take(end - begin)
    copy[:] = buffer[begin:end]
    return copy


# --- the worker's process -----------------------------------------------------------------------------------------


def _serve(pipe: Connection, life: Connection, app: str) -> None:
    """A worker's process: runs units until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends its workers
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_die_with, args=(life,), daemon=True).start()
    try:
        runner = RemoteRunner(app)
    except OffloadError as error:
        pipe.send(str(error))
        return
    back = Region()
    memory = MemoryPool(KEPT_BYTES)
    there: SharedMemory | None = None
    try:
        pipe.send("")
        while True:
            message = pipe.recv()
            if isinstance(message, int):
                runner.forget(message)
                continue
            name, calls = message
            back.clear()
            if name and (there is None or there.name != name):
                if there is not None:
                    there.close()
                there = SharedMemory(name)
            for call, begin, end in calls:
                body = copied(there, begin, end, memory) if begin < end and there is not None else memoryview(b"")
                reply = runner.run(call, body)
                payload = reply.payload
                place = back.add(padded_body(payload) if payload is not None else ())
                pipe.send((without_buffers(reply), *place))
                del body, reply, payload
    except (EOFError, OSError):
        pass  # the server has ended
    finally:
        back.close()
        if there is not None:
            there.close()


def _die_with(life: Connection) -> None:
    """Ends this process when the server is gone, even while a task hangs."""
    try:
        life.recv()
    except (EOFError, OSError):
        os._exit(1)
