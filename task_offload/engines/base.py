"""What an engine does. In: units of work. Out: their outcomes, in any order, on any thread.

A unit is what the cloud does with one item up to the last task: decode its payload, run the tasks between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter_ns
from typing import Any, Protocol

from task_offload.errors import ProtocolError
from task_offload.runner import Kind, Outcome, Runner, States
from task_offload.task import Item
from task_offload.wire.codec import Decoder

_numbers = count()


class Lane:
    """The units of one session, as an engine queues them. The engine guards it.

    Attributes:
        number: tells it from all others of this process, ever.
        weight: its part of the workers' time while others want more than there is, by theirs.
        states: what the session's stateful tasks keep, where they run in this process.
        units: those that wait, in sequence order.
        running: how many are being worked on.
        slot: the worker that has the session's state, where a worker has it; None before the first unit.
        queued, start_ns, cost_ns: see `FairQueue`; the last is what a unit is expected to take, None if unknown.
    """

    __slots__ = ("cost_ns", "number", "queued", "running", "slot", "start_ns", "states", "units", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.number = next(_numbers)
        self.weight = weight
        self.states = States()
        self.units: deque[Unit] = deque()
        self.running = 0
        self.slot: int | None = None
        self.queued = False
        self.start_ns = 0
        self.cost_ns: int | None = None


@dataclass(slots=True, eq=False)
class Unit:
    """One item's work in the cloud.

    Attributes:
        lane: its session's queue.
        item: what its tasks may know.
        head, body: its payload, as `Decoder.decode` takes it.
        tag: the codec's tag, as the device gave it.
        owner: whatever the engine's caller needs to find its way back.
        size_bytes: of the payload, as it came.
        received_ns: busy time for receiving it.
        arrived_ns: when it was handed to the engine, on `perf_counter_ns`.
        charged_ns: what its lane was charged for it before it ran.
        tries: how often a worker died with it.
    """

    lane: Lane
    item: Item
    head: bytes
    body: memoryview | None
    tag: int
    owner: Any
    size_bytes: int = 0
    received_ns: int = 0
    arrived_ns: int = 0
    charged_ns: int = 0
    tries: int = 0


@dataclass(slots=True)
class Done:
    """A unit's outcome, with what it cost.

    Attributes:
        decode_ns: busy time for decoding.
        queued_ns: how long it waited for a worker.
        cpu_ns: CPU time for all of it.
    """

    unit: Unit
    outcome: Outcome
    decode_ns: int
    queued_ns: int
    cpu_ns: int

    @property
    def busy_ns(self) -> int:
        """Busy time of decoding and of the tasks."""
        return self.decode_ns + sum(self.outcome.busy_ns)

    @property
    def forbidden(self) -> ProtocolError | None:
        """What is wrong with a payload that may not be decoded."""
        error = self.outcome.value
        return error if isinstance(error, ProtocolError) and not self.outcome.busy_ns else None


class TaskTimeoutError(Exception):
    """A unit's tasks took longer than they may."""


class WorkerLostError(Exception):
    """A worker died while it had a unit."""


class WorkerGoneError(WorkerLostError):
    """A worker had died before it was given its units, so none of them is to blame."""


class Engine(Protocol):
    """Runs units. Each one that is submitted is among those that `finished` is called with, once."""

    def submit(self, units: Sequence[Unit]) -> None:
        """Takes units. Those of one lane come in sequence order. Never blocks."""

    def forget(self, lane: Lane) -> None:
        """The session is over: drops what waits of it, without a call of `finished`, and its state."""

    def close(self) -> None:
        """Ends the workers. What waits is not run."""

    @property
    def waiting(self) -> int:
        """How many units wait for a worker. Those that must wait for an earlier one of their lane do not."""

    @property
    def taken(self) -> int:
        """How many units workers have taken so far."""


class Worker(Protocol):
    """Runs units for one thread of a `Pool`, which calls everything but `kill`. It begins to start when it is made."""

    def wait(self) -> None:
        """Waits until it has started, or has started again; returns at once if it runs.

        Raises:
            OffloadError: it cannot; the message says why. It may be called again.
        """

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        """Runs units, one after the other in this order. Their outcomes are whole when the last one has come.

        Raises:
            WorkerLostError: the worker died with the first unit that has no outcome yet; `wait` starts another.
            TaskTimeoutError: `kill` was called meanwhile; `wait` starts another worker.
        """

    def forget(self, lane: Lane) -> None:
        """Drops a session's state."""

    def kill(self) -> bool:
        """The unit takes too long: ends it, from another thread. False if that is not possible."""

    def close(self) -> None:
        """Ends the worker."""


Finished = Callable[[Sequence[Done]], None]
_EMPTY = memoryview(b"")


def work(unit: Unit, decoder: Decoder, runner: Runner, last: int, states: States) -> Done:
    """Decodes a unit's payload and runs its tasks up to, not with, the last one, whose index is `last`.

    The outcome's `cpu_ns` is the time that passed; the caller corrects it by `set_cpu`.
    """
    began_ns = perf_counter_ns()
    split = unit.item.split
    try:
        args = decoder.decode(unit.head, _EMPTY if unit.body is None else unit.body)
        decoded_ns = perf_counter_ns()
        outcome = runner.run(unit.item, states, args, split, last)
    except Exception as error:  # of decoding: what may not travel, or what a class of the app raises
        decoded_ns = perf_counter_ns()
        outcome = Outcome(Kind.FAILED, split, error, [])
    unit.head, unit.body = b"", None  # so that the memory is free as soon as no array refers to it
    return Done(unit, outcome, decoded_ns - began_ns, began_ns - unit.arrived_ns, perf_counter_ns() - began_ns)


def set_cpu(batch: Sequence[Done], cpu_ns: int) -> None:
    """Divides the CPU time of a batch among its units, by the time that passed with each.

    To ask for a thread's CPU time takes 1.5 us, a tenth of what a small item takes.
    """
    passed_ns = max(1, sum(done.cpu_ns for done in batch))
    for done in batch:
        done.cpu_ns = done.cpu_ns * cpu_ns // passed_ns
