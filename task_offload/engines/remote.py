"""A unit's work in another process. In: what a unit consists of. Out: what its outcome consists of.

`RemoteRunner` is the far side; `outcome_of` makes an outcome of its reply on the near side.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, replace
from time import thread_time_ns
from typing import Any

from task_offload.engines.base import Done, Lane, Unit, set_cpu, work
from task_offload.errors import ProtocolError
from task_offload.runner import Kind, Outcome, Runner, States
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import Decoder, Encoder, Payload


@dataclass(frozen=True, slots=True)
class Call:
    """One unit for the far side. The payload's body travels apart."""

    lane: int
    device: str
    session: str
    sequence: int
    captured_at: float
    split: int
    head: bytes

    @staticmethod
    def of(unit: Unit) -> Call:
        item = unit.item
        return Call(unit.lane.number, item.device, item.session, item.sequence, item.captured_at, item.split, unit.head)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a unit. `payload` has the next task's arguments, where there are any."""

    kind: str
    task: int
    busy_ns: list[int]
    decode_ns: int
    cpu_ns: int
    error: tuple[str, str, str] | None  # its kind, its text, its traceback
    payload: Payload | None


class RemoteTaskError(Exception):
    """A task raised an error in another process.

    Attributes:
        kind: type and place of the error, equal for errors of one kind.
    """

    def __init__(self, kind: str, text: str, trace: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.__cause__ = _TracebackText(trace)


class _TracebackText(Exception):
    """Shows the traceback of another process where this one is shown."""

    def __init__(self, trace: str) -> None:
        super().__init__(trace)
        self._trace = trace

    def __str__(self) -> str:
        return f"\n{self._trace}"


class RemoteRunner:
    """The far side: the app, loaded once, and the sessions' states."""

    def __init__(self, app: str) -> None:
        chain = load_app(app)
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(1)  # the workers are the parallelism
        self._decoder = Decoder(chain.payload_types)
        self._encoder = Encoder(chain.payload_types, picture_quality=0)
        self._runner = Runner(chain)
        self._last = len(chain.tasks) - 1
        self._stateful = chain.stateful_between(chain.splits[0], self._last)
        self._states: dict[int, States] = {}

    def run(self, call: Call, body: memoryview) -> Reply:
        """Runs a unit. The reply's payload may lie in `body`, in part."""
        cpu_ns = thread_time_ns()
        item = Item(call.device, call.session, call.sequence, call.captured_at, call.split)
        unit = Unit(Lane(), item, call.head, body, 0, None)
        states = self._states.setdefault(call.lane, States()) if self._stateful else States()
        done = work(unit, self._decoder, self._runner, self._last, states)
        outcome = done.outcome
        payload: Payload | None = None
        if outcome.kind is Kind.CONTINUED:
            try:
                payload = self._encoder.encode(outcome.value)
            except Exception as problem:
                outcome = Outcome(Kind.FAILED, outcome.task, problem, outcome.busy_ns)
        error = _describe(outcome.value) if outcome.kind is Kind.FAILED else None
        cpu_ns = thread_time_ns() - cpu_ns
        return Reply(outcome.kind.value, outcome.task, outcome.busy_ns, done.decode_ns, cpu_ns, error, payload)

    def forget(self, lane: int) -> None:
        self._states.pop(lane, None)


class NearSide:
    """What a worker does here for units that run elsewhere."""

    def __init__(self, chain: Chain) -> None:
        self.app = chain.app
        self._decoder = Decoder(chain.payload_types)
        self._runner = Runner(chain)
        self._last = len(chain.tasks) - 1

    def run_here(self, unit: Unit) -> Done | None:
        """The outcome of a unit that has no task to run before the last one: to send it away costs more than it is."""
        if unit.item.split < self._last:
            return None
        cpu_ns = thread_time_ns()
        done = work(unit, self._decoder, self._runner, self._last, unit.lane.states)
        set_cpu([done], thread_time_ns() - cpu_ns)
        return done

    def done(self, unit: Unit, reply: Reply, body: memoryview, sent_ns: int) -> Done:
        """The outcome of a unit that ran elsewhere, and was sent there at `sent_ns` on `perf_counter_ns`."""
        cpu_ns = thread_time_ns()
        outcome = outcome_of(reply, self._decoder, body)
        unit.head, unit.body = b"", None  # so that the memory is free as soon as no array refers to it
        cpu_ns = reply.cpu_ns + thread_time_ns() - cpu_ns
        return Done(unit, outcome, reply.decode_ns, sent_ns - unit.arrived_ns, cpu_ns)


def outcome_of(reply: Reply, decoder: Decoder, body: memoryview) -> Outcome:
    """The outcome that a reply describes; `body` holds its payload's buffers, padded."""
    args: tuple[Any, ...] = ()
    if reply.payload is not None:
        try:
            args = decoder.decode(reply.payload.head, body)
        except ProtocolError as problem:  # a class of the app raises when it is made again: the task's fault
            return Outcome(Kind.FAILED, reply.task, problem, reply.busy_ns)
    kind = Kind(reply.kind)
    if kind is Kind.FAILED:
        assert reply.error is not None
        name, text, trace = reply.error
        forbidden = name == ProtocolError.__name__ and not reply.busy_ns
        error = ProtocolError(text) if forbidden else RemoteTaskError(name, text, trace)
        return Outcome(kind, reply.task, error, reply.busy_ns)
    return Outcome(kind, reply.task, args if kind is Kind.CONTINUED else None, reply.busy_ns)


def without_buffers(reply: Reply) -> Reply:
    """A reply whose payload's buffers travel apart."""
    payload = reply.payload
    if payload is None:
        return reply
    return replace(reply, payload=Payload(payload.head, (), payload.size_bytes))


def _describe(error: BaseException) -> tuple[str, str, str]:
    trace = traceback.extract_tb(error.__traceback__)
    place = f":{trace[-1].filename}:{trace[-1].lineno}" if trace and not isinstance(error, ProtocolError) else ""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    name = type(error).__name__
    return f"{name}{place}", str(error) if isinstance(error, ProtocolError) else f"{name}: {error}", text
