"""Running tasks on an item: every outcome, busy times, states, and errors logged once per kind."""

from __future__ import annotations

import gc
import logging
import sys
from asyncio import CancelledError
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from task_offload.engines.remote import RemoteTaskError
from task_offload.errors import SourceError
from task_offload.picture import picture
from task_offload.runner import LONGEST_PAUSE_S, Kind, Outcome, Runner, States, TaskErrorLog, pause_s, settle
from task_offload.task import Chain, Contract, Item, Task, current_item, set_current_item


class Panic(BaseException):
    """As extensions in Rust raise it."""


ITEM = Item("device", "0" * 32, 0, 0.0, 1)


def chain(*functions: Any) -> Chain:
    return Chain("test", tuple(Task(getattr(f, "__name__", "task"), f, Contract()) for f in functions))


def run(*functions: Any, args: tuple[Any, ...] = (), begin: int = 0, end: int | None = None) -> Outcome:
    made = chain(*functions)
    return Runner(made).run(ITEM, States(), args, begin, len(functions) if end is None else end)


def last(*args: Any) -> Any:
    return True, list(args)


@pytest.mark.parametrize(
    ("args", "given"),
    [
        (None, []),
        ((), []),
        (5, [5]),
        ((5,), [5]),
        ((1, 2), [1, 2]),
        ([1, 2], [[1, 2]]),
        (((1, 2),), [(1, 2)]),
        (False, [False]),
    ],
)
def test_arguments_of_the_next_task(args: Any, given: list[Any]) -> None:
    assert run(lambda: (True, args), last).value == given


@pytest.mark.parametrize("no", [False, (False, None), (False, 3), (np.False_, 1)])
def test_filtered(no: Any) -> None:
    outcome = run(lambda: (True, 1), lambda x: no, last)
    assert (outcome.kind, outcome.task, outcome.value) == (Kind.FILTERED, 1, None)
    assert len(outcome.busy_ns) == 2


@pytest.mark.parametrize(
    ("returned", "result"),
    [
        ((True, 3), 3),
        ((False, 3), 3),  # the last task completes whatever it says
        (False, None),
        (None, None),
        ((True, None), None),
        ((np.True_, [1]), [1]),
    ],
)
def test_completed(returned: Any, result: Any) -> None:
    outcome = run(lambda: (True, 1), lambda x: returned)
    assert (outcome.kind, outcome.task, outcome.value) == (Kind.COMPLETED, 1, result)


@pytest.mark.parametrize(
    "returned", [None, True, 1, "x", (True,), (True, 1, 2), ("yes", 1), (1, 1), (None, 1), [True, 1], np.zeros(3)]
)
def test_broken_contracts(returned: Any) -> None:
    in_the_midst = run(lambda: (True, 1), lambda x: returned, last)
    at_the_end = run(lambda: (True, 1), lambda x: returned)
    for outcome in [in_the_midst] if returned is None else [in_the_midst, at_the_end]:
        assert (outcome.kind, outcome.task) == (Kind.FAILED, 1)
        assert "a task returns (to_continue, args) with a bool first, or just False" in str(outcome.value)


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (7, "int"),
        ((True, 1, 2), "a tuple of 3"),
        ((1, 5), "a tuple of 2 whose first value is int (1), not a bool"),
        (("y" * 999, 5), "a tuple of 2 whose first value is str ('yyyyyyyyyyyy...yyyyyyyyyyyyy'), not a bool"),
    ],
)
def test_a_broken_contract_says_what_is_wrong(returned: Any, what: str) -> None:
    outcome = run(lambda: (True, 1), lambda x: returned, last)
    assert str(outcome.value).startswith(f"it returned {what}; a task returns")


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(2), MemoryError(), RecursionError(), StopIteration(), CancelledError(), Panic("x")],
)
def test_failed(error: BaseException) -> None:
    def fails(x: int) -> None:
        raise error

    outcome = run(lambda: (True, 1), fails, last)
    assert (outcome.kind, outcome.task, outcome.value) == (Kind.FAILED, 1, error)
    assert len(outcome.busy_ns) == 2


def test_wrong_number_of_arguments_is_a_task_error() -> None:
    outcome = run(lambda: (True, (1, 2, 3)), lambda x: (True, x), last)
    assert outcome.kind is Kind.FAILED
    assert isinstance(outcome.value, TypeError)


def test_a_source_that_is_gone_ends_the_run_and_nothing_else_does() -> None:
    def gone(*args: Any) -> None:
        raise SourceError("unplugged")

    with pytest.raises(SourceError):
        run(gone, last)
    assert run(lambda: (True, 1), gone, last).kind is Kind.FAILED


def test_ctrl_c_is_no_task_error() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, last)
    with ThreadPoolExecutor(1) as other_thread:  # where Ctrl-C never comes: the task itself raised it
        assert other_thread.submit(run, interrupted, last).result().kind is Kind.FAILED


def test_a_part_of_the_chain() -> None:
    functions = [lambda: (True, 1), lambda x: (True, x + 1), lambda x: (True, (x * 2, "y")), last]
    outcome = run(*functions, args=(10,), begin=1, end=3)
    assert (outcome.kind, outcome.task, outcome.value) == (Kind.CONTINUED, 2, (22, "y"))
    assert len(outcome.busy_ns) == 2
    assert run(*functions, args=(3,), begin=1, end=1) == (Kind.CONTINUED, 1, (3,), [], [])


def test_pictures_are_arrays_to_the_tasks_and_marked_at_the_cut() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    seen = []

    def look(x: Any) -> Any:
        seen.append(x)
        return True, picture(x)

    outcome = run(lambda: (True, picture(image)), look, last, end=2)
    assert seen[0] is image
    assert outcome.value[0].image is image


def test_each_task_has_its_own_state_and_no_item_is_left_behind() -> None:
    def count(*args: Any) -> Any:
        state = current_item().state
        state["n"] = state.get("n", 0) + 1
        return True, state["n"]

    made = chain(lambda: (True, None), count, lambda x: (True, (x, current_item().state)), last)
    states = States()
    for expected in (1, 2, 3):
        outcome = Runner(made).run(ITEM, states, (), 0, 4)
        assert outcome.value == [expected, {}]
    assert states.of_task(1) == {"n": 3}
    with pytest.raises(Exception, match="outside a task"):
        current_item()


def test_no_item_is_left_behind_after_an_error() -> None:
    run(lambda: 1 / 0, last)
    with pytest.raises(Exception, match="outside a task"):
        current_item()
    set_current_item(None)


# -- the log of task errors ---------------------------------------------------------------------------------------


def failure(function: Any) -> Outcome:
    return run(function, last)


def test_each_kind_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def one() -> None:
        raise ValueError("first place")

    def two() -> None:
        raise KeyError("other")

    errors = TaskErrorLog(("capture", "last"))
    with caplog.at_level(logging.ERROR):
        details = [errors.failed(failure(each), "pi", n) for n, each in enumerate([one, one, two, one, two])]
    assert details[0] == "capture: ValueError: first place"
    assert len(caplog.records) == 2
    assert "task capture failed on item 0 of device pi" in caplog.text
    assert "Traceback" in caplog.text


def test_kinds_without_end_are_not_logged_without_end(caplog: pytest.LogCaptureFixture) -> None:
    errors = TaskErrorLog(("capture", "last"))
    classes = [type(f"Error{n}", (Exception,), {}) for n in range(150)]
    with caplog.at_level(logging.ERROR):
        for each in classes:
            assert errors.failed(Outcome(Kind.FAILED, 0, each("x"), []), "pi", 0).startswith("capture: Error")
    assert len(caplog.records) == errors.MAX_KINDS


@pytest.mark.parametrize("text", ["x" * 1000, "é" * 1000, "\ud800" * 300, "a\nb\tc\r\nd", "\x1b[2J\0"])
def test_the_detail_is_one_short_line_that_can_travel(text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "task_offload.runner")  # such a line does not travel to pytest
    detail = TaskErrorLog(("t", "u")).failed(Outcome(Kind.FAILED, 0, ValueError(text), []), "pi", 0)
    assert len(detail.encode()) <= 255
    assert "\n" not in detail
    assert "\r" not in detail


def test_an_error_of_another_process_reads_as_it_would_here() -> None:
    here, there = ValueError("no ball"), RemoteTaskError("ValueError:app.py:3", "ValueError: no ball", "Traceback ...")
    details = [TaskErrorLog(("t", "u")).failed(Outcome(Kind.FAILED, 0, each, []), "pi", 0) for each in (here, there)]
    assert details == ["t: ValueError: no ball"] * 2


def test_an_error_without_a_text() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    detail = TaskErrorLog(("t", "u")).failed(Outcome(Kind.FAILED, 0, Bad(), []), "pi", 0)
    assert detail.startswith("t: Bad")


def test_busy_time_is_the_tasks_own() -> None:
    def work() -> Any:
        sum(range(200_000))
        return True, 1

    outcome = run(work, lambda x: (True, x))
    assert outcome.busy_ns[0] > 10 * outcome.busy_ns[1] > 0


def test_the_runner_needs_no_recursion_for_long_chains() -> None:
    functions = [lambda: (True, 0)] + [lambda x: (True, x + 1)] * 253 + [last]
    assert len(functions) <= 255
    assert run(*functions).value == [253]
    assert sys.getrecursionlimit() >= 100


def test_pauses_after_failures_grow_up_to_a_limit() -> None:
    pauses_s = [pause_s(failures) for failures in range(1, 10_000)]
    assert pauses_s[0] < 0.01  # one hiccup costs next to nothing
    assert pauses_s == sorted(pauses_s)
    assert pauses_s[-1] == LONGEST_PAUSE_S


def test_what_is_loaded_before_the_items_come_is_not_looked_through_for_garbage() -> None:
    settle()
    try:
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
