"""Records become rows and books: what is written for every kind of result, and what is counted."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.results.base import (
    MAX_REASONS,
    MAX_SEQUENCE,
    RESULT_BYTES,
    SessionBooks,
    result_json,
    rows_of,
)
from tests.results.records import record

Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"x": 1.5, "found": True, "name": "ball"}, {"x": 1.5, "found": True, "name": "ball"}),
        ((1, None, [2]), [1, None, [2]]),
        (Point(1, 2), [1, 2]),
        (np.float32(0.5), 0.5),
        (np.int64(-7), -7),
        (np.bool_(True), True),
        (np.longdouble(2.5), 2.5),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ({"at": np.array([1.5, math.nan])}, {"at": [1.5, None]}),
        ([math.nan, math.inf, -math.inf, 1.0], [None, None, None, 1.0]),
        (np.float64("nan"), None),
        ({1: "a", np.int32(2): "b", None: "c", 0.5: "d"}, {"1": "a", "2": "b", "null": "c", "0.5": "d"}),
        ("caf\u00e9 \U0001f3c0", "caf\u00e9 \U0001f3c0"),
        (2**70, 2**70),
    ],
)
def test_results_become_valid_json(result: Any, expected: Any) -> None:
    assert json.loads(result_json(result), parse_constant=pytest.fail) == expected


class _Raises:
    def __iter__(self) -> Any:
        raise RuntimeError("not today")


class _RaisingDict(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError("not today")


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "not plain data"),
        (b"bytes", "not plain data"),
        ({1, 2}, "not plain data"),
        (np.complex64(1j), "not plain data"),
        (np.datetime64("2026-01-01"), "not plain data"),
        ({(1, 2): 3}, "not plain data"),
        (_Raises(), "not plain data"),
        (_RaisingDict(a=math.nan), "not plain data"),
        (_circle(), "not plain data|nested"),
        (_nested(100_000), "nested"),
        (np.zeros((281, 500, 3), np.uint8), "shape"),
        ([np.zeros((281, 500, 3), np.uint8)], "shape"),
        ("x" * RESULT_BYTES, "bytes"),
    ],
)
def test_a_result_that_cannot_be_recorded_completes_its_item_all_the_same(result: Any, reason: str) -> None:
    (row,) = rows_of(record(result=result))
    assert row.ending == "completed"
    assert row.result is None
    assert row.detail is not None
    assert row.detail.startswith("result not recorded: ")
    with pytest.raises(ValueError, match=reason):
        result_json(result)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_plain_data_becomes_ascii_json(result: Any) -> None:
    text = result_json(result)
    assert text.isascii()
    json.loads(text, parse_constant=pytest.fail)


def test_a_run_of_drops_has_a_row_for_each_sequence() -> None:
    rows = rows_of(record(7, "dropped", "overload", items=3))
    assert [(row.sequence, row.ending, row.detail) for row in rows] == [
        (7, "dropped", "overload"), (8, "dropped", "overload"), (9, "dropped", "overload"),
    ]  # fmt: skip


def test_text_that_cannot_be_stored_is_escaped() -> None:
    (row,) = rows_of(record(0, "dropped", "task_error: \ud800 and \0" + "x" * 9999))
    assert row.detail is not None
    row.detail.encode()
    assert row.detail.startswith("task_error: \\ud800 and \\x00xxx")
    assert len(row.detail) < 600


@pytest.mark.parametrize(
    "wrong",
    [
        record(-1),
        record(MAX_SEQUENCE),
        record(0, "gone"),
        record(0, "filtered", "find_contours", items=2),
        record(0, "dropped", "overload", items=0),
        record(0, captured_at=math.nan),
        record(0, finished_at=math.inf),
    ],
)
def test_a_record_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"sequence|ending|run|finite"):
        wrong.check()


def test_books_count_each_ending_and_each_reason() -> None:
    books = SessionBooks().extended(
        [
            record(0, cloud_cpu_s=0.25, bytes_received=100),
            record(1, "filtered", "find_contours", cloud_cpu_s=0.5),
            record(2, "dropped", "overload", items=10),
            record(12, "dropped", "task_error: calculate_hsv: ValueError"),
            record(13, "dropped", "task_error: draw_circle: TypeError"),
            record(14, "dropped"),
        ]
    )
    assert books == SessionBooks(15, 1, 1, {"overload": 10, "task_error": 2, "other": 1}, 0.75, 100)


def test_a_device_cannot_make_the_books_grow_by_inventing_reasons() -> None:
    books = SessionBooks().extended(record(i, "dropped", f"reason {i}") for i in range(1000))
    assert len(books.dropped) == MAX_REASONS + 1
    assert sum(books.dropped.values()) == 1000
