"""What payloads cost, by split and codec. In: what was measured of some. Out: what all cost, and how sure that is.

What was never measured is inferred from the same split with other codecs, and from what is usual for the codec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from task_offload.scheduling.cost_model import Payload
from task_offload.scheduling.observation import TRAIN_BYTES, PayloadCost
from task_offload.scheduling.smoothing import Drift, Mean

ONCE, TWICE = 0.75, 1.5  # of what encoding took that was not seen twice, so much may be a first time's: fresh memory
UNKNOWN_CODEC = 0.9  # of a payload that was seen with another codec; of one never seen there is no telling
AS_LARGE = 0.02  # relative; payloads of one split that differ by less are the same
AS_LARGE_ELSEWHERE = 0.05  # payloads of several splits with one codec that differ by less take as long
PACKET_BYTES = 1500  # a payload that fits into one packet; no codec makes it better
ACCIDENT = 16.0  # times as long as others like it: the system did something else while one such payload was worked on

# Size, and seconds to encode and to decode a byte of the uncompressed payload, on the machine of the project's
# numbers for camera frames. They only rank what is worth a probe; one probe replaces them.
CODEC_PRIORS = {"none": (1.0, 0.5e-9, 0.5e-9), "lz4": (0.8, 2.0e-9, 0.8e-9), "zstd": (0.42, 4.0e-9, 2.2e-9)}
JPEG_PRIOR = (0.09, 1.7e-9, 1.7e-9)


def codec_prior(codec: str) -> tuple[float, float, float]:
    """Size, encoding and decoding of a codec that was not tried yet, relative to an uncompressed byte."""
    return CODEC_PRIORS.get(codec, JPEG_PRIOR)


class PayloadSpread(NamedTuple):
    """How uncertain the costs of a payload are (relative; 1 is unknown).

    Attributes:
        payload: of its size and encoding together.
        encode: of encoding alone; 0 where it was not measured, since `payload` says so.
        decode: of decoding in the cloud.
    """

    payload: float
    encode: float = 0.0
    decode: float = 1.0


class _Means(NamedTuple):
    """What is known of the payloads of one split and codec."""

    size: Mean
    encode: Mean
    decode: Mean


class Payloads:
    """Follows what the payloads of one chain cost, by (split, codec)."""

    def __init__(self) -> None:
        self._means: dict[tuple[int, str], _Means] = {}

    def add_device(
        self, costs: Mapping[tuple[int, str], PayloadCost], own_s: Callable[[float, float], float], drift: Drift
    ) -> None:
        """Takes in what the payloads of an interval cost the device.

        Arguments:
            own_s: busy time without what was waited for a core, by busy and CPU seconds.
            drift: of the device.
        """
        for route, cost in costs.items():
            if cost.items:
                means = self._means.get(route)
                if means is None:
                    means = self._means[route] = _Means(Mean(), Mean(), Mean())
                drift.add(means.size, cost.size_bytes, cost.items)
                drift.follow(means.encode, own_s(cost.encode_s, cost.encode_cpu_s), cost.items)
        drift.rest(means.encode for route, means in self._means.items() if route not in costs)

    def add_cloud(self, costs: Mapping[tuple[int, str], PayloadCost], drift: Drift) -> None:
        """Takes in what they cost the cloud; `drift` is the cloud's."""
        for route, cost in costs.items():
            if cost.decoded and route in self._means:
                drift.follow(self._means[route].decode, cost.decode_s, cost.decoded)
        drift.rest(means.decode for route, means in self._means.items() if route not in costs)

    def told(self, route: tuple[int, str]) -> bool:
        """Whether the cloud has told what decoding this split and codec costs."""
        return route in self._means and any(self._means[each].decode.count for each in self._alike(route))

    def costs(self, routes: Sequence[tuple[int, str]], speed_ratio: float) -> dict[tuple[int, str], Payload]:
        """What they cost: first those that were measured, then the others.

        Arguments:
            routes: each (split, codec) that is asked for.
            speed_ratio: how many times longer than the cloud the device takes.
        """
        return self._costs(routes, self._groups(routes), speed_ratio)

    def known(
        self, routes: Sequence[tuple[int, str]], speed_ratio: float, now_s: float
    ) -> tuple[dict[tuple[int, str], Payload], dict[tuple[int, str], PayloadSpread]]:
        """What they cost, as `costs` has it, and how uncertain that is."""
        groups = self._groups(routes)
        return self._costs(routes, groups, speed_ratio), self._spreads(routes, groups, now_s)

    def _groups(self, routes: Iterable[tuple[int, str]]) -> dict[tuple[int, str], list[tuple[int, str]]]:
        """Those of the routes that were measured, each with what is like it."""
        return {route: self._alike(route) for route in routes if route in self._means}

    def _alike(self, route: tuple[int, str]) -> list[tuple[int, str]]:
        """A measured split and codec, the split's other codecs that make no smaller or larger payloads of it, and the
        other splits with payloads as large.

        Each does the same then (to a JPEG, or to noise), and what their times differ by is luck.
        """
        split, codec = route
        size_bytes = self._means[route].size.value
        near_bytes, nearly_bytes = AS_LARGE * size_bytes, AS_LARGE_ELSEWHERE * size_bytes
        found = []
        for other, means in self._means.items():
            if other[0] == split:
                if abs(means.size.value - size_bytes) <= near_bytes:
                    found.append(other)
            elif other[1] == codec and abs(means.size.value - size_bytes) <= nearly_bytes:
                found.append(other)
        return found

    def _costs(
        self,
        routes: Sequence[tuple[int, str]],
        groups: Mapping[tuple[int, str], Sequence[tuple[int, str]]],
        speed_ratio: float,
    ) -> dict[tuple[int, str], Payload]:
        found: dict[tuple[int, str], Payload] = {}
        for route, group in groups.items():
            alike = [self._means[each] for each in group]
            encode_s = _pooled([means.encode for means in alike])
            decoded = [means.decode for means in alike if means.decode.count]
            decode_s = _pooled(decoded) if decoded else encode_s * self._decode_share(speed_ratio)
            found[route] = Payload(self._means[route].size.value, encode_s, decode_s)
        if len(found) < len(routes):
            raw_bytes, slowness = self._raw_payloads()
            largest = max(raw_bytes.values(), default=0.0)
            small = _small(found, raw_bytes)
            for split, codec in routes:
                if (split, codec) in groups:
                    continue
                if split in small:
                    found[split, codec] = found[small[split]]
                    continue
                share, encode_s, decode_s = codec_prior(codec)
                raw = raw_bytes.get(split, largest)
                found[split, codec] = Payload(raw * share, raw * encode_s * slowness, raw * decode_s)
        return found

    def _spreads(
        self,
        routes: Sequence[tuple[int, str]],
        groups: Mapping[tuple[int, str], Sequence[tuple[int, str]]],
        now_s: float,
    ) -> dict[tuple[int, str], PayloadSpread]:
        encodes = {route: means.encode.spread(now_s) for route, means in self._means.items()}
        decodes = {route: means.decode.spread(now_s) for route, means in self._means.items()}
        found: dict[tuple[int, str], PayloadSpread] = {}
        for route, group in groups.items():
            payload = max(self._means[route].size.spread(now_s), 0.5 * encodes[route])
            once = sum([self._means[each].encode.count for each in group]) < TWICE
            encode = ONCE if once else min([encodes[each] for each in group])
            found[route] = PayloadSpread(payload, encode, min([decodes[each] for each in group]))
        if len(found) < len(routes):
            raw_bytes, _ = self._raw_payloads()
            small = _small(found, raw_bytes)
            for split, codec in routes:
                if (split, codec) in groups:
                    continue
                if split in small:
                    payload = found[small[split]].payload
                else:
                    payload = UNKNOWN_CODEC if split in raw_bytes else 1.0
                found[split, codec] = PayloadSpread(payload)
        return found

    def _decode_share(self, speed_ratio: float) -> float:
        """Decoding there by encoding here, from the payloads whose decoding the cloud has told.

        The ratio of the tasks may be quite another: a JPEG on its way to the cloud looked as if it cost nothing.
        """
        both = [means for means in self._means.values() if means.decode.count and means.encode.value > 0]
        encode_s = sum(means.encode.value for means in both)
        return sum(means.decode.value for means in both) / encode_s if encode_s else 1.0 / speed_ratio

    def _raw_payloads(self) -> tuple[dict[int, float], float]:
        """Uncompressed size by split, as the codecs tried tell it, and how much slower than the priors we encode."""
        raw_bytes: dict[int, float] = {}
        slowness = math.inf
        for (split, codec), means in self._means.items():
            share, encode_s, _ = codec_prior(codec)
            raw = means.size.value / share
            raw_bytes[split] = max(raw, raw_bytes.get(split, 0.0))
            if raw > TRAIN_BYTES:
                slowness = min(slowness, means.encode.value / (raw * encode_s))
        return raw_bytes, slowness if math.isfinite(slowness) else 1.0


def _small(measured: Iterable[tuple[int, str]], raw_bytes: Mapping[int, float]) -> dict[int, tuple[int, str]]:
    """By split, what was measured of payloads that fit into a packet: there is little that another codec could save."""
    return {split: (split, codec) for split, codec in measured if raw_bytes[split] < PACKET_BYTES}


def _pooled(means: Sequence[Mean]) -> float:
    """The mean of all. A single item that took many times longer than others met an accident, and tells nothing."""
    if len(means) == 1:
        return means[0].value
    values = [mean.value for mean in means]
    most = ACCIDENT * min(values)
    if max(values) > most:
        means = [mean for mean in means if mean.value <= most or mean.count >= 2.0]
    return sum([mean.total for mean in means]) / sum([mean.count for mean in means])
