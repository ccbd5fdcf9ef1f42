"""Worlds as data. In: nothing. Out: chains, devices, links and what happens to them, for the simulation.

Times are those of one x86 core, the machine of the project's numbers; a device is some times slower.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from task_offload.scheduling.cost_model import Costs, Payload, compute_threads

Steps = tuple[tuple[float, float], ...]
"""(second, value): the value holds from that second on. The first second is 0."""


def value_at(steps: Steps, second: float) -> float:
    """The value that holds at `second`."""
    return steps[bisect_right(steps, (second, math.inf)) - 1][1]


def always(value: float) -> Steps:
    """One value that never changes."""
    return ((0.0, value),)


@dataclass(frozen=True)
class ChainModel:
    """What a chain costs on the reference machine.

    Attributes:
        names: of its tasks.
        task_s: seconds of each task.
        survival: of the items that reach a task, the share that it lets continue.
        payloads: by codec, for each split 1 to m-1: size in bytes, seconds to encode and send, to receive and decode.
        stateful: which tasks keep state.
        splits: those that the pins allow.
    """

    names: tuple[str, ...]
    task_s: tuple[float, ...]
    survival: tuple[float, ...]
    payloads: Mapping[str, tuple[Payload, ...]]
    stateful: tuple[bool, ...]
    splits: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """Everything that happens to one device.

    Attributes:
        slowdown: how many times slower than the reference the device is.
        link_mbit: the link's rate; played again from the start after `link_repeat_s`, if that is given.
        rtt_s: round trip of an empty message.
        source_fps: infinite for a file that is always ready.
        states_rate: the source tells its rate.
        live: newest item wins; otherwise nothing is dropped and the source waits.
        workers, main_share: what the device may count on in the cloud.
        cloud_slowdown: how many times slower than the reference a cloud worker is.
        task_scale, survival: of one task, by index, over time.
        outages: (from, to) seconds in which the cloud is away.
        device_noise, cloud_noise, size_noise: relative standard deviation of one item.
        quota: the device's slowness comes in stalls (a CPU quota), so that few items carry most of the time.
        changes: when something steps, and what, in words: convergence is measured from there.
        steady: nothing moves, so that every flip is the policy's fault.
    """

    name: str
    chain: ChainModel
    target_fps: float
    slowdown: Steps = ((0.0, 10.0),)
    cores: int = 1
    link_mbit: Steps = ((0.0, 20.0),)
    link_repeat_s: float | None = None
    rtt_s: float = 0.02
    source_fps: float = math.inf
    states_rate: bool = True
    live: bool = False
    start: int | None = None
    codecs: tuple[str, ...] = ("none",)
    workers: Steps = ((0.0, 2.0),)
    main_share: Steps = ((0.0, 1.0),)
    cloud_slowdown: Steps = ((0.0, 1.0),)
    task_scale: Mapping[int, Steps] = field(default_factory=dict)
    survival: Mapping[int, Steps] = field(default_factory=dict)
    outages: tuple[tuple[float, float], ...] = ()
    max_latency_s: float | None = None
    device_noise: float = 0.15
    cloud_noise: float = 0.15
    size_noise: float = 0.05
    quota: bool = False
    changes: tuple[tuple[float, str], ...] = ()
    steady: bool = True
    duration_s: float = 900.0

    @property
    def changes_s(self) -> tuple[float, ...]:
        return tuple(second for second, _ in self.changes)

    def link_bytes_per_s(self, second: float) -> float:
        """The link's rate at a second, outages aside."""
        if self.link_repeat_s is not None:
            second %= self.link_repeat_s
        return value_at(self.link_mbit, second) * 125_000.0

    def away(self, second: float) -> bool:
        return any(begin <= second < end for begin, end in self.outages)

    def costs(self, second: float) -> Costs:
        """The truth at a second, as the cost model takes it."""
        chain = self.chain
        slow, cloud_slow = value_at(self.slowdown, second), value_at(self.cloud_slowdown, second)
        task_s = [
            t * value_at(self.task_scale[i], second) if i in self.task_scale else t for i, t in enumerate(chain.task_s)
        ]
        return Costs(
            device_s=[t * slow for t in task_s],
            cloud_s=[t * cloud_slow for t in task_s],
            survival=[
                value_at(self.survival[i], second) if i in self.survival else q for i, q in enumerate(chain.survival)
            ],
            stateful=chain.stateful,
            payloads={
                (split, codec): Payload(each.size_bytes, each.encode_s * slow, each.decode_s * cloud_slow)
                for codec in self.codecs
                for split in chain.splits
                for each in (chain.payloads[codec][split - 1],)
            },
            link_bytes_per_s=0.0 if self.away(second) else self.link_bytes_per_s(second),
            threads=compute_threads(chain.stateful, chain.splits, self.cores),
            cores=self.cores,
            workers=value_at(self.workers, second),
            main_share=value_at(self.main_share, second),
            round_trip_s=self.rtt_s + COMMIT_S,
            source_rate=self.source_fps,
        )


COMMIT_S = 0.003  # the cloud's group commit, mean wait included
FRAME = 421_500  # bytes of a 500x281 picture
TLS_S_PER_BYTE = 0.5e-9  # 0.2 ms a frame on either side


def payload(raw_bytes: float, codec: str, picture_share: float = 0.0) -> Payload:
    """A payload of camera pixels by the project's numbers; `picture_share` of it is for people, and goes as JPEG."""
    pixels, picture = raw_bytes * (1.0 - picture_share), raw_bytes * picture_share
    ratio, encode, decode = {
        "none": (1.0, 0.0, 0.0),
        "lz4": (1.13, 0.6e-3 / FRAME, 0.1e-3 / FRAME),
        "zstd": (2.4, 1.5e-3 / FRAME, 0.7e-3 / FRAME),
    }[codec]
    size = pixels / ratio + picture / 11.8 + 120
    jpeg_s = picture * 0.5e-3 / FRAME
    tls_s = size * TLS_S_PER_BYTE + 20e-6
    return Payload(size, pixels * encode + jpeg_s + tls_s, pixels * decode + jpeg_s + tls_s)


def payloads(raw: Sequence[float], picture: Sequence[float] | None = None) -> dict[str, tuple[Payload, ...]]:
    """The payloads of every split with every lossless codec."""
    share = picture if picture is not None else [0.0] * len(raw)
    return {
        codec: tuple(payload(each, codec, part) for each, part in zip(raw, share, strict=True))
        for codec in ("none", "lz4", "zstd")
    }


_BALL_NAMES = (
    "get_frame", "calculate_hsv", "calculate_mask", "find_contours", "calculate_circle", "draw_circle", "show_frame",
)  # fmt: skip
_BALL_S = (4.2e-3, 0.77e-3, 0.17e-3, 0.05e-3, 0.02e-3, 0.02e-3, 0.03e-3)

BALL = ChainModel(
    _BALL_NAMES,
    _BALL_S,
    (1.0,) * 7,
    # After task 1 the frame itself; later it rides along for people to look at: as JPEG, beside HSV, mask, circle.
    payloads([FRAME, 2 * FRAME, FRAME + 150, FRAME + 200, FRAME + 120, FRAME + 120], [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    (False,) * 7,
    tuple(range(1, 7)),
)
BALL_RAW = replace(BALL, payloads=payloads([FRAME, 2 * FRAME, 1.33 * FRAME, FRAME, FRAME, FRAME]))
"""The ball chain as the forerunner had it: no picture goes as JPEG."""
BALL_MEMORY = replace(BALL, task_s=(0.05e-3, *_BALL_S[1:]))
"""The same with frames that are already in memory: what is left is thin."""

TRAFFIC = ChainModel(
    ("capture", "grey", "denoise", "foreground", "track", "draw", "report"),
    (3.0e-3, 0.4e-3, 30.0e-3, 2.0e-3, 0.8e-3, 0.3e-3, 0.1e-3),
    (1.0,) * 7,
    # The frame goes along as a picture from the second task on; grey at half the width is a twelfth of it.
    payloads([FRAME, FRAME * 1.083, FRAME * 1.083], [0.0, 0.923, 0.923]),
    (False, False, False, True, True, False, False),
    (1, 2, 3),
)

SYNTHETIC = ChainModel(
    ("read", "crop", "detect", "refine", "classify", "summarise", "report"),
    (1.0e-3, 1.0e-3, 4.0e-3, 3.0e-3, 8.0e-3, 1.0e-3, 0.2e-3),
    (1.0, 1.0, 0.3, 1.0, 1.0, 1.0, 1.0),
    payloads([300e3, 150e3, 150e3, 60e3, 4e3, 1e3]),
    (False,) * 7,
    tuple(range(1, 7)),
)
PINGPONG = ChainModel(
    ("read", "widen", "reduce", "widen again", "reduce again", "model", "score", "report"),
    (2.0e-3, 1.0e-3, 2.0e-3, 1.0e-3, 2.0e-3, 6.0e-3, 2.0e-3, 0.1e-3),
    (1.0,) * 8,
    payloads([200e3, 800e3, 40e3, 600e3, 20e3, 20e3, 400]),
    (False,) * 8,
    tuple(range(1, 8)),
)

SENSOR = ChainModel(
    ("sample", "smooth", "features", "anomaly", "report"),
    (0.2e-3, 0.5e-3, 3.0e-3, 1.0e-3, 0.05e-3),
    (1.0, 1.0, 1.0, 0.1, 1.0),
    payloads([20e3, 20e3, 800, 300]),
    (False,) * 5,
    (1, 2, 3, 4),
)

ALL_CODECS = ("none", "lz4", "zstd")
PI_ZERO, PI_3, PI_4, PI_5, X86 = 25.0, 10.0, 5.0, 2.5, 1.0


def lookalike(mean_mbit: float, seconds: int, seed: int) -> Steps:
    """A link with a cellular one's moods: log-normal, correlated over some seconds, with short outages."""
    random_ = random.Random(seed)
    mood, points = 0.0, []
    for second in range(seconds):
        mood = 0.85 * mood + 0.3 * random_.gauss(0.0, 1.0)
        rate = 0.0 if random_.random() < 0.01 else mean_mbit * math.exp(mood - 0.16)
        points.append((float(second), rate))
    return tuple(points)


def ramp(begin_s: float, end_s: float, first: float, last: float, step_s: float = 5.0) -> Steps:
    """A slow change, as a device that grows hot makes it."""
    count = int((end_s - begin_s) / step_s)
    return (
        (0.0, first),
        *tuple((begin_s + i * step_s, first + (last - first) * i / count) for i in range(1, count + 1)),
    )


def worlds(traces: Mapping[str, Steps] | None = None) -> tuple[World, ...]:
    """The worlds that a policy is judged in.

    Arguments:
        traces: recorded links by name, (second, Mbit/s). Look-alikes take their place where there are none.
    """
    traces = traces or {
        "verizon": lookalike(5.9, 140, 1),
        "att": lookalike(1.9, 120, 2),
    }
    third = 300.0
    found = [
        # Steady: chains and devices.
        World("ball, Pi 3, 20 Mbit/s", BALL, 17.0, always(PI_3)),
        World("ball raw, Pi 3, 20 Mbit/s", BALL_RAW, 12.0, always(PI_3), codecs=ALL_CODECS),
        World("ball raw, Pi 4, 100 Mbit/s", BALL_RAW, 28.0, always(PI_4), link_mbit=always(100), codecs=ALL_CODECS),
        World("ball in memory, asks for 1000", BALL_MEMORY, 1000.0, always(PI_3), codecs=ALL_CODECS, quota=True),
        World("ball raw, asks for 1000", BALL_RAW, 1000.0, always(PI_4), link_mbit=always(100), codecs=ALL_CODECS),
        World("ball in memory, quota 0.25", BALL_MEMORY, 150.0, always(4), link_mbit=always(100), quota=True),
        World("traffic, Pi 5, 40 Mbit/s", TRAFFIC, 15.0, always(PI_5), link_mbit=always(40), cores=1),
        World("traffic, Pi 5, four cores", TRAFFIC, 25.0, always(PI_5), cores=4, live=True, source_fps=30.0),
        World("traffic, Pi 4, live camera", TRAFFIC, 10.0, always(PI_4), live=True, source_fps=25.0, states_rate=False),
        World("traffic, all of a camera", TRAFFIC, 15.0, always(2.8), link_mbit=always(40), live=True, source_fps=15.0,
              states_rate=False),
        World("traffic, x86, slow link", TRAFFIC, 13.0, always(X86), link_mbit=always(6), codecs=ALL_CODECS),
        World("synthetic, Pi 4, filters", SYNTHETIC, 30.0, always(PI_4), link_mbit=always(30), codecs=ALL_CODECS),
        World("synthetic, Pi 3, filters", SYNTHETIC, 14.0, always(PI_3), link_mbit=always(30)),
        World("pingpong, Pi 5", PINGPONG, 45.0, always(PI_5), link_mbit=always(60), codecs=ALL_CODECS),
        World("sensor, Pi Zero, 1 Mbit/s", SENSOR, 12.0, always(PI_ZERO), link_mbit=always(1), rtt_s=0.12),
        World("sensor, Pi Zero, live", SENSOR, 11.0, always(PI_ZERO), link_mbit=always(4), live=True, source_fps=12.0),
        World("latency bound", SYNTHETIC, 12.0, always(PI_4), link_mbit=always(30), max_latency_s=0.08, live=True,
              source_fps=12.5, codecs=ALL_CODECS),
        # Steps, and slow changes.
        World("quota halves and recovers", SYNTHETIC, 25.0, ((0, 3.0), (third, 6.0), (2 * third, 3.0)),
              link_mbit=always(60), quota=True,
              changes=((third, "the device's quota halves"), (2 * third, "it recovers")), steady=False),
        World("link falls to a fifth", SYNTHETIC, 20.0, always(PI_4), codecs=ALL_CODECS,
              link_mbit=((0, 40.0), (third, 8.0), (2 * third, 40.0)),
              changes=((third, "the link falls to a fifth"), (2 * third, "it recovers")), steady=False),
        World("traffic, device is shared", TRAFFIC, 12.0, ((0, 2.0), (third, 4.5), (2 * third, 2.0)),
              link_mbit=always(40),
              changes=((third, "another program takes half of the device"), (2 * third, "it ends")), steady=False),
        World("thermal throttling", TRAFFIC, 12.0, ramp(150, 600, 2.0, 4.0), link_mbit=always(40), steady=False),
        World("scene changes survival", SYNTHETIC, 22.0, always(PI_4), link_mbit=always(40),
              survival={2: ((0, 0.1), (third, 0.9), (2 * third, 0.3))},
              changes=((third, "nine of ten survive detect"), (2 * third, "three of ten")), steady=False),
        World("scene grows heavy", SYNTHETIC, 25.0, always(3.0), link_mbit=always(40),
              task_scale={2: ((0, 1.0), (third, 3.0), (2 * third, 1.0))},
              changes=((third, "detect takes three times as long"), (2 * third, "as before")), steady=False),
        World("cloud is crowded", SYNTHETIC, 25.0, always(2.5), link_mbit=always(60),
              workers=((0, 2.0), (third, 0.12), (2 * third, 2.0)),
              changes=((third, "others fill the cloud"), (2 * third, "they leave")), steady=False),
        World("cloud away for a minute", TRAFFIC, 12.0, always(PI_5), link_mbit=always(40), live=True, source_fps=15.0,
              outages=((300.0, 360.0),), changes=((360.0, "the cloud is back"),), steady=False),
        # Links that were recorded.
        World("verizon x3, traffic", TRAFFIC, 12.0, always(PI_5), link_mbit=_times(traces["verizon"], 3),
              link_repeat_s=len(traces["verizon"]), codecs=ALL_CODECS, steady=False),
        World("verizon, synthetic", SYNTHETIC, 12.0, always(PI_4), link_mbit=traces["verizon"],
              link_repeat_s=len(traces["verizon"]), codecs=ALL_CODECS, steady=False),
        World("att x5, ball", BALL, 12.0, always(PI_3), link_mbit=_times(traces["att"], 5),
              link_repeat_s=len(traces["att"]), codecs=ALL_CODECS, steady=False),
        World("att, sensor", SENSOR, 12.0, always(PI_ZERO), link_mbit=traces["att"],
              link_repeat_s=len(traces["att"]), steady=False),
    ]  # fmt: skip
    return tuple(found)


def _times(steps: Steps, factor: float) -> Steps:
    return tuple((second, factor * value) for second, value in steps)
