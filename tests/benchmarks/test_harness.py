"""The helpers of the benchmarks, and the design that they compare with."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import forerunner
from benchmarks.harness import Peer, calls, in_turn, median_ratio, print_table, verdict
from task_offload.picture import picture


def test_contenders_take_turns_forwards_and_backwards():
    assert list(in_turn("abc", 3)) == list("abccbaabc")


def test_ratios_are_taken_round_by_round():
    assert median_ratio([10.0, 30.0, 1.0], [10.0, 10.0, 10.0]) == 1.0


@pytest.mark.parametrize(
    ("bars", "said"),
    [
        ({"at_least": 0.75}, "met"),
        ({"at_least": 0.9}, "MISSED"),
        ({"at_most": 1.0}, "met"),
        ({"at_most": 0.5}, "MISSED"),
    ],
)
def test_a_verdict_says_whether_the_bar_is_met(bars, said):
    assert said in verdict(0.8, **bars)


def test_a_table_is_aligned(capsys):
    print_table(("", "rate"), [("ours", 12345.6), ("theirs", "none")])
    lines = capsys.readouterr().out.splitlines()[:4]
    assert "| ours   | 12,346 |" in lines
    assert len({len(line) for line in lines}) == 1


def _double(pipe):
    print("what an app prints is no part of a benchmark's table")
    for (number,) in calls(pipe):
        pipe.send(2 * number)


def test_a_peer_answers_from_a_process_of_its_own(capfd):
    peer = Peer(_double)
    assert [peer.ask(1), peer.ask(21)] == [2, 42]
    peer.close()
    assert "an app prints" not in capfd.readouterr().out


def test_the_forerunner_carries_every_item_in_order():
    made, came = [], []

    def make():
        made.append(np.full((40, 50), len(made), np.uint16))
        return True, (made[-1], None)

    def mark(array, nothing):
        return True, (picture(array), nothing)

    def take(array, nothing):
        came.append(array)
        return True, nothing

    tasks = [make, mark, take]
    for split in (1, 2):
        server = forerunner.Server(tasks)
        items, sent_bytes = forerunner.run_device(tasks, split, server.port, 0.02)
        server.wait()
        assert items == len(made) == len(came)
        assert sent_bytes > 4000 * items
        assert all(np.array_equal(a, b) for a, b in zip(made, came, strict=True))
        made.clear()
        came.clear()
