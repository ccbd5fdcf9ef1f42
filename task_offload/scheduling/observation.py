"""What a policy sees and says. In: one observation for each interval. Out: a decision, with its reason.

Plain data without I/O or clocks: the device fills an observation from its meters, the simulation from its world.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

MOST_AHEAD = 4  # items for each of the device's workers that may be done before an earlier one is
TRAIN_BYTES = 16_384  # smaller payloads fit into a few packets, and say nothing of the link's rate


@dataclass(frozen=True)
class TaskCost:
    """What one task cost on one side during the interval.

    Attributes:
        items: how many items it ran on.
        busy_s: seconds it was busy with them; for the first task, without waiting for the sensor.
        survived: how many of them it let continue.
        cpu_s: CPU seconds of the thread that ran it; 0 in the cloud, and where they are not measured.
    """

    items: int = 0
    busy_s: float = 0.0
    survived: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class PayloadCost:
    """What the payloads of one split and codec cost during the interval.

    Attributes:
        items: how many payloads were encoded.
        size_bytes: bytes on the wire, all of them.
        encode_s: busy seconds for encoding and sending (with TLS) on the device.
        decoded: how many payloads the cloud says it decoded.
        decode_s: busy seconds for receiving (with TLS) and decoding those in the cloud.
        encode_cpu_s: CPU seconds of `encode_s`; 0 where they are not measured.
    """

    items: int = 0
    size_bytes: int = 0
    encode_s: float = 0.0
    decoded: int = 0
    decode_s: float = 0.0
    encode_cpu_s: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What happened on one device, and what its cloud told of its work, during one interval.

    Attributes:
        now_s: seconds on a clock that never goes back; the end of the interval.
        interval_s: its length.
        captured: items that the first task yielded.
        finished: items that the device learned are filtered or completed.
        dropped: items that were given up because something could not keep up.
        device, cloud: each task's cost on that side, by its index.
        payloads: by (split, codec).
        unsent: items that ended on the device without a payload, by the (split, codec) that it would have had.
        acked_bytes: bytes of payloads that were sent on this connection and acknowledged.
        link_busy_s: how long at least one payload was on its way; goodput is acked_bytes / link_busy_s.
        rtt_s: mean time from sent to acknowledged, of `acked` items; None where there is none.
        acked: items that were acknowledged.
        queue_s: mean wait of an item in the cloud before a worker took it.
        backlog: items captured and not finished at the end of the interval.
        source_rate: items a second that the source yields, where it says so; None for a live source that does not;
            infinite for one that is always ready (a file that need not keep its pace).
        cores: K, cores that the device may use.
        workers: W, the cloud's workers that this device may count on (a fraction under contention).
        main_share: M, the share of the cloud's main thread that this device may count on, 0 to 1.
        window: items that may be unacknowledged at a time.
        window_full_s: how long a payload waited because no more might be on its way: the link or the cloud is slow.
        in_local_outage: the cloud is away.
        held_s: how long the first task waited because what follows it had no room.
        transfer_bytes, transfer_s: of payloads of at least `TRAIN_BYTES` that the cloud received, the bytes after the
            first that came, and the time that these took. A payload that size measures the link however rarely one is
            sent, which acked_bytes / link_busy_s does not.
        late: finished items whose latency was above `--max-latency`.
        cpu_s: CPU seconds that the device's process got; None where that is not measured.
        delayed_s: how long its threads could have run and waited for a core, all of them together; None where that is
            not measured, and the CPU seconds of tasks and payloads neither.
        threads: how many of them wanted to run, as `observe.load.Delays` counts them.
        codecs: those that the cloud which is connected can decode; None for all.
        impossible: splits where an item's arguments could not travel, in this whole run.
    """

    now_s: float
    interval_s: float
    captured: int
    finished: int
    dropped: int
    device: tuple[TaskCost, ...]
    cloud: tuple[TaskCost, ...]
    payloads: Mapping[tuple[int, str], PayloadCost] = field(default_factory=dict)
    unsent: Mapping[tuple[int, str], int] = field(default_factory=dict)
    acked_bytes: int = 0
    link_busy_s: float = 0.0
    rtt_s: float | None = None
    acked: int = 0
    queue_s: float = 0.0
    backlog: int = 0
    source_rate: float | None = None
    cores: int = 1
    workers: float = 1.0
    main_share: float = 1.0
    window: int = 1
    window_full_s: float = 0.0
    in_local_outage: bool = False
    held_s: float = 0.0
    transfer_bytes: int = 0
    transfer_s: float = 0.0
    late: int = 0
    cpu_s: float | None = None
    delayed_s: float | None = None
    threads: float = 1.0
    codecs: Set[str] | None = None
    impossible: Set[int] = frozenset()

    @property
    def fps(self) -> float:
        """Throughput over the interval, in finished items a second."""
        return self.finished / self.interval_s if self.interval_s > 0 else 0.0


class Route(NamedTuple):
    """How one item goes: the split it takes, and the codec of its payload (None for the one in force)."""

    split: int
    codec: str | None = None


@dataclass(frozen=True)
class Decision:
    """Which splits the next items take, and why.

    Attributes:
        shares: share of the items for each split; they add up to 1.
        reason: in plain words, for people.
        codec: how payloads are encoded, as for `--codec`; None leaves it as it is.
        probes: routes that one item each takes next, so that their costs become known.
        predicted_fps: throughput that the policy expects; None if it does not predict.
        routine: it only trims the shares of the splits in force, or only probes. Carry it out as any other, but do
            not trouble people with it.
    """

    shares: Mapping[int, float]
    reason: str
    codec: str | None = None
    probes: tuple[Route, ...] = ()
    predicted_fps: float | None = None
    routine: bool = False


class Policy(Protocol):
    """Decides the split. It does no I/O and reads no clock."""

    def start(self) -> Decision:
        """The decision that holds before the first observation."""

    def decide(self, observation: Observation) -> Decision | None:
        """Takes the next observation in. Returns a decision where something changes, otherwise None."""
