"""A policy's decisions, carried out, told and kept."""

from __future__ import annotations

from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.steering import Steering

SEEN = Observation(1.0, 0.5, 0, 6, 0, (), ())


class Scripted:
    """A policy that says what a test says."""

    def __init__(self, *decisions: Decision | None) -> None:
        self.decisions = iter(decisions)

    def start(self) -> Decision:
        return Decision({1: 1.0}, "to begin with", "none")

    def decide(self, observation: Observation) -> Decision | None:
        assert observation is SEEN
        return next(self.decisions)


def test_a_decision_is_carried_out_told_and_kept() -> None:
    steering = Steering(Scripted(Decision({2: 0.25, 4: 0.75}, "the link is slow", "zstd", predicted_fps=20.0)))
    assert steering.decision.reason == "to begin with"
    assert steering.mixer.next_route() == Route(1, "none")
    assert steering.take(SEEN, 7.12345) == "split 1 -> 2 (25%) + 4 (75%), codec none -> zstd: the link is slow"
    assert steering.decision.shares == {2: 0.25, 4: 0.75}
    assert steering.mixer.next_route() == Route(4, "zstd")
    assert steering.log == [
        {
            "t": 7.123, "from": {"1": 1.0}, "to": {"2": 0.25, "4": 0.75}, "reason": "the link is slow",
            "predicted_fps": 20.0, "observed_fps": 12.0,
        }
    ]  # fmt: skip


def test_only_what_changes_is_told() -> None:
    steering = Steering(Scripted(Decision({1: 1.0}, "it pays", "lz4"), Decision({3: 1.0}, "there is room", "lz4")))
    assert steering.take(SEEN, 1.0) == "split 1, codec none -> lz4: it pays"
    assert steering.take(SEEN, 2.0) == "split 1 -> 3: there is room"


def test_nothing_is_told_of_no_decision_or_a_routine_one_which_is_carried_out() -> None:
    steering = Steering(Scripted(None, Decision({3: 1.0}, "trimmed", "none", routine=True)))
    assert steering.take(SEEN, 1.0) is None
    assert steering.mixer.next_route() == Route(1, "none")
    assert steering.take(SEEN, 2.0) is None
    assert steering.mixer.next_route() == Route(3, "none")
    assert steering.log == []
