"""Shows what every split would give, for manual mode and `--profile`. In: costs. Out: a table as text and as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option


def task_rows(names: Sequence[str], costs: Costs) -> list[dict[str, Any]]:
    """One row for each task, as JSON data: its time on either side, survival, and the payload after it by codec."""
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        payloads = {codec: round(each.size_bytes) for (split, codec), each in costs.payloads.items() if split == i + 1}
        rows.append(
            {
                "task": name,
                "device_ms": _ms(costs.device_s[i]),
                "cloud_ms": _ms(costs.cloud_s[i]),
                "survival": round(costs.survival[i], 4),
                "payload_bytes": payloads,
            }
        )
    return rows


def split_rows(costs: Costs, target_fps: float | None = None) -> list[dict[str, Any]]:
    """One row for each split and codec, as JSON data: the prediction, and whether it meets the target.

    `device_load` and `link_load` are shares of the device's cores and of the link at the target, or at full speed
    where there is none or it is out of reach.
    """
    return [_split_row(option, costs, target_fps) for option in sorted(cost_model.options(costs))]


def choice_row(costs: Costs, target_fps: float | None) -> dict[str, Any]:
    """What automatic mode would take: the cheapest mix that meets the target, or else the fastest."""
    found = cost_model.options(costs)
    goal_fps = min(target_fps, costs.source_rate) if target_fps is not None else None
    choice = cost_model.cheapest(found, goal_fps) if goal_fps is not None else None
    meets = choice is not None
    if choice is None:
        choice = cost_model.fastest(found)
    return {
        "shares": {split: round(share, 4) for split, share in sorted(choice.shares.items())},
        "codec": choice.codec,
        "fps": _fps(choice.capacity_fps, costs),
        "limit": _limit(choice, costs),
        "cloud_ms": _ms(choice.cloud_s),
        "meets_target": meets,
    }


def render(names: Sequence[str], costs: Costs, target_fps: float | None = None) -> str:
    """The three as text for people."""
    lines = [f"{'task':<24}{'device ms':>10}{'cloud ms':>10}{'survival':>10}  payload after it"]
    for row in task_rows(names, costs):
        sizes = ", ".join(f"{codec} {_size(size)}" for codec, size in row["payload_bytes"].items())
        lines.append(
            f"{row['task'][:23]:<24}{figure(row['device_ms']):>10}{figure(row['cloud_ms']):>10}"
            f"{row['survival']:>10.0%}  {sizes}"
        )
    lines += [
        "",
        f"{'split':<6}{'codec':<8}{'FPS':>8}{'latency ms':>12}{'device':>8}{'link':>7}{'cloud ms':>10}  limit",
    ]
    for row in split_rows(costs, target_fps):
        mark = "" if row["meets_target"] is None else "  meets the target" if row["meets_target"] else ""
        lines.append(
            f"{row['split']:<6}{row['codec']:<8}{figure(row['fps']):>8}{figure(row['latency_ms']):>12}"
            f"{row['device_load']:>8.0%}{row['link_load']:>7.0%}{figure(row['cloud_ms']):>10}  {row['limit']}{mark}"
        )
    taken = choice_row(costs, target_fps)
    shares = " and ".join(f"split {split} for {share:.0%}" for split, share in taken["shares"].items())
    wanted = "" if target_fps is None else f" for {target_fps:g} FPS"
    lines += [
        "",
        f"Automatic mode{wanted} would take {shares} with codec {taken['codec']}: {figure(taken['fps'])} FPS, "
        f"{figure(taken['cloud_ms'])} ms of cloud time an item; the limit is the {taken['limit']}.",
    ]
    return "\n".join(lines)


def figure(value: float, digits: int = 3) -> str:
    """So many digits, more where a whole number has more: never 1.08e+03."""
    return f"{value:.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def _split_row(option: Option, costs: Costs, target_fps: float | None) -> dict[str, Any]:
    choice = cost_model.single(option)
    fps = min(option.capacity_fps, costs.source_rate)
    at_fps = fps if target_fps is None else min(fps, target_fps)
    return {
        "split": option.split,
        "codec": option.codec,
        "fps": _fps(option.capacity_fps, costs),
        "limit": _limit(choice, costs),
        "latency_ms": _ms(option.latency_s),
        "device_load": round(option.use_s[cost_model.DEVICE] * at_fps, 4),
        "link_load": round(option.use_s[cost_model.LINK] * at_fps, 4),
        "bytes": round(option.size_bytes),
        "cloud_ms": _ms(option.cloud_s),
        "meets_target": None if target_fps is None else fps >= min(target_fps, costs.source_rate),
    }


def _limit(choice: Choice, costs: Costs) -> str:
    return "source" if choice.capacity_fps > costs.source_rate else choice.limit


def _fps(capacity_fps: float, costs: Costs) -> float:
    fps = min(capacity_fps, costs.source_rate)
    return round(fps, 3) if math.isfinite(fps) else 0.0


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e3:.3g} kB" if size_bytes >= 1e3 else f"{size_bytes:.0f} B"
