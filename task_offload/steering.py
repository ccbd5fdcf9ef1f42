"""A policy at work in a run. In: observations. Out: decisions for the next items, and what people hear of them."""

from __future__ import annotations

from typing import Any

from task_offload.run import MOST_WINDOWS, in_words, share_of
from task_offload.scheduling.mix import Mixer
from task_offload.scheduling.observation import Decision, Observation, Policy


class Steering:
    """Carries out what a policy decides, and keeps the log of it.

    Attributes:
        decision: what is in force.
        mixer: makes routes of it.
        log: decisions that were more than routine, as the run report has them; the newest, of a run of months.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.decision: Decision = policy.start()
        self.mixer = Mixer(self.decision)
        self.log: list[dict[str, Any]] = []

    def take(self, observation: Observation, run_s: float) -> str | None:
        """Lets the policy decide, so many seconds after the run began. Returns what to tell people, if anything."""
        decision = self._policy.decide(observation)
        if decision is None:
            return None
        self.mixer.follow(decision)
        before, self.decision = self.decision, decision
        if decision.routine:
            return None
        self.log.append(
            {
                "t": round(run_s, 3),
                "from": share_of(before.shares),
                "to": share_of(decision.shares),
                "reason": decision.reason,
                "predicted_fps": decision.predicted_fps,
                "observed_fps": round(observation.fps, 3),
            }
        )
        del self.log[:-MOST_WINDOWS]
        codec = f", codec {before.codec} -> {decision.codec}" if before.codec != decision.codec else ""
        moved = f" -> {in_words(decision.shares)}" if before.shares != decision.shares else ""
        return f"split {in_words(before.shares)}{moved}{codec}: {decision.reason}"
