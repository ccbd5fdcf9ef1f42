"""Why the choice changes, in plain words. In: the old and the new choice, and what was asked for. Out: a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice

LOSSY = "jpeg:90"  # what a link that is too slow for all lossless payloads would need
WORTH_SAYING = 0.05  # a codec that changes images is named if it would give so much more throughput


@dataclass(frozen=True)
class Change:
    """A change of the splits or the codec in force.

    Attributes:
        old, new: the choices.
        needed: the old one does not do what is asked for; False if the new one only saves.
        demand_fps: throughput that is asked for; infinite for all there is. `able_fps`: what the old choice gives.
        reaches: whether the new choice gives that.
        old_latency_s, new_latency_s: what an item takes, waiting included; `allowed_s`: what it may take.
        link_measured: whether it is known how fast the link is.
        lossy_fps: what `LOSSY` would give; 0 where it is of no use.
    """

    old: Choice
    new: Choice
    needed: bool
    demand_fps: float
    able_fps: float
    reaches: bool
    old_latency_s: float
    new_latency_s: float
    allowed_s: float
    link_measured: bool
    lossy_fps: float

    def in_words(self, names: Sequence[str]) -> str:
        """What changes, and why. `names`: of the chain's tasks."""
        parts = [*self._what(names), *self._why()]
        if self.link_measured:
            link = self.new.use_s[cost_model.LINK] * min(self.demand_fps, self.new.capacity_fps)
            parts.append(f"link {link:.0%}")
        return "; ".join(parts)

    def _what(self, names: Sequence[str]) -> list[str]:
        old, new = self.old, self.new
        parts = []
        moved = names[min(old.splits | new.splits) : max(old.splits | new.splits)]
        before, after = _mean_split(old), _mean_split(new)
        if before != after and moved:
            listed = moved[0] if len(moved) == 1 else f"{moved[0]} to {moved[-1]}"
            portion = "" if len(new.splits) == 1 else "for a share of the items "
            parts.append(f"{listed} {portion}{'moved to the cloud' if after < before else 'taken back'}")
        if new.codec != old.codec:
            parts.append(f"payloads encoded with {new.codec} instead of {old.codec}")
        return parts

    def _why(self) -> list[str]:
        old, new, demand_fps = self.old, self.new, self.demand_fps
        if math.isinf(demand_fps):
            return [f"this is fastest; the limit is the {new.limit}"]
        if self.needed and self.old_latency_s > self.allowed_s:
            takes = f"an item takes {1e3 * self.new_latency_s:.3g} ms instead of {1e3 * self.old_latency_s:.3g}"
            allowed = f"{1e3 * self.allowed_s:.3g} ms"
            if self.new_latency_s > self.allowed_s:
                return [f"{takes}, which is quickest; no split keeps to {allowed}"]
            return [takes, f"{allowed} are allowed"]
        if not self.reaches:
            parts = [f"no split reaches {demand_fps:.4g} FPS, this one is fastest; the limit is the {new.limit}"]
            if self.lossy_fps > (1.0 + WORTH_SAYING) * new.capacity_fps:
                lossy = f"--codec {LOSSY} (of images only, which it changes)"
                parts.append(f"{lossy} would give up to {self.lossy_fps:.3g}")
            return parts
        if not self.needed:
            return [f"{1e3 * new.cloud_busy_s:.3g} ms of cloud time an item instead of {1e3 * old.cloud_busy_s:.3g}"]
        if old.capacity_fps >= demand_fps:
            predicted = f"though {old.capacity_fps:.3g} were predicted"
            return [f"it gave {self.able_fps:.3g} FPS of the {demand_fps:.4g} wanted, {predicted}"]
        if old.busiest == cost_model.DEVICE:
            device_ms = 1e3 * old.use_s[cost_model.DEVICE]
            return [f"the device needs {device_ms:.3g} ms an item, {demand_fps:.4g} FPS allow {1e3 / demand_fps:.3g}"]
        return [f"the {old.limit} allows {old.capacity_fps:.3g} FPS of the {demand_fps:.4g} wanted"]


def _mean_split(choice: Choice) -> float:
    return sum(split * share for split, share in choice.shares.items())
