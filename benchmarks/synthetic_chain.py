"""A chain whose costs, payloads, survival and state are parameters, for measuring the framework itself.

It computes nothing useful, but its CPU work is real, its payloads are really there, and its results can be checked:
they are equal at every split and on every machine. The environment variable OFFLOAD_SYNTHETIC describes it, as JSON
or as the name of a JSON file; set it to the same on both sides:

    export OFFLOAD_SYNTHETIC='{"items": 300, "rate": 30, "tasks": [
        {"cost_ms": 2, "payload_bytes": 421500},
        {"cost_ms": 30, "payload_bytes": 1000, "survival": 0.5},
        {"cost_ms": 0.1}]}'
    python3 iot_client_coordinator.py --app benchmarks/synthetic_chain.py
    python3 -m benchmarks.synthetic_chain              prints what the tasks really cost here

Without the variable it is a chain with a heavy middle (`DEFAULT`). `--source` overrides the rate. Of the chain:

    tasks          at least two, see below
    items          how many there are before the source ends; null (the default) for no end
    rate           items a second that the source claims, default 30; `--realtime` keeps to it
    seed           another seed, other payloads and other survivors; default 0
    rounds_per_ms  {"free": ..., "held": ...}, as printed: a fixed amount of work, so that a slower machine takes
                   longer. By default each process measures its own when it starts, and every machine takes `cost_ms`

Of a task:

    name           default: its number, cost and payload, so that the two sides refuse each other's parameters
    cost_ms        CPU time on a core of its own, default 0, beside that of making the payload
    payload_bytes  size of the array that it returns, default 0; random bytes, which no codec makes smaller
    survival       share of the items that it lets continue, default 1; which ones depends on sequence and seed alone
    stateful, runs_on   as for `@task`
    holds_gil      false (the default): the work lets other threads run meanwhile, as OpenCV does; true: as Python does

The last task's result is `{"sequence": ..., "token": ...}`. The token has every task that ran in it, samples of every
payload, and what the tasks with state saw before.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task_offload.errors import AppError, SourceError
from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, Side, TaskFunction, current_item, load_app, task

VARIABLE = "OFFLOAD_SYNTHETIC"
DEFAULT = """{"tasks": [
    {"cost_ms": 2, "payload_bytes": 421500},
    {"cost_ms": 4, "payload_bytes": 57600},
    {"cost_ms": 30, "payload_bytes": 57600},
    {"cost_ms": 3, "payload_bytes": 1000, "survival": 0.5},
    {"cost_ms": 0.1}]}"""

_SAMPLE_EVERY = 4096  # bytes; a checksum of the whole payload would be a cost that nobody asked for
_CALIBRATION_MS = 1.0
_CALIBRATION_RUNS = 15
_MASK = (1 << 64) - 1

Payload = NDArray[np.uint8]


@dataclass(frozen=True)
class TaskParameters:
    """One task; the module's docstring tells what each parameter means."""

    name: str = ""
    cost_ms: float = 0.0
    payload_bytes: int = 0
    survival: float = 1.0
    stateful: bool = False
    runs_on: Side | None = None
    holds_gil: bool = False


@dataclass(frozen=True)
class ChainParameters:
    """The whole chain; the module's docstring tells what each parameter means."""

    tasks: tuple[TaskParameters, ...]
    items: int | None = None
    rate: float = 30.0
    seed: int = 0
    rounds_per_ms: Mapping[str, float] | None = None


def parse(text: str) -> ChainParameters:
    """Reads parameters from JSON.

    Raises:
        AppError: this is not JSON, a parameter is not known, or its value cannot work.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise AppError(f"{VARIABLE}: this is not JSON ({error})") from error
    chain = _known(ChainParameters, given, "the chain")
    if not isinstance(chain["tasks"], list) or len(chain["tasks"]) < 2:
        raise AppError(f'{VARIABLE}: give at least two tasks, such as "tasks": [{{"cost_ms": 5}}, {{"cost_ms": 1}}]')
    tasks = tuple(_task_parameters(each, number, len(chain["tasks"])) for number, each in enumerate(chain["tasks"], 1))
    parameters = ChainParameters(**{**chain, "tasks": tasks})
    _check(_number(parameters.rate) and parameters.rate > 0, "the chain", "rate must be above 0")
    _check(parameters.items is None or _whole(parameters.items), "the chain", "items must be a whole number or null")
    _check(type(parameters.seed) is int, "the chain", "seed must be a whole number")
    rounds = parameters.rounds_per_ms
    _check(
        rounds is None
        or (isinstance(rounds, dict) and rounds.keys() == {"free", "held"} and all(map(_number, rounds.values()))),
        "the chain",
        'rounds_per_ms must be {"free": NUMBER, "held": NUMBER}, as  python3 -m benchmarks.synthetic_chain  prints it',
    )
    return parameters


def _task_parameters(given: Any, number: int, count: int) -> TaskParameters:
    where = f"task {number}"
    values = _known(TaskParameters, given, where)
    each = TaskParameters(**values)
    _check(isinstance(each.name, str), where, "name must be text")
    _check(_number(each.cost_ms), where, "cost_ms must be 0 or more")
    _check(_whole(each.payload_bytes), where, "payload_bytes must be a whole number, 0 or more")
    _check(_number(each.survival) and each.survival <= 1, where, "survival must be between 0 and 1")
    _check(
        each.survival == 1 or 1 < number < count,
        where,
        "survival is for the tasks between the first, whose False ends the stream, and the last, which filters nothing",
    )
    _check(type(each.stateful) is bool and type(each.holds_gil) is bool, where, "a switch is true or false")
    name = each.name or f"t{number}_{each.cost_ms:g}ms_{each.payload_bytes}B"
    return TaskParameters(**{**values, "name": name})


def _known(kind: type, given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise AppError(f"{VARIABLE}: {where} must be an object in braces")
    known = {each.name: each for each in fields(kind)}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise AppError(f"{VARIABLE}: {where} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    missing = [name for name, each in known.items() if each.default is MISSING and name not in given]
    if missing:
        raise AppError(f"{VARIABLE}: {where} needs {missing[0]!r}")
    return given


def _check(holds: bool, where: str, otherwise: str) -> None:
    if not holds:
        raise AppError(f"{VARIABLE}: {where}: {otherwise}")


def _number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")  # type: ignore[operator]


def _whole(value: object) -> bool:
    return type(value) is int and value >= 0


def build(parameters: ChainParameters) -> list[TaskFunction]:
    """Makes the tasks that the parameters describe.

    Raises:
        AppError: a task's contract contradicts itself.
    """
    return [_task(index, parameters) for index in range(len(parameters.tasks))]


def _task(index: int, chain: ChainParameters) -> TaskFunction:
    mine = chain.tasks[index]
    is_first, is_last = index == 0, index == len(chain.tasks) - 1
    work = _work(mine, chain.rounds_per_ms)
    template = _random_bytes(mine.payload_bytes, chain.seed + index)

    def run(token: int = 0, payload: Payload | None = None) -> Any:
        item = current_item()
        if is_first and chain.items is not None and item.sequence >= chain.items:
            return False
        work()
        token = _mix(token, item.sequence, index, 0 if payload is None else _sample(payload))
        if mine.stateful:
            token = item.state["seen"] = _mix(item.state.get("seen", 0), token)
        if is_last:
            return True, {"sequence": item.sequence, "token": f"{token:016x}"}
        if mine.survival < 1 and _mix(chain.seed, item.sequence, index) >= mine.survival * 2**64:
            return False
        made = template.copy()  # the next task may write to it
        made[:8] = np.frombuffer(struct.pack("<Q", token), np.uint8)[: made.size]
        return True, (token, made)

    run.__name__ = run.__qualname__ = mine.name
    try:
        return task(runs_on=mine.runs_on, stateful=mine.stateful)(run)
    except ValueError as error:
        raise AppError(f"{VARIABLE}: task {index + 1}: {error}") from error


def _mix(*numbers: int) -> int:
    packed = struct.pack(f"<{len(numbers)}Q", *(number & _MASK for number in numbers))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def _sample(payload: Payload) -> int:
    return zlib.crc32(payload[::_SAMPLE_EVERY].tobytes() + payload[:8].tobytes())


def _random_bytes(size: int, seed: int) -> Payload:
    # SHAKE gives the same bytes everywhere; NumPy's generators may change between versions.
    return np.frombuffer(hashlib.shake_128(struct.pack("<q", seed)).digest(size), np.uint8)


def _work(mine: TaskParameters, rounds_per_ms: Mapping[str, float] | None) -> Callable[[], None]:
    if mine.cost_ms == 0:
        return lambda: None
    kind = "held" if mine.holds_gil else "free"
    per_ms = rounds_per_ms[kind] if rounds_per_ms is not None else calibrate(kind)
    rounds = max(1, round(mine.cost_ms * per_ms))
    run_rounds = _KINDS[kind]
    return lambda: run_rounds(rounds)


def _free_rounds(rounds: int) -> None:
    # One call that lets go of the interpreter lock once. Many short ones would each wait to get it back.
    hashlib.pbkdf2_hmac("sha256", b"synthetic", b"chain", rounds)


def _held_rounds(rounds: int) -> None:
    number = 1
    for _ in range(rounds):
        number = (number * 6364136223846793005 + 1442695040888963407) & _MASK


_KINDS: dict[str, Callable[[int], None]] = {"free": _free_rounds, "held": _held_rounds}


@cache
def calibrate(kind: str) -> float:
    """Rounds of work in a millisecond of an undisturbed core of this machine, `kind` being "free" or "held".

    It is the best of several runs, in CPU time: a quota, or work beside it, does not change what a task costs.
    """
    run_rounds, rounds, best_ms = _KINDS[kind], 100, 0.0
    while (best_ms := _cpu_ms(run_rounds, rounds)) < _CALIBRATION_MS:
        rounds *= 2
    return rounds / min([best_ms] + [_cpu_ms(run_rounds, rounds) for _ in range(_CALIBRATION_RUNS)])


def _cpu_ms(run_rounds: Callable[[int], None], rounds: int) -> float:
    started_ns = time.thread_time_ns()
    run_rounds(rounds)
    return (time.thread_time_ns() - started_ns) / 1e6


def _from_environment() -> ChainParameters:
    text = os.environ.get(VARIABLE) or DEFAULT
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise AppError(f"{VARIABLE}: neither JSON in braces nor a file that can be read ({error})") from error
    return parse(text)


parameters = _from_environment()
tasks = build(parameters)


def open_source(source: str | None) -> float:
    """Returns the rate: `source` in items a second, or the parameters' where it is None.

    Raises:
        SourceError: `source` is not a rate.
    """
    if source is None:
        return parameters.rate
    try:
        rate = float(source)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise SourceError(f"source {source}: give items a second, such as 30")
    return rate


def main() -> None:
    """Prints what each task costs here, asked and measured, and the rounds that make it reproducible elsewhere."""
    runner = Runner(load_app(__file__))
    states = States()
    busy_ns: list[list[int]] = [[] for _ in tasks]
    for sequence in range(min(parameters.items or 50, 50)):
        outcome = runner.run(Item("here", "0" * 32, sequence, 0.0, len(tasks)), states, (), 0, len(tasks))
        if outcome.kind is Kind.FAILED:
            raise outcome.value
        for index, task_ns in enumerate(outcome.busy_ns):
            busy_ns[index].append(task_ns)
    print(f"{'task':32} {'asked ms':>9} {'best ms':>9} {'mean ms':>9} {'items':>6}")
    for each, spent_ns in zip(parameters.tasks, busy_ns, strict=True):
        if spent_ns:
            best_ms, mean_ms = min(spent_ns) / 1e6, sum(spent_ns) / len(spent_ns) / 1e6
            print(f"{each.name:32} {each.cost_ms:9.2f} {best_ms:9.2f} {mean_ms:9.2f} {len(spent_ns):6d}")
    print(json.dumps({"rounds_per_ms": {kind: round(calibrate(kind), 1) for kind in _KINDS}}))


if __name__ == "__main__":
    main()
