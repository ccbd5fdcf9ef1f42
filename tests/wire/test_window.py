"""The window on simulated links, in virtual time: the way is kept busy, and what waits on it is bounded.

A link carries a rate and has a delay; what is sent while it is busy waits. Acks come back in order, a round trip after
the last byte. The sender is `Outbox` and `Window` as the link uses them.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest

from task_offload.wire.codec import Payload
from task_offload.wire.outbox import Entry, Outbox
from task_offload.wire.window import FIRST_BYTES, HORIZON_S, LEAST_ITEMS, ROUND_TRIP_MEMORY_S, Window

MBIT = 125_000  # bytes a second
CREDITS = (1024, 64 << 20)  # what a cloud allows


class Sent(NamedTuple):
    at: float
    waited_s: float  # behind what was sent before
    size_bytes: int
    acked_at: float


class Run(NamedTuple):
    sent: list[Sent]
    most_items: int
    most_bytes: int

    def rate(self, begin: float, end: float) -> float:
        """Bytes a second that were acknowledged."""
        return sum(each.size_bytes for each in self.sent if begin <= each.acked_at < end) / (end - begin)

    def waited_s(self, begin: float, end: float) -> float:
        """The longest that anything waited."""
        return max(each.waited_s for each in self.sent if begin <= each.at < end)


def simulate(
    rate: Callable[[float], float],
    delay_s: float,
    sizes: Iterable[int],
    until: float,
    pause_s: Callable[[float], float] | None = None,
    acked_every_s: float = 0.0,
    jitter_s: Callable[[], float] = lambda: 0.0,
    credits: tuple[int, int] = CREDITS,
) -> Run:
    """Sends items of these sizes, over and over: as fast as the window allows, or with pauses between."""
    outbox, window = Outbox(), Window(*credits)
    size = itertools.cycle(sizes)
    sequence = itertools.count()
    now = next_at = free_at = last_ack_at = 1.0
    acks: list[tuple[float, int]] = []
    sent: list[Sent] = []
    most_items = most_bytes = 0

    def add() -> None:
        size_bytes = next(size)
        outbox.add(Entry(next(sequence), 1, 0.0, Payload(b"", (), size_bytes)))

    while now < until:
        while pause_s is not None and next_at <= now:
            add()
            next_at += pause_s(next_at)
        while True:
            if pause_s is None and not outbox.waiting_entries:
                add()
            entry = outbox.next()
            if entry is None or not window.allows(outbox.sent_entries, outbox.sent_bytes, entry.size_bytes):
                break
            outbox.sent(now, window.delivered_bytes)
            begin = max(free_at, now)
            free_at = begin + entry.size_bytes / rate(begin)
            ack_at = free_at + delay_s + jitter_s()
            if acked_every_s:
                ack_at = (int(ack_at / acked_every_s) + 1) * acked_every_s
            last_ack_at = max(last_ack_at, ack_at)
            heapq.heappush(acks, (last_ack_at, entry.sequence + 1))
            sent.append(Sent(now, begin - now, entry.size_bytes, last_ack_at))
            most_items = max(most_items, outbox.sent_entries)
            most_bytes = max(most_bytes, outbox.sent_bytes)
        now = min(acks[0][0] if acks else until, next_at if pause_s is not None else until)
        while acks and acks[0][0] <= now:
            acked = outbox.acknowledge(heapq.heappop(acks)[1])
            if acked:
                window.acknowledged([each.entry for each in acked], now)
    return Run(sent, most_items, most_bytes)


LINKS = [
    (2, 0.03, 2_000),
    (2, 0.03, 20_000),
    (2, 0.03, 421_000),
    (20, 0.03, 10_000),
    (20, 0.03, 421_000),
    (100, 0.03, 50_000),
    (100, 0.03, 421_000),
    (20, 0.2, 20_000),
    (20, 0.2, 60_000),
    (20, 0.2, 421_000),
    (100, 0.2, 80_000),
    (100, 0.2, 421_000),
    (1_000, 0.001, 421_000),
]


@pytest.mark.parametrize(("mbit", "delay_s", "size_bytes"), LINKS)
def test_the_way_is_kept_busy_and_what_waits_is_bounded(mbit, delay_s, size_bytes):
    rate = mbit * MBIT
    run = simulate(lambda _: rate, delay_s, [size_bytes], 15.0)
    assert run.rate(5, 15) >= 0.95 * rate
    # Nothing waits longer than the horizon, or for the one item before it. Twice that after the way was drained.
    bound_s = HORIZON_S + size_bytes / rate
    waits = sorted(each.waited_s for each in run.sent if each.at > 5)
    assert waits[int(0.9 * len(waits))] <= bound_s + 0.01
    assert waits[-1] <= 2 * bound_s


@pytest.mark.parametrize(("mbit", "delay_s"), [(2, 0.03), (20, 0.03), (100, 0.2)])
def test_items_of_many_sizes(mbit, delay_s):
    rate = mbit * MBIT
    run = simulate(lambda _: rate, delay_s, [200, 200, 421_000, 20_000], 20.0)
    assert run.rate(8, 20) >= 0.95 * rate
    assert run.waited_s(8, 20) <= 2 * HORIZON_S + 421_000 / rate


@pytest.mark.parametrize(
    ("mbit", "delay_s", "size_bytes"), [(20, 0.03, 20_000), (100, 0.2, 421_000), (20, 0.2, 20_000)]
)
def test_a_link_that_falls_to_a_fifth_is_believed_within_seconds(mbit, delay_s, size_bytes):
    rate = mbit * MBIT
    run = simulate(lambda now: rate if now < 15 else rate / 5, delay_s, [size_bytes], 35.0)
    assert run.waited_s(15, 20) > 0.5  # what had been sent must go
    assert run.rate(20, 35) >= 0.95 * rate / 5
    assert run.waited_s(20, 35) <= 2 * HORIZON_S + 2 * size_bytes / (rate / 5)


@pytest.mark.parametrize(("mbit", "delay_s", "size_bytes"), [(20, 0.03, 20_000), (100, 0.2, 421_000)])
def test_a_link_that_rises_is_used_within_seconds(mbit, delay_s, size_bytes):
    rate = mbit * MBIT
    run = simulate(lambda now: rate / 5 if now < 15 else rate, delay_s, [size_bytes], 25.0)
    assert run.rate(18, 25) >= 0.95 * rate


@pytest.mark.parametrize(
    ("mbit", "delay_s", "size_bytes"), [(20, 0.03, 20_000), (100, 0.2, 421_000), (100, 0.2, 50_000)]
)
def test_after_a_long_time_with_little_to_send_the_way_is_filled_again(mbit, delay_s, size_bytes):
    rate = mbit * MBIT
    run = simulate(
        lambda _: rate, delay_s, [size_bytes], 75.0, pause_s=lambda now: 0.5 if now < 60 else size_bytes / (1.5 * rate)
    )
    assert run.rate(63, 75) >= 0.95 * rate
    assert run.waited_s(2, 60) == 0.0
    assert run.waited_s(60, 75) <= 2 * HORIZON_S + 2 * size_bytes / rate


@pytest.mark.parametrize(("delay_s", "fps"), [(0.03, 20), (0.2, 20), (0.6, 10)])
def test_a_steady_stream_below_the_rate_is_never_held_up(delay_s, fps):
    run = simulate(lambda _: 100 * MBIT, delay_s, [40_000], 40.0, pause_s=lambda _: 1 / fps)
    assert run.rate(10, 40) == pytest.approx(40_512 * fps, rel=0.01)
    assert max(b.at - a.at for a, b in itertools.pairwise(run.sent) if a.at > 10) <= 1.05 / fps


@pytest.mark.parametrize("acked_every_s", [0.01, 0.05, 0.1])
def test_acks_that_come_together_once_for_each_commit(acked_every_s):
    rate = 20 * MBIT
    run = simulate(lambda _: rate, 0.03, [20_000], 20.0, acked_every_s=acked_every_s)
    assert run.rate(8, 20) >= 0.95 * rate
    assert run.waited_s(8, 20) <= HORIZON_S + acked_every_s + 2 * 20_000 / rate + 0.1


def test_acks_that_come_unevenly():
    rate, chance = 20 * MBIT, random.Random(1)
    run = simulate(lambda _: rate, 0.03, [20_000], 25.0, jitter_s=lambda: chance.expovariate(50))
    assert run.rate(8, 25) >= 0.95 * rate
    assert run.waited_s(8, 25) <= 2.5 * HORIZON_S


def test_acks_that_were_held_up_and_come_at_once_do_not_look_like_a_faster_link():
    window, outbox = Window(*CREDITS), Outbox()
    for n in range(40):  # 20 items a second, acknowledged after 50 ms
        outbox.add(Entry(n, 1, 0.0, Payload(b"", (), 9_488)))
        outbox.sent(n / 20, window.delivered_bytes)
        if n < 20:
            window.acknowledged([outbox.acknowledge(n + 1)[0].entry], n / 20 + 0.05)
    window.acknowledged([each.entry for each in outbox.acknowledge(40)], 2.0)  # a second's worth at once
    assert window.size_bytes == pytest.approx(200_000 * (0.05 + HORIZON_S), rel=0.06)


def test_the_clouds_credits_are_kept():
    few = simulate(lambda _: 100 * MBIT, 0.2, [10_000], 5.0, credits=(7, 64 << 20))
    assert few.most_items == 7
    small = simulate(lambda _: 100 * MBIT, 0.2, [10_000], 5.0, credits=(1024, 100_000))
    assert 80_000 < small.most_bytes <= 100_000


def test_one_item_may_always_go():
    window = Window(1, 1000)
    assert window.allows(0, 0, 5000)
    assert not window.allows(1, 5000, 100)


def test_before_anything_is_known_a_little_may_go():
    window = Window(*CREDITS)
    assert window.size_bytes == FIRST_BYTES
    assert window.allows(LEAST_ITEMS - 1, 500_000, 500_000)
    assert not window.allows(LEAST_ITEMS, 500_000, 100)
    assert window.allows(10, FIRST_BYTES - 1, 100)


def test_a_queue_that_stands_still_is_not_taken_for_the_way():
    """Another sender keeps a queue on the link for a while: the round trip without it is found again."""
    rate = 20 * MBIT
    delay = itertools.chain(itertools.repeat(0.03, 500), itertools.repeat(0.23, 1500), itertools.repeat(0.03))
    run = simulate(lambda _: rate, 0.0, [20_000], 45.0, jitter_s=lambda: next(delay))
    assert run.rate(25, 45) >= 0.95 * rate
    assert run.waited_s(25 + ROUND_TRIP_MEMORY_S, 45) <= 2 * HORIZON_S + 2 * 20_000 / rate
