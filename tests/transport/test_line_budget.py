"""Lines about peers, on a clock that stands still."""

from __future__ import annotations

from task_offload.transport.line_budget import MOST_PEERS, LineBudget


def test_each_peer_has_so_many_lines_a_minute_and_the_last_says_so() -> None:
    now = 100.0
    budget = LineBudget(3, lambda: now)
    last = " (more like this is only counted for a minute)"
    for _ in range(2):
        assert [budget.take("a") for _ in range(5)] == ["", "", last, None, None]
        assert budget.take("b") == ""
        now += 59.0
        assert budget.take("a") is None
        now += 2.0


def test_a_crowd_of_peers_has_an_end_too() -> None:
    now = 100.0
    budget = LineBudget(3, lambda: now)
    written = [budget.take(str(peer)) for peer in range(2 * MOST_PEERS)]
    assert written.count(None) == MOST_PEERS
    assert budget.take("0") == ""
    now += 61.0
    assert budget.take(str(2 * MOST_PEERS)) == ""
