from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.scheduling.mix import PROBE_SPACING, Mixer


def take(mixer: Mixer, count: int) -> list[int]:
    return [mixer.next_split() for _ in range(count)]


def test_one_split_takes_every_item() -> None:
    assert take(Mixer({3: 1.0}), 5) == [3] * 5


def test_two_splits_are_interleaved_evenly() -> None:
    assert take(Mixer({1: 0.25, 4: 0.75}), 8).count(1) == 2
    assert max(len(run) for run in "".join(map(str, take(Mixer({1: 0.5, 4: 0.5}), 20))).split("1")) == 1


@given(st.dictionaries(st.integers(1, 9), st.floats(0.01, 1.0), min_size=1, max_size=4), st.integers(1, 300))
def test_each_split_stays_near_its_share_over_any_run(shares: dict[int, float], count: int) -> None:
    taken = Counter(take(Mixer(shares), count))
    total = sum(shares.values())
    for split, share in shares.items():
        assert abs(taken[split] - count * share / total) < len(shares)


def test_probes_come_first_and_spaced() -> None:
    mixer = Mixer({2: 1.0})
    mixer.queue_probes([5, 6])
    assert take(mixer, PROBE_SPACING + 3) == [5] + [2] * (PROBE_SPACING - 1) + [6, 2, 2]
    assert mixer.probes_waiting == 0


def test_cleared_probes_are_not_run() -> None:
    mixer = Mixer({2: 1.0})
    mixer.queue_probes([5, 6])
    mixer.clear_probes()
    assert take(mixer, 6) == [2] * 6


def test_new_shares_hold_from_the_next_item() -> None:
    mixer = Mixer({2: 1.0})
    take(mixer, 3)
    mixer.set_shares({4: 1.0, 2: 0.0})
    assert take(mixer, 3) == [4] * 3


def test_shares_without_a_positive_one_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Mixer({1: 0.0})
