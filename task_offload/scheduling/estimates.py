"""What the observations teach. In: observations. Out: the costs that the cost model needs, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from task_offload.scheduling.known import Known
from task_offload.scheduling.observation import MOST_AHEAD, Observation
from task_offload.scheduling.payloads import Payloads
from task_offload.scheduling.processor import Processor
from task_offload.scheduling.smoothing import STEP_SHARE, Drift, Link, Mean
from task_offload.wire.window import HORIZON_S

MEMORY_S = 30.0  # how long a measurement counts for tasks and payloads
LINK_USE = 0.93  # of a link that is never idle, stages that wait for each other's unequal items get so much
FREE = 0.1  # of the time: while payloads wait less for the window, the link is not the limit
FULL = 0.85  # of the time: for so long payloads wait for the window where the link or the cloud is the limit
UNKNOWN = 0.7  # relative uncertainty of what was only inferred
LEAST_FREE = 1e-3  # of an interval, in which a source that is held up gives what it gives
SOURCE_STEP, SOURCE_PACE = 0.5, 0.2  # a larger step of its rate is believed at once, of a smaller one so much
ROOM_ITEMS = 2  # beside one for each thread, the items of a live source that wait: one in the sensor, one for a worker
CLOUD_SPEED = 4.0  # how much faster than a device the cloud is, until a task ran on both sides


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
        self._payloads = Payloads()
        self._processor = Processor()
        self.link = Link()
        self._trip_s = 0.0
        self._source: float | None = None
        self._silent_s = 0.0  # since the source yielded something
        self._last: Observation | None = None
        self._efficiency = [1.0] * len(RESOURCES)  # what the window and the source give follows from the others'
        self._newest_wins = False
        self.now_s = 0.0
        self.stepped = False

    def add(self, observation: Observation) -> None:
        """Takes one interval in. `stepped` then says whether something was forgotten."""
        self._last = observation
        decodable = observation.codecs
        if decodable is not None:
            self.codecs = tuple(each for each in self._allowed_codecs if each in decodable) or ("none",)
        if observation.impossible:
            self.splits = tuple(each for each in self.splits if each not in observation.impossible) or self.splits
        self._newest_wins |= observation.dropped > 0
        self.now_s = observation.now_s
        cores_stepped = self._processor.add(observation)
        keep = math.exp(-observation.interval_s / MEMORY_S)
        here, there = Drift(self.now_s, keep), Drift(self.now_s, keep)
        self._add_device(observation, here)
        self._add_cloud(observation, there)
        for mean, device, cloud in zip(self._survival, observation.device, observation.cloud, strict=True):
            items, survived = device.items + cloud.items, device.survived + cloud.survived
            if items and (survived < items or mean.value < 1.0):  # most tasks never filter
                here.add(mean, survived, items)
        self.stepped = cores_stepped or here.stepped or there.stepped
        self._add_link(observation)
        self._add_trip(observation)
        self._add_source(observation)

    def correct(self, resource: int, factor: float) -> None:
        """What was observed while this resource was the limit is `factor` times what was predicted."""
        self._efficiency[resource] = min(max(self._efficiency[resource] * factor, 0.3), 1.5)

    def doubt(self, items: float) -> None:
        """Throughput is lower than predicted: of tasks that seem slower, only the last `items` items are believed."""
        assert self._last is not None
        for mean, cost in zip(self._device, self._last.device, strict=True):
            own_s = self._processor.own_s(cost.busy_s, cost.cpu_s)
            if cost.items and own_s > (1.0 + STEP_SHARE) * mean.value * cost.items:
                mean.doubt(items)

    def saturated(self, resource: int) -> bool:
        """Whether this resource may be what held the last interval up: the device tells how busy it was."""
        return resource != DEVICE or self._processor.saturated

    def _add_device(self, observation: Observation, drift: Drift) -> None:
        own_s = self._processor.own_s
        for mean, cost in zip(self._device, observation.device, strict=True):
            drift.follow(mean, own_s(cost.busy_s, cost.cpu_s), cost.items)
        self._payloads.add_device(observation.payloads, own_s, drift)
        drift.settle()

    def _add_cloud(self, observation: Observation, drift: Drift) -> None:
        for mean, cost in zip(self._cloud, observation.cloud, strict=True):
            drift.follow(mean, cost.busy_s, cost.items)
        self._payloads.add_cloud(observation.payloads, drift)
        drift.settle()

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
        return self._costs(device_s, cloud_s, self._payloads.costs(routes, ratio))

    def known(self, routes: Sequence[tuple[int, str]]) -> Known:
        """The costs of these splits and codecs as they are believed now, measured or not, and how sure they are."""
        now_s, ratio = self.now_s, self._speed_ratio()
        device_s, device_spread = _either(self._device, self._cloud, ratio, now_s)
        cloud_s, cloud_spread = _either(self._cloud, self._device, 1.0 / ratio, now_s)
        payloads, payload_spreads = self._payloads.known(routes, ratio, now_s)
        costs = self._costs(device_s, cloud_s, payloads)
        return Known(costs, device_spread, cloud_spread, payload_spreads, self.link.spread(now_s), self.link.hope)

    def told(self, route: tuple[int, str]) -> bool:
        """Whether the cloud has told what decoding this split and codec costs."""
        return self._payloads.told(route)

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
            link_bytes_per_s=self.link.bytes_per_s * LINK_USE * efficiency[LINK],
            threads=threads,
            cores=self._processor.cores * efficiency[DEVICE],
            core_share=self._processor.share * efficiency[STAGE],
            rest_s=self._processor.rest_s,
            workers=max(last.workers * efficiency[WORKERS], 1e-3),
            main_share=max(last.main_share * efficiency[MAIN], 1e-3),
            round_trip_s=self._trip_s,
            window=max(1, last.window),
            horizon_s=HORIZON_S,  # the window's own, on every connection: no observation need tell it
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


def _in_cloud_s(observation: Observation) -> float:
    """How long an acknowledged item waited and was worked on in the cloud."""
    return observation.queue_s + sum(each.busy_s for each in observation.cloud) / max(1, observation.acked)


def _cloud_is_slow(observation: Observation) -> bool:
    """Whether acks that come slowly may be the cloud's doing: its workers', or its main thread's, which is alone."""
    main_s = observation.cloud[-1].busy_s / observation.main_share
    return _in_cloud_s(observation) > 0.5 * (observation.rtt_s or 0.0) or main_s > FULL * observation.interval_s


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
