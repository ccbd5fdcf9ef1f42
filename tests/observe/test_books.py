"""A device's books: what they learn from the cloud's, whatever happens to the cloud."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from task_offload.observe.books import Books
from task_offload.wire.messages import Totals


def test_they_add_up() -> None:
    books = Books(captured=20)
    assert books.learn(Totals(4, 2, 1, {"overload": 1}, 1_500_000)) == 3
    assert books.learn(Totals(10, 6, 2, {"overload": 1, "task_error": 1}, 2_000_000)) == 5
    books.dropped["undelivered"] += 3
    books.left["spooled"] = 7
    assert (books.completed, books.filtered, books.finished, books.ended) == (6, 2, 8, 20)
    assert books.cloud_cpu_s == 2.0
    assert books.items() == {
        "captured": 20,
        "completed": 6,
        "filtered": 2,
        "dropped": {"overload": 1, "task_error": 1, "undelivered": 3},
        "left": {"spooled": 7},
        "delivered_earlier": 0,
    }


def test_the_summary_names_every_part() -> None:
    books = Books(captured=9, completed=3, filtered=1, delivered_earlier=4)
    books.dropped.update({"overload": 2, "task_error": 1})
    books.left["spooled"] = 2
    assert books.summary() == (
        "9 items captured = 3 completed + 1 filtered + 3 dropped (2 overload, 1 task_error), "
        "2 left for the next run (spooled), 4 of an earlier run delivered"
    )
    assert Books(captured=1, completed=1).summary() == "1 item captured = 1 completed + 0 filtered + 0 dropped"


def test_a_cloud_that_forgot_everything_counts_nothing_twice_and_takes_nothing_back() -> None:
    books = Books()
    books.learn(Totals(10, 6, 3, {"overload": 1}, 900))
    assert books.learn(Totals(10)) == 0  # it restarted without results
    assert books.learn(Totals(14, 3, 1, {"overload": 2}, 500)) == 4
    assert (books.completed, books.filtered, dict(books.dropped)) == (9, 4, {"overload": 3})


def test_a_cloud_whose_books_are_those_of_a_backup_counts_on_from_there() -> None:
    books = Books()
    books.learn(Totals(10, 6, 3, {"overload": 1}, 900))
    assert books.learn(Totals(10, 4, 1, {}, 500)) == 0
    assert books.learn(Totals(13, 6, 1, {"overload": 1}, 700)) == 2
    assert (books.completed, books.filtered, dict(books.dropped)) == (8, 3, {"overload": 2})
    assert books.cloud_cpu_s == 0.0011


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_steps_or_one_leap_lead_to_the_same(steps: list[tuple[int, int, int]]) -> None:
    books, completed, filtered, dropped = Books(), 0, 0, 0
    finished = 0
    for more_completed, more_filtered, more_dropped in steps:
        completed, filtered, dropped = completed + more_completed, filtered + more_filtered, dropped + more_dropped
        reasons = {"overload": dropped} if dropped else {}
        finished += books.learn(Totals(completed + filtered + dropped, completed, filtered, reasons))
    assert (books.completed, books.filtered, sum(books.dropped.values())) == (completed, filtered, dropped)
    assert finished == completed + filtered
