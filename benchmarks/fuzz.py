"""Feeds mutated input to a parser of the wire, and watches for crashes, hangs and growth.

    python3 benchmarks/fuzz.py --parser payload --inputs 1000000 --seed 1
    python3 benchmarks/fuzz.py --parser connection --inputs 1000000 --seed 1

A parser may refuse an input with ProtocolError; any other exception, an input that takes longer than a second, or
memory that grows ends the run with exit status 1 and the input, which `--replay HEX` runs again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from task_offload.errors import ProtocolError

SLOW_S = 1.0
HANG_S = 60
GROWTH_BYTES = 64 << 20
WARM_UP = 20  # the first of so many parts fills caches
INTERESTING = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
]

Parse = Callable[[bytes], None]
Parser = tuple[Parse, list[bytes]]  # what takes an input, and the inputs to start from


def payload_parser() -> Parser:
    """The payload decoder. An input is the head's length in 4 bytes, head and body."""
    from dataclasses import dataclass
    from enum import Enum

    import numpy as np

    from task_offload.picture import Picture
    from task_offload.wire import compression
    from task_offload.wire.codec import Decoder, Encoder, PayloadLimits, padded_body

    @dataclass
    class Circle:
        x: float
        y: object = None

    class Colour(Enum):
        RED = 1

    class Table(dict):  # type: ignore[type-arg]
        pass

    types = (Circle, Colour, Table)
    # Small arrays, so that an accepted input is as quick as a refused one.
    limits = PayloadLimits(raw_bytes=1 << 20)
    decoder = Decoder(types, limits)
    image = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)
    items: list[tuple[object, ...]] = [
        (),
        (1.5, 2, 300, 70_000, -5, 1 << 40, 1 << 100, None, True, "ball", "x" * 100, b"ab", b"c" * 300),
        ([1, [2, [3, (4, (5,))]]], {"a": {"b": {1, 2}}}, frozenset({1, (2, 3)}), bytearray(b"d" * 20)),
        (image, image, [image[::2]], Picture(image), 1.0),
        (np.float32(1), np.datetime64("2026-01-01"), 2j, np.str_("x"), np.arange(5), np.zeros((0, 3)), np.array(1)),
        (Circle(1.0, Circle(2.0, [Colour.RED])), Table(a=1, b=(2,))),
        ([np.zeros((n, 1, 2), np.int32) for n in range(8)], [{"x": 1.0, "box": (1, 2, 3, 4)} for _ in range(5)]),
    ]
    corpus = []
    for codec in (*compression.available_codecs(), "jpeg:80"):
        encoder = Encoder(types, codec=codec, limits=limits)
        for item in items:
            payload = encoder.encode(item)
            body = b"".join(padded_body(payload))
            corpus.append(len(payload.head).to_bytes(4, "little") + payload.head + body)

    def parse(data: bytes) -> None:
        head_bytes = int.from_bytes(data[:4], "little")
        decoder.decode(data[4 : 4 + head_bytes], memoryview(bytearray(data[4 + head_bytes :])))

    return parse, sorted(set(corpus))


def connection_parser() -> Parser:
    """A connection: frames, messages, and what each side takes in which state.

    An input is the side, what happened on the connection before, and the size of the pieces (2 bytes) that the
    stream behind them comes in.
    """
    from task_offload.wire.framing import BEFORE_AUTHENTICATION, FrameLimits, FrameReader
    from task_offload.wire.memory import MemoryPool
    from task_offload.wire.messages import (
        PING,
        ChainSpec,
        Costs,
        Ending,
        EndingRange,
        Hello,
        Load,
        PayloadBusy,
        RefusalMessage,
        TaskBusy,
        TaskSpec,
        Totals,
        Welcome,
        ack,
        bye,
        farewell,
        item_prefix,
    )
    from task_offload.wire.session import CloudSide, DeviceSide, State

    limits = FrameLimits(body_bytes=1 << 20)
    memory = MemoryPool(4 << 20)
    books = Totals(260, 200, 50, {"overload": 7, "spool_full": 3}, 1_500_000)
    tasks = tuple(TaskSpec(f"task{n}", n % 3, n == 4) for n in range(7))
    hello = Hello("pi", bytes(16), bytes(32), ChainSpec(tasks, ("Circle", "Colour"), bytes(32)), 260).encode()
    welcome = Welcome(books, 2.0, 8.0, 1 << 26, 1 << 26, 1024, 2.0, 0.5, ("none", "zstd")).encode()
    item = item_prefix(260, 1_000_000, 3, 1, 40, 640) + bytes(680)
    costs = Costs(2.0, 0.5, 9, 3, 5, 6, (TaskBusy(4, 3, 2, 1), TaskBusy(5, 2, 2, 1)), (PayloadBusy(3, 1, 3, 7),))
    refusal = RefusalMessage(4, "the token is not valid here", 2.0).encode()
    of_device = [
        item,
        EndingRange(261, 3, Ending.FILTERED, 2, "task2", 5_000_000, 1_000_000).encode(),
        Load(0.5, 0.25, 0.75, 48.5, 100_000_000).encode(),
        PING,
        item_prefix(264, 0, 3, 0, 0, 0),
        bye(265),
    ]
    of_cloud = [ack(books), costs.encode(), PING, ack(Totals(300, 240, 50, {"overload": 10}))]
    last = farewell(Totals(300, 240, 50, {"overload": 10}))
    streams = [  # to which side, what has begun (0 nothing, 1 open, 2 leaving), messages
        (0, 0, [hello, *of_device, PING]),
        (0, 0, [hello, refusal]),
        (0, 1, of_device),
        *((0, 1, [each]) for each in (*of_device, refusal)),
        (0, 2, [PING, refusal]),
        (1, 0, [welcome, *of_cloud, refusal]),
        (1, 0, [refusal]),
        (1, 1, of_cloud),
        *((1, 1, [each]) for each in (*of_cloud, refusal)),
        (1, 2, [*of_cloud, last]),
        (1, 2, [last]),
    ]
    corpus = [
        bytes([side, begun]) + pieces.to_bytes(2, "little") + b"".join(messages)
        for side, begun, messages in streams
        # A body may follow the welcome only, so it may not come together with the hello.
        for pieces in ((0, len(hello) - 1) if messages[0] is hello else (0, 7, 64, 60_000))
    ]

    def parse(data: bytes) -> None:
        to_device, begun = data[:1] == b"\1", data[1] % 3 if len(data) > 1 else 0
        size = 1 + int.from_bytes(data[2:4], "little")
        reader = FrameReader(memory, BEFORE_AUTHENTICATION if begun == 0 else limits)
        side = DeviceSide(100, 400) if to_device else CloudSide(7, (1, 2, 3))
        if begun:
            side.state = (State.OPEN, State.LEAVING)[begun - 1]
        at = 4
        while at < len(data):
            buffer = reader.buffer()
            count = min(size, len(buffer), len(data) - at)
            buffer[:count] = data[at : at + count]
            at += count
            reader.received(count)
            for frame in iter(reader.next, None):
                event = side.receive(frame)
                if isinstance(event, Hello) and isinstance(side, CloudSide):
                    side.open()
                    reader.limits = limits
                if isinstance(event, (Hello, Welcome, EndingRange, Costs, RefusalMessage)):
                    again = event.encode()[16:]
                    if getattr(event, "version", 1) == 1 and type(event).decode(again) != event:
                        raise AssertionError(f"{event} does not come back as it was")

    return parse, sorted(set(corpus))


PARSERS: dict[str, Callable[[], Parser]] = {"payload": payload_parser, "connection": connection_parser}


def mutate(data: bytearray, corpus: list[bytes], chance: random.Random) -> None:
    """Changes an input in one of the ways that find faults in parsers."""
    # Most of an input is array memory, where a change means little: half of the changes hit its beginning.
    reach = len(data) if chance.random() < 0.5 else min(len(data), 256)
    at = chance.randrange(reach + 1)
    kind = chance.randrange(9)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = chance.randrange(256)
    elif kind == 2:
        size = chance.choice((1, 2, 4, 8))
        value = (chance.choice(INTERESTING) + chance.choice((-1, 0, 0, 1))) % 256**size
        data[at : at + size] = value.to_bytes(size, "little")
    elif kind == 3:
        del data[at : at + chance.choice((1, 2, 4, 8, 64, 1000))]
    elif kind == 4:
        data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 64)))
    elif kind == 5:
        begin = chance.randrange(reach + 1)
        data[at:at] = data[begin : begin + chance.choice((1, 2, 8, 16, 64))]
    elif kind == 6:
        data[at:at] = data[at : at + chance.choice((1, 2, 3, 9))] * chance.choice((2, 10, 100, 1000))
    elif kind == 7:
        other = chance.choice(corpus)
        begin = chance.randrange(len(other) + 1)
        data[at : at + chance.randrange(64)] = other[begin : begin + chance.randrange(64)]
    else:
        # Lengths count what follows: repair the first one, so that changes behind it are reached.
        data[:4] = max(0, len(data) - 4 - 64 * chance.randrange(3)).to_bytes(4, "little")


def run(parse: Parse, corpus: list[bytes], inputs: int, seed: int) -> int:
    chance = random.Random(seed)
    process = psutil.Process()
    accepted = 0
    slowest_s = 0.0
    baseline_bytes = 0
    began = time.perf_counter()
    for number in range(inputs):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
            mutate(data, corpus, chance)
        given = bytes(data)
        faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.stderr)
        started = time.process_time()  # others may use the machine, too
        try:
            parse(given)
            accepted += 1
        except ProtocolError:
            pass
        except BaseException:
            faulthandler.cancel_dump_traceback_later()
            print(f"input {number} of seed {seed}: {given.hex()}", file=sys.stderr)
            raise
        took_s = time.process_time() - started
        slowest_s = max(slowest_s, took_s)
        if took_s > SLOW_S:
            print(f"input {number} of seed {seed} took {took_s:.2f} s: {given.hex()}", file=sys.stderr)
            return 1
        if number == inputs // WARM_UP:
            gc.collect()
            baseline_bytes = process.memory_info().rss
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    grown_bytes = process.memory_info().rss - baseline_bytes
    print(
        f"{inputs} inputs, seed {seed}, {accepted} accepted, slowest {slowest_s * 1e3:.1f} ms, "
        f"grown by {grown_bytes / 1e6:.1f} MB, {inputs / (time.perf_counter() - began):.0f} inputs/s"
    )
    return 1 if grown_bytes > GROWTH_BYTES else 0


def silence_libraries() -> None:
    """libjpeg writes a line for each JPEG that it finds corrupt; Python's own errors still show."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    faulthandler.enable(sys.stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="feed mutated input to a parser of the wire")
    parser.add_argument("--parser", choices=sorted(PARSERS), default="payload")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", metavar="HEX", help="run this one input instead")
    options = parser.parse_args(argv)
    parse, corpus = PARSERS[options.parser]()
    if options.replay is not None:
        parse(bytes.fromhex(options.replay))
        return 0
    return run(parse, corpus, options.inputs, options.seed)


if __name__ == "__main__":
    silence_libraries()
    sys.exit(main())
