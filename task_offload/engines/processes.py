"""Units run in processes: for tasks that hold the interpreter lock. Payloads and arguments travel in shared memory.

Each worker's process gets a unit's body in memory that this side owns, and puts the arguments of the last task into
memory that it owns; only what is small goes through the pipe. A process that dies is replaced.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from time import perf_counter_ns

from task_offload.engines.base import Done, Lane, TaskTimeoutError, Unit, WorkerLostError
from task_offload.engines.remote import Call, RemoteRunner, Reply, outcome_of
from task_offload.task import Chain
from task_offload.wire.codec import BODY_ALIGNMENT, Decoder
from task_offload.wire.memory import MemoryPool

FIRST_BYTES = 1024 * 1024
KEPT_BYTES = 16 * 1024 * 1024
START_S = 60.0  # for a process to load the app

_context = multiprocessing.get_context("spawn")  # a fork would copy other threads' locks as they are


class ProcessWorker:
    """Runs units in one process, which it starts, and starts again when it dies."""

    def __init__(self, chain: Chain, timeout_s: float) -> None:
        self._app = chain.app
        self._timeout_s = timeout_s
        self._decoder = Decoder(chain.payload_types)
        self._memory = MemoryPool(KEPT_BYTES)
        self._killed = False
        self._process: BaseProcess | None = None
        self._pipe: Connection
        self._there = _Region()  # what the process gets
        self._back: SharedMemory | None = None  # what it gives
        self._start()

    def run(self, unit: Unit) -> Done:
        began_ns = perf_counter_ns()
        if self._process is None:
            self._start()
        self._killed = False
        body_bytes = len(unit.body) if unit.body is not None else 0
        try:
            name = self._there.put([unit.body] if unit.body is not None else [])
            self._pipe.send((Call.of(unit), name, body_bytes))
            reply, name, body_bytes = self._pipe.recv()
            outcome = outcome_of(reply, unit.item, self._decoder, self._body(name, body_bytes))
        except (EOFError, OSError) as error:
            self._end()
            if self._killed:
                raise TaskTimeoutError(f"more than {self._timeout_s:g} s") from None
            raise WorkerLostError("a worker's process died") from error
        unit.head, unit.body = memoryview(b""), None
        return Done(unit, outcome, reply.decode_ns, began_ns - unit.arrived_ns, reply.cpu_ns)

    def _body(self, name: str, size_bytes: int) -> memoryview:
        """A copy of what the process gave, so that it may use its memory again."""
        if not size_bytes:
            return memoryview(b"")
        if self._back is None or self._back.name != name:
            if self._back is not None:
                self._back.close()
            self._back = SharedMemory(name)
        return _copied(self._back, size_bytes, self._memory)

    def forget(self, lane: Lane) -> None:
        if self._process is not None:
            try:
                self._pipe.send((id(lane), "", 0))
            except OSError:
                pass  # a process that died has forgotten

    def kill(self) -> bool:
        self._killed = True
        if self._process is not None:
            self._process.kill()
        return True

    def close(self) -> None:
        self._end()
        self._there.close()

    def _start(self) -> None:
        self._pipe, far = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(far, self._app), name="offload worker", daemon=True)
        self._process.start()
        far.close()

    def _end(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.join(1.0)
            self._process.kill()
            self._process.join()
            self._process = None
        if self._back is not None:
            self._back.close()
            try:
                self._back.unlink()  # a process that was killed could not
            except FileNotFoundError:
                pass
            self._back = None


class _Region:
    """Shared memory that grows."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def put(self, parts: list[memoryview]) -> str:
        """Copies the parts in, each padded as a body demands. Returns the memory's name, "" for nothing."""
        size_bytes = sum(_padded(len(part)) for part in parts)
        if not size_bytes:
            return ""
        if self._memory is None or self._memory.size < size_bytes:
            self.close()
            self._memory = SharedMemory(create=True, size=max(FIRST_BYTES, size_bytes + size_bytes // 2))
        buffer = self._memory.buf
        assert buffer is not None
        at = 0
        for part in parts:
            end = at + _padded(len(part))
            buffer[at : at + len(part)] = part
            buffer[at + len(part) : end] = bytes(end - at - len(part))
            at = end
        return self._memory.name

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            try:
                self._memory.unlink()
            except FileNotFoundError:
                pass
            self._memory = None


def _copied(region: SharedMemory, size_bytes: int, memory: MemoryPool) -> memoryview:
    """What lies in shared memory, copied: its owner writes the next there, and a task may keep its arrays."""
    buffer = region.buf
    assert buffer is not None
    copy = memory.take(size_bytes)
    copy[:] = buffer[:size_bytes]
    return copy


def _padded(size_bytes: int) -> int:
    return size_bytes + -size_bytes % BODY_ALIGNMENT


def _serve(pipe: Connection, app: str) -> None:
    """A worker's process: runs units until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends its workers
    runner = RemoteRunner(app)
    back = _Region()
    memory = MemoryPool(KEPT_BYTES)
    there: SharedMemory | None = None
    try:
        while True:
            call, name, body_bytes = pipe.recv()
            if not isinstance(call, Call):
                runner.forget(call)
                continue
            if name and (there is None or there.name != name):
                if there is not None:
                    there.close()
                there = SharedMemory(name)
            body = _copied(there, body_bytes, memory) if name and there is not None else memoryview(b"")
            reply = runner.run(call, body)
            buffers = list(reply.payload.buffers) if reply.payload is not None else []
            name = back.put(buffers)
            pipe.send((_without_buffers(reply), name, sum(_padded(len(each)) for each in buffers)))
            del body, reply, buffers
    except (EOFError, OSError):
        pass  # the server has ended
    finally:
        back.close()
        if there is not None:
            there.close()


def _without_buffers(reply: Reply) -> Reply:
    payload = reply.payload
    if payload is None:
        return reply
    return Reply(
        reply.kind, reply.task, reply.busy_ns, reply.decode_ns, reply.cpu_ns, reply.error,
        type(payload)(payload.head, (), payload.size_bytes),
    )  # fmt: skip
