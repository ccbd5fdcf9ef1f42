"""Shows what every split would give, for manual mode and `--profile`. In: costs. Out: a table as text and as data."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option
from task_offload.scheduling.judgement import ENOUGH

WIDTH = 80  # of the text


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


def split_rows(
    costs: Costs, target_fps: float | None = None, max_latency_s: float | None = None
) -> list[dict[str, Any]]:
    """One row for each split and codec, as JSON data: the prediction, and whether it meets the target and is in time.

    `device_load` and `link_load` are shares of the device's cores and of the link at the target, or at full speed
    where there is none or it is out of reach.
    """
    return [_split_row(option, costs, target_fps, max_latency_s) for option in sorted(cost_model.options(costs))]


def choice_row(costs: Costs, target_fps: float | None, max_latency_s: float | None = None) -> dict[str, Any] | None:
    """What automatic mode would take: the cheapest mix that meets the target, or else the fastest.

    Options that take longer than is allowed are left out, or all but the quickest if all do. None if there is none.
    """
    found = cost_model.options(costs)
    if not found:
        return None
    goal_fps = min(math.inf if target_fps is None else target_fps, costs.source_rate)
    choice, _ = cost_model.best(found, lambda option: _in_time(option, max_latency_s) is not False, goal_fps)
    return {
        "shares": {split: round(share, 4) for split, share in sorted(choice.shares.items())},
        "codec": choice.codec,
        "fps": _fps(choice.capacity_fps, costs),
        "limit": _limit(choice, costs),
        "latency_ms": _ms(choice.latency_s),
        "cloud_ms": _ms(choice.cloud_busy_s),
        "meets_target": _meets(choice.capacity_fps, costs, target_fps),
        "in_time": _in_time(choice, max_latency_s),
    }


def render(
    names: Sequence[str],
    costs: Costs,
    target_fps: float | None = None,
    max_latency_s: float | None = None,
    impossible: Mapping[int, str] | None = None,
) -> str:
    """The three as text for people, `WIDTH` wide.

    Arguments:
        impossible: by split, why there is none.
    """
    automatic_mode = "Automatic mode"
    if target_fps is not None:
        automatic_mode += f" for {target_fps:g} FPS"
    if max_latency_s is not None:
        automatic_mode += f" within {1e3 * max_latency_s:g} ms"
    lines = [
        *_task_lines(names, costs),
        "",
        *_split_lines(split_rows(costs, target_fps, max_latency_s), impossible or {}),
        "",
        *_choice_lines(choice_row(costs, target_fps, max_latency_s), automatic_mode),
    ]
    return "\n".join(lines)


def _task_lines(names: Sequence[str], costs: Costs) -> Iterator[str]:
    codecs = list(dict.fromkeys(codec for _, codec in costs.payloads))
    sizes = "".join(f"{codec:>9}" for codec in codecs)
    if codecs:
        yield f"{'payload after it':>{51 + len(sizes)}}"
    yield f"{'task':<21}{'device ms':>10}{'cloud ms':>10}{'survival':>10}{sizes}"
    for row in task_rows(names, costs):
        payloads = row["payload_bytes"]
        sizes = "".join(f"{_size(payloads[codec]) if codec in payloads else '':>9}" for codec in codecs)
        line = f"{row['task'][:20]:<21}{figure(row['device_ms']):>10}{figure(row['cloud_ms']):>10}"
        yield f"{line}{row['survival']:>10.0%}{sizes}".rstrip()


def _split_lines(rows: Sequence[Mapping[str, Any]], impossible: Mapping[int, str]) -> Iterator[str]:
    yield f"{'split':<6}{'codec':<8}{'FPS':>7} {'latency ms':>12}{'device':>8}{'link':>7}{'cloud ms':>10}  limit"
    lines = [
        (split, textwrap.fill(reason, WIDTH, initial_indent=f"{split:<6}not possible: ", subsequent_indent=" " * 6))
        for split, reason in impossible.items()
    ]
    for row in rows:
        star = "*" if _is_wanted(row) else " "
        line = (
            f"{row['split']:<6}{row['codec']:<8}{figure(row['fps']):>7}{star}{figure(row['latency_ms']):>12}"
            f"{row['device_load']:>8.0%}{row['link_load']:>7.0%}{figure(row['cloud_ms']):>10}  {row['limit']}"
        )
        lines.append((row["split"], line))
    for _, line in sorted(lines, key=lambda each: each[0]):
        yield line
    if any(map(_is_wanted, rows)):
        yield "* meets the target" + ("" if rows[0]["in_time"] is None else ", and keeps to --max-latency")


def _is_wanted(row: Mapping[str, Any]) -> bool:
    return bool(row["meets_target"]) and row["in_time"] is not False


def _choice_lines(taken: Mapping[str, Any] | None, automatic_mode: str) -> Iterator[str]:
    if taken is None:
        yield f"{automatic_mode} would have no split to take."
        return
    shares = taken["shares"]
    splits = " + ".join(f"{split} ({share:.0%})" if len(shares) > 1 else str(split) for split, share in shares.items())
    yield textwrap.fill(f"{automatic_mode} would take split {splits} with codec {taken['codec']}:", WIDTH)
    yield (
        f"{figure(taken['fps'])} FPS, {figure(taken['cloud_ms'])} ms of cloud time an item; "
        f"the limit is the {taken['limit']}."
    )
    if taken["in_time"] is False:
        yield "Every split takes longer than --max-latency; this is the quickest."


def figure(value: float, digits: int = 3) -> str:
    """So many digits, more where a whole number has more: never 1.08e+03."""
    return f"{value:.0f}" if value >= 10**digits - 0.5 else f"{value:.{digits}g}"


def _split_row(option: Option, costs: Costs, target_fps: float | None, max_latency_s: float | None) -> dict[str, Any]:
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
        "cloud_ms": _ms(option.cloud_busy_s),
        "meets_target": _meets(option.capacity_fps, costs, target_fps),
        "in_time": _in_time(option, max_latency_s),
    }


def _meets(capacity_fps: float, costs: Costs, target_fps: float | None) -> bool | None:
    """None where there is no target."""
    return None if target_fps is None else min(capacity_fps, costs.source_rate) >= ENOUGH * target_fps


def _in_time(each: Choice | Option, max_latency_s: float | None) -> bool | None:
    """None where any latency is allowed."""
    return None if max_latency_s is None else each.latency_s <= max_latency_s


def _limit(choice: Choice, costs: Costs) -> str:
    return "source" if choice.capacity_fps > costs.source_rate else choice.limit


def _fps(capacity_fps: float, costs: Costs) -> float:
    fps = min(capacity_fps, costs.source_rate)
    return round(fps, 3) if math.isfinite(fps) else 0.0


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def _size(size_bytes: float) -> str:
    if size_bytes < 1e3:
        return f"{size_bytes:.0f} B"
    return f"{figure(size_bytes / 1e3)} kB" if size_bytes < 1e6 else f"{figure(size_bytes / 1e6)} MB"
