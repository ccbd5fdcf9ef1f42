"""What the observations teach. In: observations. Out: the costs that the cost model needs, and how sure they are.

Every estimate is a mean of busy time (sum over count), since under a CPU quota the outliers are the cost. It follows
slow drifts, and forgets at once what a significant step has made untrue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from task_offload.scheduling.cost_model import (
    DEVICE,
    LINK,
    MAIN,
    RESOURCES,
    STAGE,
    WORKERS,
    Costs,
    Payload,
    compute_threads,
)
from task_offload.scheduling.observation import MOST_AHEAD, TRAIN_BYTES, Observation
from task_offload.scheduling.processor import Processor
from task_offload.wire.window import HORIZON_S

MEMORY_S = 30.0  # how long a measurement counts for tasks and payloads
LINK_MEMORY_S, LINK_MEMORY_UNREST = 2.0, 20.0  # cellular links move within seconds; so does noise, hence the second
LINK_STEP, LINK_STEP_UNREST = 0.4, 3.0  # a difference above both, the second times the unrest, is believed at once
LINK_UNREST_PACE = 0.1
LINK_USE = 0.93  # of a link that is never idle, stages that wait for each other's unequal items get so much
LINK_PEAK_MEMORY_S = 300.0
LINK_STALE_PER_S, LINK_UNREST_STALE_PER_S = 0.006, 0.2  # what certainty of the link is lost with each second
FIRST_SPREAD = 0.3  # relative standard deviation of one item's cost, until it is known
ONCE, TWICE = 0.75, 1.5  # of what encoding took that was not seen twice, so much may be a first time's: fresh memory
FREE = 0.1  # of the time: while payloads wait less for the window, the link is not the limit
FULL = 0.85  # of the time: for so long payloads wait for the window where the link or the cloud is the limit
STEP_SIGMAS = 4.0  # this far from the mean twice in a row, or twice as far once, is a step and not noise
STEP_SHARE = 0.1  # smaller steps are left to the moving mean
STALE_S = 600.0  # age at which an estimate is worth nothing any more
UNKNOWN = 0.7  # relative uncertainty of what was only inferred
UNKNOWN_CODEC = 0.9  # of a payload that was seen with another codec; of one never seen there is no telling
LEAST_FREE = 1e-3  # of an interval, in which a source that is held up gives what it gives
SOURCE_STEP, SOURCE_PACE = 0.5, 0.2  # a larger step of its rate is believed at once, of a smaller one so much
ROOM_ITEMS = 2  # beside one for each thread, the items of a live source that wait: one in the sensor, one for a worker
AS_LARGE = 0.02  # relative; payloads of one split that differ by less are the same
AS_LARGE_ELSEWHERE = 0.05  # payloads of several splits with one codec that differ by less take as long
PACKET_BYTES = 1500  # a payload that fits into one packet; no codec makes it better
ACCIDENT = 16.0  # times as long as others like it: the system did something else while one such payload was worked on
ALIKE_FROM = 0.1  # of its time, tasks that take less tell less of it
CLOUD_SPEED = 4.0  # how much faster than a device the cloud is, until a task ran on both sides

# Size, and seconds to encode and to decode a byte of the uncompressed payload, on the machine of the project's
# numbers for camera frames. They only rank what is worth a probe; one probe replaces them.
CODEC_PRIORS = {"none": (1.0, 0.5e-9, 0.5e-9), "lz4": (0.8, 2.0e-9, 0.8e-9), "zstd": (0.42, 4.0e-9, 2.2e-9)}
JPEG_PRIOR = (0.09, 1.7e-9, 1.7e-9)


def codec_prior(codec: str) -> tuple[float, float, float]:
    """Size, encoding and decoding of a codec that was not tried yet, relative to an uncompressed byte."""
    return CODEC_PRIORS.get(codec, JPEG_PRIOR)


class Mean:
    """A moving mean of something that each item costs. It notices steps."""

    __slots__ = ("_strikes", "count", "seen_s", "total", "variance")

    def __init__(self) -> None:
        self.count = 0.0
        self.total = 0.0
        self.variance = 0.0  # of one item
        self.seen_s = -math.inf
        self._strikes = 0

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def add(self, total: float, count: int, now_s: float, keep: float) -> bool:
        """Takes the sum over `count` items in; what was known before counts `keep` of what it did.

        Returns:
            Whether this was a step, and the past is forgotten.
        """
        self.seen_s = now_s
        mean = total / count
        if not self.count:
            self.count, self.total, self.variance = float(count), total, (FIRST_SPREAD * mean) ** 2
            return False
        off = mean - self.value
        spread = math.sqrt(self.variance * (1.0 / count + 1.0 / self.count)) + 0.01 * self.value
        sigmas = abs(off) / spread if spread else 0.0
        if sigmas > STEP_SIGMAS and abs(off) > STEP_SHARE * self.value:
            self._strikes += 1
            if self._strikes > 1 or (sigmas > 2 * STEP_SIGMAS and count > 2):
                self.count, self.total, self._strikes = float(count), total, 0
                return True
        else:
            self._strikes = 0
        learn = 1.0 - keep
        self.variance = keep * self.variance + learn * off * off / (1.0 / count + 1.0 / self.count)
        self.count = keep * self.count + count
        self.total = keep * self.total + total
        return False

    def doubt(self, count: float) -> None:
        """What was known before counts as so many items at most."""
        if self.count > count:
            self.total *= count / self.count
            self.count = count

    def scale(self, factor: float) -> None:
        """Moves the mean, when everything like it moved by this factor."""
        self.total *= factor
        self.variance *= factor * factor

    def spread(self, now_s: float) -> float:
        """Relative uncertainty of the mean: that of its samples, and of its age. 1 is none at all."""
        if not self.count or self.total <= 0:
            return 1.0 if not self.count else 0.0
        samples = math.sqrt(self.variance / self.count) / self.value
        return min(1.0, samples + max(0.0, now_s - self.seen_s) / STALE_S)


class Link:
    """The link's goodput, in bytes a second, and how much it moves from one interval to the next.

    A steady link that steps is believed at once; of one that always moves, the mean over some time counts.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.unrest = 0.0  # mean relative step from one interval to the next
        self._last = 0.0
        self._bytes = self._busy_s = 0.0
        self._seen_s = -math.inf
        self._peak = 0.0  # highest rate of the last minutes

    def add(self, size_bytes: float, busy_s: float, interval_s: float, now_s: float) -> None:
        """Takes in what crossed the link within `busy_s` of an interval."""
        rate = size_bytes / busy_s
        self._peak = max(rate, self._peak * math.exp(-interval_s / LINK_PEAK_MEMORY_S))
        self._seen_s = now_s
        if self.rate:
            self.unrest += LINK_UNREST_PACE * (min(abs(math.log(rate / self._last)), 1.0) - self.unrest)
            if abs(math.log(rate / self.rate)) > max(LINK_STEP, LINK_STEP_UNREST * self.unrest):
                self._bytes = self._busy_s = 0.0
        keep = math.exp(-interval_s / (LINK_MEMORY_S * (1.0 + LINK_MEMORY_UNREST * self.unrest)))
        self._bytes = keep * self._bytes + size_bytes
        self._busy_s = keep * self._busy_s + busy_s
        self.rate = self._bytes / self._busy_s
        self._last = rate

    def at_least(self, rate: float) -> None:
        """So many bytes a second came, though nothing waited. How fast the link is remains as unsure as it was."""
        if 0.0 < self.rate < rate:
            self.rate, self._busy_s = rate, self._bytes / rate

    def spread(self, now_s: float) -> float:
        """Relative uncertainty: a link that moves is known for some seconds only."""
        if not self.rate:
            return 0.0  # no payload was large enough to measure it, so none was slow
        return min(1.0, (now_s - self._seen_s) * (LINK_STALE_PER_S + LINK_UNREST_STALE_PER_S * self.unrest))

    @property
    def hope(self) -> float:
        """How many times faster than the estimate the link was within the last minutes."""
        return max(1.0, self._peak / self.rate) if self.rate else 1.0

    @property
    def bytes_per_s(self) -> float:
        """The estimate; infinite while nothing told."""
        return self.rate or math.inf


@dataclass(frozen=True)
class Known:
    """Costs, and how uncertain each is (relative; 1 is unknown).

    Attributes:
        device, cloud: for each task on that side.
        payloads, encodes, decodes: by (split, codec): of size and encoding together; of encoding, and of decoding in
            the cloud, where they were measured.
        link: of the goodput.
        link_hope: how many times faster than estimated the link may be.
    """

    costs: Costs
    device: Sequence[float]
    cloud: Sequence[float]
    payloads: dict[tuple[int, str], float]
    link: float
    link_hope: float
    encodes: dict[tuple[int, str], float] = field(default_factory=dict)
    decodes: dict[tuple[int, str], float] = field(default_factory=dict)


class _Moved(NamedTuple):
    """A mean that moved: by this factor, after so many busy seconds of late, to so many seconds an item."""

    factor: float
    busy_s: float
    value_s: float


class _KnownPayloads(NamedTuple):
    """Payloads by (split, codec), and how uncertain they are, as in `Known`."""

    payloads: dict[tuple[int, str], Payload]
    spreads: dict[tuple[int, str], float]
    encodes: dict[tuple[int, str], float]
    decodes: dict[tuple[int, str], float]


class _PayloadMeans:
    """What is known of the payloads of one split and codec."""

    __slots__ = ("decode", "encode", "size")

    def __init__(self) -> None:
        self.size, self.encode, self.decode = Mean(), Mean(), Mean()


class Estimates:
    """Learns the costs of one chain on one device and its cloud.

    Attributes:
        codecs: those that are allowed and that the cloud has; "none" where it has none of them.
        splits: the allowed ones where payloads can travel; all of those left, if none of them can.
    """

    def __init__(self, splits: Sequence[int], stateful: Sequence[bool], codecs: Sequence[str]) -> None:
        """Arguments:
        splits: the allowed ones.
        stateful: for each task, whether it keeps state.
        codecs: the allowed ones.
        """
        self._stateful = tuple(stateful)
        self._allowed_splits = tuple(splits)
        self.splits = self._allowed_splits
        self._allowed_codecs = tuple(codecs)
        self.codecs = self._allowed_codecs
        tasks = range(len(stateful))
        self._device = [Mean() for _ in tasks]
        self._cloud = [Mean() for _ in tasks]
        self._survival = [Mean() for _ in tasks]
        self._payloads: dict[tuple[int, str], _PayloadMeans] = {}
        self._processor = Processor()
        self.link = Link()
        self._trip_s = 0.0
        self._source: float | None = None
        self._silent_s = 0.0  # since the source yielded something
        self._last: Observation | None = None
        self._efficiency = dict.fromkeys((RESOURCES[i] for i in (DEVICE, STAGE, LINK, WORKERS, MAIN)), 1.0)
        self._newest_wins = False
        self.now_s = 0.0
        self.stepped = False

    def add(self, observation: Observation) -> None:
        """Takes one interval in. `stepped` then says whether something was forgotten."""
        self._last = observation
        cloud = observation.codecs
        if cloud is not None:
            self.codecs = tuple(each for each in self._allowed_codecs if each in cloud) or ("none",)
        self.splits = tuple(each for each in self.splits if each not in observation.impossible) or self.splits
        self._newest_wins |= observation.dropped > 0
        self.now_s = observation.now_s
        keep = math.exp(-observation.interval_s / MEMORY_S)
        self.stepped = False
        self._add_device(observation, keep)
        self._add_cloud(observation, keep)
        for i, (here, there) in enumerate(zip(observation.device, observation.cloud, strict=True)):
            items, survived = here.items + there.items, here.survived + there.survived
            if items and (survived < items or self._survival[i].value < 1.0):  # most tasks never filter
                self.stepped |= self._survival[i].add(survived, items, self.now_s, keep)
        self._add_link(observation)
        self._add_trip(observation)
        self._add_source(observation)

    def correct(self, resource: str, factor: float) -> None:
        """What was observed while this resource was the limit is `factor` times what was predicted."""
        if resource in self._efficiency:  # the others follow from what these do
            self._efficiency[resource] = min(max(self._efficiency[resource] * factor, 0.3), 1.5)

    def doubt(self, items: float) -> None:
        """Throughput is lower than predicted: of tasks that seem slower, only the last `items` items are believed."""
        assert self._last is not None
        for mean, cost in zip(self._device, self._last.device, strict=True):
            own_s = self._processor.own_s(cost.busy_s, cost.cpu_s)
            if cost.items and own_s > (1.0 + STEP_SHARE) * mean.value * cost.items:
                mean.doubt(items)

    def saturated(self, resource: str) -> bool:
        """Whether this resource may be what held the last interval up: the device tells how busy it was."""
        return resource != RESOURCES[DEVICE] or self._processor.saturated

    def _add_device(self, observation: Observation, keep: float) -> None:
        processor = self._processor
        self.stepped |= processor.add(observation)
        moved: list[_Moved] = []
        stale: list[Mean] = []
        for mean, cost in zip(self._device, observation.device, strict=True):
            self._follow(mean, processor.own_s(cost.busy_s, cost.cpu_s), cost.items, keep, moved, stale)
        for route, payload in observation.payloads.items():
            if payload.items:
                means = self._payloads.get(route)
                if means is None:
                    means = self._payloads[route] = _PayloadMeans()
                self.stepped |= means.size.add(payload.size_bytes, payload.items, self.now_s, keep)
                own_s = processor.own_s(payload.encode_s, payload.encode_cpu_s)
                self._follow(means.encode, own_s, payload.items, keep, moved, stale)
        stale += [means.encode for route, means in self._payloads.items() if route not in observation.payloads]
        _move_alike(moved, stale)

    def _add_cloud(self, observation: Observation, keep: float) -> None:
        moved: list[_Moved] = []
        stale: list[Mean] = []
        for mean, cost in zip(self._cloud, observation.cloud, strict=True):
            self._follow(mean, cost.busy_s, cost.items, keep, moved, stale)
        for route, payload in observation.payloads.items():
            if payload.decoded and route in self._payloads:
                decode = self._payloads[route].decode
                self._follow(decode, payload.decode_s, payload.decoded, keep, moved, stale)
        stale += [means.decode for route, means in self._payloads.items() if route not in observation.payloads]
        _move_alike(moved, stale)

    def _follow(
        self, mean: Mean, total: float, items: int, keep: float, moved: list[_Moved], stale: list[Mean]
    ) -> None:
        if not items:
            stale.append(mean)
            return
        before = mean.value
        self.stepped |= mean.add(total, items, self.now_s, keep)
        if before > 0 and mean.count > 3:
            moved.append(_Moved(mean.value / before, total, mean.value))

    def _add_link(self, observation: Observation) -> None:
        if observation.transfer_bytes > 0 and observation.transfer_s > 0:
            # A device without a core in the middle of a payload makes its link look slow; but the window fills only if
            # the link is.
            waits = observation.window_full_s > FREE * observation.interval_s
            rate = observation.transfer_bytes / observation.transfer_s
            if waits or not self._processor.starved or rate >= self.link.rate:
                self.link.add(observation.transfer_bytes, observation.transfer_s, observation.interval_s, self.now_s)
        elif observation.acked_bytes > 0 and observation.link_busy_s > 0:
            # Payloads too small to measure the link one by one tell how slow it is if they waited for it all the time
            # (over a long way something is always on it, but the window does not fill), or else that it is no slower.
            if observation.window_full_s > FULL * observation.interval_s and not _cloud_is_slow(observation):
                self.link.add(observation.acked_bytes, observation.link_busy_s, observation.interval_s, self.now_s)
            else:
                # An item that was on its way before the interval had a part of its time then.
                busy_s = max(observation.link_busy_s, observation.rtt_s or 0.0)
                self.link.at_least(observation.acked_bytes / busy_s)

    def _add_trip(self, observation: Observation) -> None:
        if observation.rtt_s is None or not observation.acked:
            return
        size_bytes = observation.acked_bytes / observation.acked
        trip_s = observation.rtt_s - size_bytes / self.link.bytes_per_s - _in_cloud_s(observation)
        if trip_s > 0:  # or else the link or the cloud is taken for slower than it is
            # Waiting in the window counts in the time measured, so the least of late is nearest to the truth.
            self._trip_s = trip_s if not self._trip_s else min(trip_s, 1.02 * self._trip_s + 1e-4)

    def _add_source(self, observation: Observation) -> None:
        since_s = self._silent_s + observation.interval_s
        self._silent_s = 0.0 if observation.captured else since_s
        if observation.source_rate is not None:
            self._source = observation.source_rate
            return
        if self.held(observation):  # it could have gone on while it waited for room
            free_s = max(observation.interval_s - observation.held_s, LEAST_FREE * observation.interval_s)
            self._source = max(self._source or 0.0, observation.captured / free_s)
            return
        if not observation.captured:
            return  # a pause is no rate
        rate = observation.captured / since_s
        if self._source is None or abs(rate - self._source) > SOURCE_STEP * self._source:
            self._source = rate
        else:
            self._source += SOURCE_PACE * (rate - self._source)

    @staticmethod
    def held(observation: Observation) -> bool:
        """Whether something held the stream back: the source could have given more."""
        return observation.dropped > 0 or observation.held_s > 0.05 * observation.interval_s

    @property
    def source_rate(self) -> float:
        return math.inf if self._source is None else self._source

    @property
    def routes(self) -> tuple[tuple[int, str], ...]:
        """Every allowed split with every codec that may be used."""
        return tuple((split, codec) for codec in self.codecs for split in self.splits)

    def costs(self, routes: Sequence[tuple[int, str]]) -> Costs:
        """The costs of splits and codecs that are in force, and so measured where they run: the quick way."""
        ratio = self._speed_ratio()
        device_s = [a.value if a.count else b.value * ratio for a, b in zip(self._device, self._cloud, strict=True)]
        cloud_s = [b.value if b.count else a.value / ratio for a, b in zip(self._device, self._cloud, strict=True)]
        return self._costs(device_s, cloud_s, self._known_payloads(routes, ratio).payloads)

    def known(self, routes: Sequence[tuple[int, str]]) -> Known:
        """The costs of these splits and codecs as they are believed now, measured or not, and how sure they are."""
        now_s, ratio = self.now_s, self._speed_ratio()
        device_s, device_spread = _either(self._device, self._cloud, ratio, now_s)
        cloud_s, cloud_spread = _either(self._cloud, self._device, 1.0 / ratio, now_s)
        found = self._known_payloads(routes, ratio)
        costs = self._costs(device_s, cloud_s, found.payloads)
        link = self.link
        return Known(
            costs,
            device_spread,
            cloud_spread,
            found.spreads,
            link.spread(now_s),
            link.hope,
            found.encodes,
            found.decodes,
        )

    def _costs(
        self, device_s: Sequence[float], cloud_s: Sequence[float], payloads: dict[tuple[int, str], Payload]
    ) -> Costs:
        last, efficiency = self._last, self._efficiency
        assert last is not None, "costs are asked for after the first observation"
        threads = compute_threads(self._stateful, self._allowed_splits, last.cores)
        return Costs(
            device_s=device_s,
            cloud_s=cloud_s,
            survival=[min(1.0, mean.value) if mean.count else 1.0 for mean in self._survival],
            stateful=self._stateful,
            payloads=payloads,
            link_bytes_per_s=self.link.bytes_per_s * LINK_USE * efficiency[RESOURCES[LINK]],
            threads=threads,
            cores=self._processor.cores * efficiency[RESOURCES[DEVICE]],
            core_share=self._processor.share * efficiency[RESOURCES[STAGE]],
            rest_s=self._processor.rest_s,
            workers=max(last.workers * efficiency[RESOURCES[WORKERS]], 1e-3),
            main_share=max(last.main_share * efficiency[RESOURCES[MAIN]], 1e-3),
            round_trip_s=self._trip_s,
            window=max(1, last.window),
            horizon_s=HORIZON_S,
            ahead=MOST_AHEAD * threads if threads > 1 else 0,
            source_rate=self.source_rate,
            room=threads + ROOM_ITEMS if self._newest_wins else None,
        )

    def _speed_ratio(self) -> float:
        """How many times longer than the cloud the device takes, from the tasks that ran on both."""
        here = there = 0.0
        for a, b in zip(self._device, self._cloud, strict=True):
            if a.count and b.count:
                here += a.value
                there += b.value
        return here / there if there > 0 and here > 0 else CLOUD_SPEED

    def _known_payloads(self, routes: Sequence[tuple[int, str]], ratio: float) -> _KnownPayloads:
        """Payloads measured, and for the others what other codecs and splits tell of them."""
        found: dict[tuple[int, str], Payload] = {}
        spreads: dict[tuple[int, str], float] = {}
        encodes: dict[tuple[int, str], float] = {}
        decodes: dict[tuple[int, str], float] = {}
        unknown: list[tuple[int, str]] = []
        for route in routes:
            means = self._payloads.get(route)
            if means is None:
                unknown.append(route)
                continue
            alike = self._alike(*route)
            encode_s = _pooled([each.encode for each in alike])
            decoded = [each.decode for each in alike if each.decode.count]
            decode_s = _pooled(decoded) if decoded else encode_s * self._decode_share(ratio)
            found[route] = Payload(means.size.value, encode_s, decode_s)
            spreads[route] = max(means.size.spread(self.now_s), 0.5 * means.encode.spread(self.now_s))
            once = sum(each.encode.count for each in alike) < TWICE
            encodes[route] = ONCE if once else min(each.encode.spread(self.now_s) for each in alike)
            decodes[route] = min(each.decode.spread(self.now_s) for each in alike)
        if unknown:
            raw_bytes, slowness = self._raw_payloads()
            largest = max(raw_bytes.values(), default=0.0)
            small = {split: (split, codec) for split, codec in found if raw_bytes[split] < PACKET_BYTES}
            for split, codec in unknown:
                if split in small:  # there is little that a codec could save
                    found[split, codec], spreads[split, codec] = found[small[split]], spreads[small[split]]
                    continue
                share, encode_s, decode_s = codec_prior(codec)
                raw = raw_bytes.get(split, largest)
                found[split, codec] = Payload(raw * share, raw * encode_s * slowness, raw * decode_s)
                spreads[split, codec] = UNKNOWN_CODEC if split in raw_bytes else 1.0
        return _KnownPayloads(found, spreads, encodes, decodes)

    def _alike(self, split: int, codec: str) -> list[_PayloadMeans]:
        """What is known of this split and codec, of other codecs that make no smaller or larger payloads of it, and of
        other splits with payloads as large.

        Each does the same then (to a JPEG, or to noise), and what their times differ by is luck.
        """
        size_bytes = self._payloads[split, codec].size.value
        alike = []
        for (other, with_codec), means in self._payloads.items():
            if other == split or with_codec == codec:
                tolerance = AS_LARGE if other == split else AS_LARGE_ELSEWHERE
                if abs(means.size.value - size_bytes) <= tolerance * size_bytes:
                    alike.append(means)
        return alike

    def told(self, route: tuple[int, str]) -> bool:
        """Whether the cloud has told what decoding this split and codec costs."""
        return route in self._payloads and any(means.decode.count for means in self._alike(*route))

    def _decode_share(self, ratio: float) -> float:
        """Decoding there by encoding here, from the payloads whose decoding the cloud has told.

        The ratio of the tasks may be quite another: a JPEG on its way to the cloud looked as if it cost nothing.
        """
        both = [means for means in self._payloads.values() if means.decode.count and means.encode.value > 0]
        encode_s = sum(means.encode.value for means in both)
        return sum(means.decode.value for means in both) / encode_s if encode_s else 1.0 / ratio

    def _raw_payloads(self) -> tuple[dict[int, float], float]:
        """Uncompressed size by split, as the codecs tried tell it, and how much slower than the priors we encode."""
        raw_bytes: dict[int, float] = {}
        slowness = math.inf
        for (split, codec), means in self._payloads.items():
            share, encode_s, _ = codec_prior(codec)
            raw = means.size.value / share
            raw_bytes[split] = max(raw, raw_bytes.get(split, 0.0))
            if raw > TRAIN_BYTES:
                slowness = min(slowness, means.encode.value / (raw * encode_s))
        return raw_bytes, slowness if math.isfinite(slowness) else 1.0


def _pooled(means: Sequence[Mean]) -> float:
    """The mean of all. A single item that took many times longer than others met an accident, and tells nothing."""
    most = ACCIDENT * min(mean.value for mean in means)
    usual = [mean for mean in means if mean.value <= most or mean.count >= 2.0]
    return sum(mean.total for mean in usual) / sum(mean.count for mean in usual)


def _in_cloud_s(observation: Observation) -> float:
    """How long an acknowledged item waited and was worked on in the cloud."""
    return observation.queue_s + sum(each.busy_s for each in observation.cloud) / max(1, observation.acked)


def _cloud_is_slow(observation: Observation) -> bool:
    """Whether acks that come slowly may be the cloud's doing: its workers', or its main thread's, which is alone."""
    main_s = observation.cloud[-1].busy_s / observation.main_share
    return _in_cloud_s(observation) > 0.5 * (observation.rtt_s or 0.0) or main_s > FULL * observation.interval_s


def _move_alike(moved: list[_Moved], stale: list[Mean]) -> None:
    """When the speed of a side changes, what did not run there just now changed with what did.

    The median, weighted by busy time, so that one task whose input changed does not move the others. Short tasks tell
    little of a longer one: they are short or long by what else runs, and by what the caches hold.
    """
    half = 0.5 * sum(each.busy_s for each in moved)
    ran_s = sum(each.value_s for each in moved)
    for factor, busy_s, _ in sorted(moved):
        half -= busy_s
        if half <= 0:
            for mean in stale:
                mean.scale(factor ** min(1.0, ran_s / max(ALIKE_FROM * mean.value, 1e-9)))
            return


def _either(own: list[Mean], other: list[Mean], ratio: float, now_s: float) -> tuple[list[float], list[float]]:
    """Each task's time on one side: its own measurement, and the other side's scaled, by how sure each is."""
    values, spreads = [], []
    for a, b in zip(own, other, strict=True):
        spread = a.spread(now_s)
        if spread < 0.1 or not b.count:
            values.append(a.value)
            spreads.append(spread)
            continue
        inferred = b.value * ratio
        inferred_spread = min(1.0, UNKNOWN + b.spread(now_s))
        if not a.count:
            values.append(inferred)
            spreads.append(1.0)
            continue
        weight = inferred_spread**2 / (inferred_spread**2 + spread**2 + 1e-9)
        values.append(weight * a.value + (1.0 - weight) * inferred)
        spreads.append(spread * math.sqrt(weight))
    return values, spreads
