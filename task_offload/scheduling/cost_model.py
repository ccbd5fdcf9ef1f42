"""What every split would give. In: costs of tasks, payloads, link and cloud. Out: predictions, and the cheapest choice.

The formulas are those of the project's design. Per captured item, t is device time, c cloud time, q the share that
survives, s a payload's size, e its encoding and sending, d its receiving and decoding:

    device work  D(N) = sum of q[i-1] t[i] for i <= N, plus q[N] e[N], plus what each item takes beside these
    cloud cost   C(N) = q[N] d[N] plus the sum of q[i-1] c[i] for i > N

Every resource is used for some seconds by each item, and one second of it passes each second, so the throughput is
the inverse of the largest use. A mix of two splits uses every resource by the mean of both, weighted by their shares;
where an item of one takes the device so long that those after it are waited for, the stages after that stand idle too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

RESOURCES = ("device", "device stage", "link", "cloud workers", "cloud main thread", "window", "source")
DEVICE, STAGE, LINK, WORKERS, MAIN, WINDOW, SOURCE = range(len(RESOURCES))
_AFTER_ORDER = (LINK, WORKERS, MAIN, WINDOW)  # items come to these in their order
QUEUED = 0.3  # of what may queue on the link and in the cloud, what does when a long item holds up what follows
NEARLY = 0.03  # slower than the fastest is as good
_TINY_S = 1e-12
_LEAST_RATE = 1e-3  # items a second; a source that is silent has no period
_NO_LINK = 1e-3  # bytes a second; a link that is away must not make a mix's use infinite times zero


class Payload(NamedTuple):
    """What one payload costs: bytes on the wire, seconds to encode and send it, seconds to receive and decode it."""

    size_bytes: float
    encode_s: float
    decode_s: float


@dataclass(frozen=True)
class Costs:
    """All that a prediction needs. Times are busy seconds for one item.

    Attributes:
        device_s, cloud_s: each task's time on that side.
        survival: of the items that reach a task, the share that it lets continue.
        stateful: which tasks keep state, and so run on one item at a time.
        threads: of the device, that run tasks 2 to N and encode, each one item at a time; see `compute_threads`.
        payloads: by (split, codec).
        link_bytes_per_s: the link's goodput.
        cores: K, cores that the device may use; a fraction where they are shared.
        rest_s: what the device takes for an item beside its tasks and payload.
        core_share: of a core, what a single thread of the device gets.
        workers: W, the cloud's workers that this device may count on.
        main_share: M, the share of the cloud's main thread that it may count on.
        round_trip_s: from sent to acknowledged, without the payload's transfer and the cloud's work.
        window: items that may be unacknowledged at a time.
        horizon_s: how long they may queue on the link or in the cloud.
        ahead: items that the device may work on beside an earlier one, which is not ready yet.
        source_rate: items a second that the source yields; infinite if it is always ready.
        room: items that may wait for the device where the newest wins; None where the source waits for the device.
    """

    device_s: Sequence[float]
    cloud_s: Sequence[float]
    survival: Sequence[float]
    stateful: Sequence[bool]
    payloads: Mapping[tuple[int, str], Payload]
    link_bytes_per_s: float = math.inf
    threads: int = 1
    cores: float = 1.0
    rest_s: float = 0.0
    core_share: float = 1.0
    workers: float = 1.0
    main_share: float = 1.0
    round_trip_s: float = 0.0
    window: int = 1_000_000
    horizon_s: float = math.inf
    ahead: int = 0
    source_rate: float = math.inf
    room: int | None = None


def compute_threads(stateful: Sequence[bool], splits: Sequence[int], cores: int) -> int:
    """How many threads of a device run tasks 2 to N: one if any task that may run there keeps state.

    Arguments:
        stateful: for each task of the chain, whether it keeps state.
        splits: the allowed ones, ascending.
        cores: K, cores that the device may use.
    """
    return 1 if any(stateful[1 : splits[-1]]) else cores


class Option(NamedTuple):
    """One split with one codec, and what a captured item costs there.

    Attributes:
        split, codec: what it is.
        use_s: seconds that an item takes of each of `RESOURCES`.
        busiest_s: the largest of them.
        cloud_busy_s: C(N), how long it keeps the cloud busy by the clock.
        device_latency_s: from captured to ready to be sent, without waiting in queues.
        ahead_s: what such items take of less than a core, while an earlier one of another option is worked on.
        buffered_s: how long what may be on its way keeps the link or the cloud busy.
        latency_s: from captured to finished without waiting in queues, for an item that survives.
        size_bytes: mean bytes sent.
    """

    split: int
    codec: str
    use_s: tuple[float, ...]
    busiest_s: float
    cloud_busy_s: float
    device_latency_s: float
    ahead_s: float
    buffered_s: float
    latency_s: float
    size_bytes: float

    @property
    def capacity_fps(self) -> float:
        """Throughput when the source always has a next item."""
        return 1.0 / max(self.busiest_s, _TINY_S)


def options(costs: Costs, *, margin: float = 0.0, doubt: float = 0.0, trusted_bytes: float = math.inf) -> list[Option]:
    """Every split and codec that `costs.payloads` names, evaluated; in that order.

    Arguments:
        margin: by which throughput is to be above what is asked for. The source has none, so it is taken for faster.
        doubt: the share of the link that is not counted on by what sends more bytes an item than `trusted_bytes`.
    """
    last = len(costs.device_s) - 1
    reach = list(accumulate(costs.survival[:last], mul, initial=1.0))
    device_work = list(accumulate(map(mul, reach, costs.device_s), initial=0.0))
    alone_s = list(accumulate(costs.device_s, initial=0.0))
    cloud_work = [0.0] * (last + 1)
    for i in range(last - 1, -1, -1):
        cloud_work[i] = cloud_work[i + 1] + reach[i] * costs.cloud_s[i]
    main_s = reach[last] * costs.cloud_s[last]
    last_stateful = max((i for i in range(last) if costs.stateful[i]), default=-1)
    whole_link = max(costs.link_bytes_per_s, _NO_LINK)
    sure_link = max(costs.link_bytes_per_s * (1.0 - doubt), _NO_LINK)
    # Where the newest wins, what comes while an item takes the device longer than the room lasts is lost for good,
    # however quick the items between are.
    source_rate = (1.0 + margin) * costs.source_rate
    period_s = 0.0 if costs.room is None else 1.0 / max(source_rate, _LEAST_RATE)
    room_s = math.inf if costs.room is None else costs.room * period_s
    found = []
    for (split, codec), (payload_bytes, encode_s, decode_s) in costs.payloads.items():
        q = reach[split]
        size_bytes = q * payload_bytes
        transfer_s = payload_bytes / (whole_link if size_bytes <= trusted_bytes else sure_link)
        work_s = q * decode_s + cloud_work[split]
        # A chain that keeps state in the cloud runs there one item at a time, decoding included.
        workers = min(costs.workers, 1.0) if last_stateful >= split else costs.workers
        computing_s = device_work[split] - device_work[1] + q * encode_s
        stage_s = max(costs.device_s[0], computing_s / costs.threads) / costs.core_share
        trip_s = costs.round_trip_s + transfer_s + (work_s + main_s) / max(q, 1e-6)
        device_s = (device_work[split] + q * encode_s + costs.rest_s) / costs.cores
        use_s = (
            device_s,
            stage_s,
            q * transfer_s,
            work_s / workers,
            main_s / costs.main_share,
            q * trip_s / costs.window,
            period_s + max(0.0, device_s - room_s),
        )
        device_latency_s = (alone_s[split] + encode_s) / costs.core_share
        found.append(
            Option(
                split=split,
                codec=codec,
                use_s=use_s,
                busiest_s=max(use_s),
                cloud_busy_s=work_s + main_s,
                device_latency_s=device_latency_s,
                ahead_s=costs.ahead * device_s if costs.cores < 1.0 else 0.0,
                buffered_s=QUEUED * costs.horizon_s + trip_s,
                latency_s=device_latency_s + transfer_s + costs.round_trip_s + decode_s + sum(costs.cloud_s[split:]),
                size_bytes=size_bytes,
            )
        )
    return found


class Choice(NamedTuple):
    """One option, or a mix of two options with the same codec.

    Attributes:
        first, second: the options; equal where there is no mix.
        share: of the items that go to `first`; 1 where there is no mix.
        use_s: seconds that an item takes of each of `RESOURCES`.
        cloud_busy_s: how long a captured item keeps the cloud busy.
        capacity_fps: throughput when the source always has a next item.
    """

    first: Option
    second: Option
    share: float
    use_s: tuple[float, ...]
    cloud_busy_s: float
    capacity_fps: float

    @property
    def shares(self) -> dict[int, float]:
        if self.first.split == self.second.split:
            return {self.first.split: 1.0}
        return {self.first.split: self.share, self.second.split: 1.0 - self.share}

    @property
    def codec(self) -> str:
        return self.first.codec

    @property
    def splits(self) -> frozenset[int]:
        return frozenset((self.first.split, self.second.split))

    @property
    def busiest(self) -> int:
        """The resource that binds, as an index of `RESOURCES`."""
        return self.use_s.index(max(self.use_s))

    @property
    def limit(self) -> str:
        """Its name."""
        return RESOURCES[self.busiest]

    @property
    def latency_s(self) -> float:
        """The slower of its options, without waiting in queues."""
        return max(self.first.latency_s, self.second.latency_s)


def together(first: Option, second: Option) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What an item of each option uses of the resources, where they are mixed.

    An item that takes the device longer holds up those after it, since they leave in order, though these are worked on
    beside it. What is on its way by then lasts the link and the cloud for a while; after that they stand still.
    """
    slow, quick = (first, second) if first.device_latency_s > second.device_latency_s else (second, first)
    held_s = slow.device_latency_s + min(slow.device_latency_s, quick.ahead_s) - quick.device_latency_s
    idle_s = held_s - quick.buffered_s
    if idle_s <= 0.0:
        return first.use_s, second.use_s
    use_s = list(slow.use_s)
    for resource in _AFTER_ORDER:
        use_s[resource] += idle_s
    return (tuple(use_s), second.use_s) if slow is first else (first.use_s, tuple(use_s))


def single(option: Option) -> Choice:
    """A choice without a mix."""
    return Choice(option, option, 1.0, option.use_s, option.cloud_busy_s, option.capacity_fps)


def mixed(first: Option, second: Option, share: float) -> Choice:
    """A mix with `share` of the items on `first`."""
    if first is second or share >= 1.0:
        return single(first)
    if share <= 0.0:
        return single(second)
    rest = 1.0 - share
    use_s = tuple([share * a + rest * b for a, b in zip(*together(first, second), strict=True)])
    cloud_busy_s = share * first.cloud_busy_s + rest * second.cloud_busy_s
    return Choice(first, second, share, use_s, cloud_busy_s, 1.0 / max(max(use_s), _TINY_S))


def cheapest_share(first: Option, second: Option, fps: float) -> float | None:
    """The share of `first` with which the mix of both reaches `fps` at the least cloud cost; None if none does.

    Uses are linear in the share, so each resource allows an interval of shares, and the cost is least at one end.
    """
    allowed_s = 1.0 / fps
    low, high = 0.0, 1.0
    for a, b in zip(*together(first, second), strict=True):
        if a <= allowed_s:
            if b > allowed_s:
                low = max(low, (b - allowed_s) / (b - a))
        elif b <= allowed_s:
            high = min(high, (allowed_s - b) / (a - b))
        else:
            return None
        if low > high:
            return None
    return high if first.cloud_busy_s < second.cloud_busy_s else low


def fastest_share(first: Option, second: Option) -> float:
    """The share of `first` with which the mix of both is fastest.

    The largest of linear functions is convex, so its minimum is at an end or where two of them cross.
    """
    best_share, best_use = (1.0, first.busiest_s) if first.busiest_s <= second.busiest_s else (0.0, second.busiest_s)
    lines = list(zip(*together(first, second), strict=True))
    falling = [(a, b) for a, b in lines if a < b]
    rising = [(a, b) for a, b in lines if a > b]
    for a, b in falling:
        for c, d in rising:
            slope = (a - b) - (c - d)
            share = (d - b) / slope
            if 0.0 < share < 1.0:
                use = max(share * x + (1.0 - share) * y for x, y in lines)
                if use < best_use:
                    best_share, best_use = share, use
    return best_share


def cheapest(found: Iterable[Option], fps: float, *, mixes: bool = True) -> Choice | None:
    """The choice with the least cloud cost that reaches `fps`; None if none does.

    Arguments:
        found: the options, those with a latency too high already left out.
        fps: throughput that must be reached.
        mixes: whether two options may be mixed.
    """
    allowed_s = 1.0 / fps
    ranked = sorted(found, key=_cloud_cost)
    best: Choice | None = None
    for option in ranked:
        if option.busiest_s <= allowed_s:
            best = single(option)
            break
    if not mixes:
        return best
    for i, first in enumerate(ranked):
        if best is not None and first.cloud_busy_s >= best.cloud_busy_s:
            break
        for second in ranked[i + 1 :]:
            if second.codec != first.codec or _least_use(first, second) > allowed_s:
                continue
            share = cheapest_share(first, second, fps)
            if share is not None:
                cloud_busy_s = share * first.cloud_busy_s + (1.0 - share) * second.cloud_busy_s
                if best is None or cloud_busy_s < best.cloud_busy_s:
                    best = mixed(first, second, share)
    return best


def fastest(found: Sequence[Option]) -> Choice:
    """The choice with the highest throughput; among those nearly as fast, a single split, the cheapest.

    Raises:
        ValueError: there is no option.
    """
    best = single(min(found, key=_busiest))
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            if second.codec == first.codec and best.capacity_fps * _least_use(first, second) < 1.0:
                choice = mixed(first, second, fastest_share(first, second))
                if choice.capacity_fps > best.capacity_fps:
                    best = choice
    return cheapest(found, (1.0 - NEARLY) * best.capacity_fps, mixes=False) or best


def quickest(found: Iterable[Option]) -> Option:
    """The option with the least latency.

    Raises:
        ValueError: there is no option.
    """
    return min(found, key=_latency)


def best(found: Sequence[Option], in_time: Callable[[Option], bool], *wanted_fps: float) -> tuple[Choice, bool]:
    """The choice to take: the cheapest, the fastest or the quickest.

    Arguments:
        found: the options, at least one.
        in_time: whether an option's latency is allowed. If none is, the quickest is best.
        wanted_fps: throughputs, of which the first that can be reached is to be reached. If none can, the fastest
            choice is best.

    Returns:
        The choice, and whether it reaches one of them.
    """
    usable = [option for option in found if in_time(option)]
    if not usable:
        return single(quickest(found)), False
    for fps in wanted_fps:
        choice = cheapest(usable, fps)
        if choice is not None:
            return choice, True
    return fastest(usable), False


def _least_use(first: Option, second: Option) -> float:
    """No mix of both uses its busiest resource for less."""
    return max(map(min, first.use_s, second.use_s))


def _cloud_cost(option: Option) -> float:
    return option.cloud_busy_s


def _busiest(option: Option) -> float:
    return option.busiest_s


def _latency(option: Option) -> float:
    return option.latency_s
