"""Which shares suit the splits in force. In: a mix, the throughput aimed at and that seen. Out: better shares."""

from __future__ import annotations

from task_offload.scheduling.cost_model import Choice, cheapest_share, fastest_share, mixed
from task_offload.scheduling.judgement import TOLERANCE

CATCH_UP = 0.7  # of what the last seconds lacked, the shares make up for in the next as many
CATCH_UP_LEAST, CATCH_UP_MOST = -0.15, 0.3
MIN_SHARE = 0.002  # of either split of a mix


def steered(current: Choice, aim_fps: float, fps: float | None, lift: float) -> tuple[Choice, Choice]:
    """The splits in force with their best shares: the cheapest that reach the aim, or else the fastest.

    Arguments:
        fps: throughput of the last seconds; None if it is not known.
        lift: of the aim, what the mix has lacked all the time.

    Returns:
        By what is predicted; and by what the last seconds lacked or had too much, too.
    """
    first, second = current.first, current.second
    if first is second:
        return current, current
    share = cheapest_share(first, second, aim_fps)
    if share is None:
        fastest = mixed(first, second, fastest_share(first, second))
        kept = fastest if fastest.capacity_fps > (1.0 + TOLERANCE) * current.capacity_fps else current
        return kept, kept
    kept = _mixed(current, share)
    if fps is None:
        return kept, kept
    lacking = min(max(CATCH_UP * (aim_fps - fps) / aim_fps, CATCH_UP_LEAST), CATCH_UP_MOST)
    caught_up = cheapest_share(first, second, aim_fps * (1.0 + lift + lacking))
    if caught_up is not None:
        return kept, _mixed(current, caught_up)
    return kept, _mixed(current, fastest_share(first, second)) if lift > TOLERANCE else kept


def _mixed(current: Choice, share: float) -> Choice:
    """With another share, and never without either split: leaving the set is a switch, and needs its reason."""
    return mixed(current.first, current.second, min(max(share, MIN_SHARE), 1.0 - MIN_SHARE))
