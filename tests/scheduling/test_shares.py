import pytest

from task_offload.scheduling.cost_model import RESOURCES, Choice, Option, mixed, single
from task_offload.scheduling.shares import CATCH_UP, MIN_SHARE, steered


def option(split: int, device_s: float, cloud_s: float) -> Option:
    use_s = [0.001] * len(RESOURCES)
    use_s[0] = device_s
    return Option(split, "none", tuple(use_s), device_s, cloud_s, 0.0, 0.0, 0.0, 0.0, 1000.0)


CLOUD, DEVICE = option(1, 0.02, 0.05), option(3, 0.10, 0.0)


def share(choice: Choice) -> float:
    """Of the items whose work is the cloud's."""
    return choice.shares[1]


def test_one_split_has_no_shares() -> None:
    assert steered(single(CLOUD), 20.0, 10.0, 0.0) == (single(CLOUD), single(CLOUD))


def test_the_cheapest_shares_that_reach_the_aim_are_kept() -> None:
    kept, trimmed = steered(mixed(CLOUD, DEVICE, 0.9), 20.0, None, 0.0)
    assert kept == trimmed
    assert kept.capacity_fps == pytest.approx(20.0)
    assert share(kept) == pytest.approx(0.625)  # 0.05 s an item


def test_what_the_last_seconds_lacked_is_made_up_for() -> None:
    kept, trimmed = steered(mixed(CLOUD, DEVICE, 0.625), 20.0, 18.0, 0.0)
    assert kept.capacity_fps == pytest.approx(20.0)
    assert trimmed.capacity_fps == pytest.approx(20.0 * (1.0 + CATCH_UP * 0.1))
    _, lifted = steered(mixed(CLOUD, DEVICE, 0.625), 20.0, 20.0, 0.05)
    assert lifted.capacity_fps == pytest.approx(21.0)


def test_beyond_reach_the_shares_are_the_fastest() -> None:
    kept, trimmed = steered(mixed(CLOUD, DEVICE, 0.5), 100.0, 30.0, 0.0)
    assert kept == trimmed == single(CLOUD)
    current = mixed(CLOUD, DEVICE, 1.0 - MIN_SHARE)
    assert steered(current, 100.0, 30.0, 0.0) == (current, current)  # not worth a change


def test_neither_split_is_left_altogether() -> None:
    kept, _ = steered(mixed(CLOUD, DEVICE, 0.5), 1.0, None, 0.0)
    assert share(kept) == pytest.approx(MIN_SHARE)
