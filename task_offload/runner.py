"""Runs some tasks of a chain on one item. In: arguments. Out: an outcome, with each task's busy time."""

from __future__ import annotations

import gc
import logging
import reprlib
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum
from time import perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

import numpy as np

from task_offload.errors import SourceError
from task_offload.picture import Picture
from task_offload.task import Chain, Item, set_current_item

log = logging.getLogger(__name__)

_BOOLS = (bool, np.bool_)
DETAIL_BYTES = 200
LONGEST_PAUSE_S = 1.0


class Kind(Enum):
    """How a run over some tasks of the chain ended."""

    CONTINUED = "continued"
    FILTERED = "filtered"
    COMPLETED = "completed"
    FAILED = "failed"


class Outcome(NamedTuple):
    """What became of an item after some tasks of the chain.

    Attributes:
        kind: `CONTINUED` before the last task, `COMPLETED` after it, `FILTERED` and `FAILED` anywhere.
        task: index of the last task that ran.
        value: CONTINUED: the next task's arguments, a tuple in which a `Picture` marks a picture; COMPLETED: the
            result or None; FAILED: the exception; FILTERED: None.
        busy_ns: busy time of each task that ran, in order, in nanoseconds.
        cpu_ns: CPU time of this thread in each, where it was to be measured; empty otherwise.
    """

    kind: Kind
    task: int
    value: Any
    busy_ns: list[int]
    cpu_ns: Sequence[int] = ()


class States:
    """The state of a session's tasks: one dict for each task, made on first use."""

    def __init__(self) -> None:
        self._of_task: defaultdict[int, dict[str, Any]] = defaultdict(dict)

    def of_task(self, index: int) -> dict[str, Any]:
        return self._of_task[index]


class TaskThread(threading.Thread):
    """Runs tasks. One that hangs in a task keeps no process alive."""

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)


class Runner:
    """Runs tasks of one chain. Threads may share it; a session's stateful tasks must not run at the same time."""

    def __init__(self, chain: Chain) -> None:
        self._functions = tuple(task.function for task in chain.tasks)
        self._last = len(chain.tasks) - 1

    def run(
        self, item: Item, states: States, args: tuple[Any, ...], begin: int, end: int, measure_cpu: bool = False
    ) -> Outcome:
        """Runs the tasks with index begin to end-1 on one item.

        Arguments:
            item: what `current_item()` gives inside the tasks; its `state` and `published` are overwritten.
            states: the session's state on this side.
            args: arguments of task `begin`, as `Outcome.value` gives them.
            measure_cpu: the outcome tells CPU time too, at the cost of a system call for each task.

        Raises:
            SourceError: the first task said that its source is gone for good.
            KeyboardInterrupt: Ctrl-C came, on the main thread. Every other exception is an outcome.
        """
        busy_ns: list[int] = []
        cpu_ns: list[int] = []
        functions, last, of_task = self._functions, self._last, states.of_task
        index = begin
        set_current_item(item)
        cpu_clock = thread_time_ns if measure_cpu else None
        cpu_started = cpu_clock() if cpu_clock is not None else 0
        started = perf_counter_ns()
        try:
            for index in range(begin, end):
                item.state = of_task(index)
                returned = functions[index](*[a.image if type(a) is Picture else a for a in args])
                ended = perf_counter_ns()
                busy_ns.append(ended - started)
                started = ended
                if cpu_clock is not None:
                    cpu_ended = cpu_clock()
                    cpu_ns.append(cpu_ended - cpu_started)
                    cpu_started = cpu_ended
                if index == last:
                    return Outcome(Kind.COMPLETED, index, _result(returned), busy_ns, cpu_ns)
                if returned is False:
                    return Outcome(Kind.FILTERED, index, None, busy_ns, cpu_ns)
                if type(returned) is not tuple or len(returned) != 2 or not isinstance(returned[0], _BOOLS):
                    raise TypeError(_broken_contract(returned))
                to_continue, args = returned
                if not to_continue:
                    return Outcome(Kind.FILTERED, index, None, busy_ns, cpu_ns)
                if type(args) is not tuple:
                    args = () if args is None else (args,)
            return Outcome(Kind.CONTINUED, index, args, busy_ns, cpu_ns)
        except BaseException as error:  # sys.exit() or a cancelled coroutine must not end the worker
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # the user's
            if len(busy_ns) == index - begin:
                busy_ns.append(perf_counter_ns() - started)
                if cpu_clock is not None:
                    cpu_ns.append(cpu_clock() - cpu_started)
            if index == 0 and isinstance(error, SourceError):
                raise
            return Outcome(Kind.FAILED, index, error, busy_ns, cpu_ns)
        finally:
            set_current_item(None)


def _result(returned: Any) -> Any:
    """The last task's result: its second value. `False`, or nothing at all, is no result."""
    if returned is False or returned is None:
        return None
    if type(returned) is not tuple or len(returned) != 2 or not isinstance(returned[0], _BOOLS):
        raise TypeError(_broken_contract(returned))
    return returned[1]


def _broken_contract(returned: Any) -> str:
    what = f"a tuple of {len(returned)}" if type(returned) is tuple else f"{type(returned).__name__}"
    if type(returned) is tuple and len(returned) == 2:
        first = returned[0]
        what += f" whose first value is {type(first).__name__} ({reprlib.repr(first)}), not a bool"
    return f"it returned {what}; a task returns (to_continue, args) with a bool first, or just False"


def settle() -> None:
    """Before items come: takes what is loaded out of the garbage collector's sight.

    To look through all modules again takes a weak device a tenth of a second, in the middle of some task.
    """
    gc.collect()
    gc.freeze()


def pause_s(failures: int) -> float:
    """How long to wait after so many failures of the first task in a row: a broken sensor must not make it spin."""
    return min(LONGEST_PAUSE_S, 0.001 * (1 << min(failures, 12)))


class TaskErrorLog:
    """Logs a task's error with its traceback once per kind: the same task, exception and place."""

    MAX_KINDS = 100  # an exception whose place changes with every item must not grow this for ever

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._seen: set[tuple[int, str, int | None]] = set()
        self._lock = threading.Lock()

    def failed(self, outcome: Outcome, device: str, sequence: int) -> str:
        """Logs a FAILED outcome if it is new in kind. Returns the detail to record, one line."""
        error: BaseException = outcome.value
        trace = traceback.extract_tb(error.__traceback__)
        place = trace[-1].lineno if trace else None
        kind = (outcome.task, getattr(error, "kind", type(error).__name__), place)
        name = self._names[outcome.task]
        with self._lock:
            new = kind not in self._seen and len(self._seen) < self.MAX_KINDS
            if new:
                self._seen.add(kind)
        if new:
            log.error(
                "task %s failed on item %d of device %s; the item is dropped, the stream goes on "
                "(further errors of this kind are only counted)",
                name, sequence, device, exc_info=error,
            )  # fmt: skip
        try:
            text = str(error)
        except Exception:
            text = "(its text cannot be made)"
        if not hasattr(error, "kind"):  # an error of another process names its type itself
            text = f"{type(error).__name__}: {text}"
        line = " ".join(f"{name}: {text}".split())
        return line.encode("utf-8", "backslashreplace")[:DETAIL_BYTES].decode(errors="ignore")
