from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_offload.scheduling.mix import PROBE_SPACING, Mixer
from task_offload.scheduling.observation import Decision, Route


def take(mixer: Mixer, count: int) -> list[int]:
    return [mixer.next_route().split for _ in range(count)]


def mixer_of(shares: dict[int, float]) -> Mixer:
    return Mixer(Decision(shares, ""))


def test_one_split_takes_every_item() -> None:
    assert take(mixer_of({3: 1.0}), 5) == [3] * 5


def test_two_splits_are_interleaved_evenly() -> None:
    assert take(mixer_of({1: 0.25, 4: 0.75}), 8).count(1) == 2
    assert max(len(run) for run in "".join(map(str, take(mixer_of({1: 0.5, 4: 0.5}), 20))).split("1")) == 1


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.integers(1, 9), st.floats(0.01, 1.0), min_size=1, max_size=4), st.integers(1, 300))
def test_each_split_stays_near_its_share_over_any_run(shares: dict[int, float], count: int) -> None:
    taken = Counter(take(mixer_of(shares), count))
    total = sum(shares.values())
    for split, share in shares.items():
        assert abs(taken[split] - count * share / total) < len(shares)


def test_probes_come_first_and_spaced_with_their_own_codec() -> None:
    mixer = Mixer(Decision({2: 1.0}, "", codec="none", probes=(Route(5, "zstd"), Route(6))))
    routes = [mixer.next_route() for _ in range(PROBE_SPACING + 3)]
    usual = Route(2, "none")
    assert routes == [Route(5, "zstd")] + [usual] * (PROBE_SPACING - 1) + [Route(6), usual, usual]


def test_probes_survive_a_new_decision() -> None:
    mixer = Mixer(Decision({2: 1.0}, "", probes=(Route(5), Route(6))))
    mixer.follow(Decision({3: 1.0}, "", probes=(Route(1),)))
    assert take(mixer, 2 * PROBE_SPACING + 1) == [5, 3, 3, 3, 6, 3, 3, 3, 1]


def test_a_probe_that_waits_does_not_queue_again() -> None:
    """A slow stream takes few; the policy asks for those again that did not come back."""
    mixer = Mixer(Decision({2: 1.0}, "", probes=(Route(5), Route(5), Route(6))))
    mixer.next_route()
    mixer.follow(Decision({2: 1.0}, "", probes=(Route(6), Route(5), Route(1))))
    routes = take(mixer, 6 * PROBE_SPACING)
    assert [split for split in routes if split != 2] == [5, 6, 1]


def test_a_decision_without_a_codec_leaves_it_as_it_is() -> None:
    mixer = Mixer(Decision({2: 1.0}, "", codec="lz4"))
    mixer.follow(Decision({4: 1.0}, ""))
    assert mixer.next_route() == Route(4, "lz4")


def test_new_shares_hold_from_the_next_item() -> None:
    mixer = mixer_of({2: 1.0})
    take(mixer, 3)
    mixer.follow(Decision({4: 1.0, 2: 0.0}, ""))
    assert take(mixer, 3) == [4] * 3


def test_shares_without_a_positive_one_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        mixer_of({1: 0.0})
