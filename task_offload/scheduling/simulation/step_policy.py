"""One split at a time, both ways, with hysteresis: a scheduler without a model. In: throughput. Out: the next split.

Below the target it steps towards the cloud, turns around where that made things worse, and keeps the best split it
has seen. At the target it tries to take a task back, and waits twice as long after each try that failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from task_offload.scheduling.observation import Decision, Observation

SETTLE = 1  # intervals ignored after a step: their items still took the split before
PATIENCE = 4  # intervals at the target before a task is taken back, at first
MAX_PATIENCE = 256
MISS = 0.95  # below this share of the target, the target is missed
GAIN = 1.05  # a step must gain this much to be better than what was before


class StepPolicy:
    """Steps through the splits one by one until the target is met."""

    def __init__(self, splits: Sequence[int], start: int, target_fps: float) -> None:
        """Arguments:
        splits: the allowed splits, ascending.
        start: the split to begin with; the nearest allowed one is taken.
        target_fps: finished items a second that are wanted.
        """
        self._splits = tuple(splits)
        self._at = min(range(len(splits)), key=lambda i: abs(splits[i] - start))
        self._target_fps = target_fps
        self._way = -1  # towards the cloud
        self._settle = SETTLE
        self._met = 0  # intervals in a row that met the target
        self._missed = 0
        self._patience = PATIENCE
        self._before: tuple[int, float] | None = None  # place and throughput before the step that is on trial

    def start(self) -> Decision:
        return Decision({self._splits[self._at]: 1.0}, f"starting with split {self._splits[self._at]}")

    def decide(self, observation: Observation) -> Decision | None:
        if observation.in_local_outage:
            return None
        if self._settle:
            self._settle -= 1
            return None
        fps = observation.fps
        target = f"{self._target_fps:g} FPS are wanted"
        met = fps >= MISS * self._target_fps
        self._met, self._missed = (self._met + 1, 0) if met else (0, self._missed + 1)
        if met:
            if self._before is not None and self._met >= PATIENCE:
                self._before = None  # the step held
            if self._met < self._patience or self._at == len(self._splits) - 1:
                return None
            return self._step(self._at + 1, fps, f"{fps:.1f} FPS, {target}: a task is tried on the device")
        if self._missed < 2:  # one slow interval is noise
            return None
        if self._before is not None:
            place, fps_before = self._before
            if fps < GAIN * fps_before:
                self._before = None
                self._way = 1 if self._at < place else -1
                self._patience = min(2 * self._patience, MAX_PATIENCE)
                reason = f"{fps:.1f} FPS after {fps_before:.1f}, {target}: the last step did not help"
                return self._step(place, None, reason)
        elif self._missed < self._patience // 2:  # no step is on trial: every one that failed makes the next one later
            return None
        if not 0 <= self._at + self._way < len(self._splits):
            self._way = -self._way
        if not 0 <= self._at + self._way < len(self._splits):
            return None
        verb = "moved to the cloud" if self._way < 0 else "taken back"
        return self._step(self._at + self._way, fps, f"{fps:.1f} FPS, {target}: a task is {verb}")

    def _step(self, to: int, fps: float | None, reason: str) -> Decision:
        if fps is not None:
            self._before = (self._at, fps)
        self._at = to
        self._settle, self._met, self._missed = SETTLE, 0, 0
        return Decision({self._splits[to]: 1.0}, reason)
