"""What could be had at best. In: the truth. Out: the cheapest feasible mix, the cheapest single split, the fastest."""

from __future__ import annotations

from dataclasses import dataclass

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs


@dataclass(frozen=True)
class Best:
    """The best that is possible under some costs.

    Attributes:
        mix: the cheapest mix of any two allowed splits that meets the target; None if none does.
        single: the cheapest single split that does.
        fastest: the fastest choice of all.
        all_cloud_s: busy seconds of the cloud for an item when all that may is offloaded.
    """

    mix: Choice | None
    single: Choice | None
    fastest: Choice
    all_cloud_s: float


def best(costs: Costs, target_fps: float, max_latency_s: float | None = None) -> Best:
    """Evaluates every split, codec and mix with the truth."""
    found = cost_model.options(costs)
    if max_latency_s is not None:
        found = [option for option in found if option.latency_s <= max_latency_s] or found
    reachable = costs.source_rate >= target_fps
    lowest = min(option.split for option in found)
    return Best(
        cost_model.cheapest(found, target_fps) if reachable else None,
        cost_model.cheapest(found, target_fps, mixes=False) if reachable else None,
        cost_model.fastest(found),
        min(option.cloud_busy_s for option in found if option.split == lowest),
    )
