"""Messages that the tests of the wire share: one of each kind, its bytes written down, and strategies for all."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from task_offload.wire.framing import Frame, FrameLimits, FrameReader
from task_offload.wire.messages import (
    MOST_IN_RANGE,
    MOST_SEQUENCE,
    PING,
    ChainSpec,
    Costs,
    Ending,
    EndingRange,
    Hello,
    Kind,
    Load,
    PayloadBusy,
    RefusalMessage,
    TaskBusy,
    TaskSpec,
    Totals,
    Welcome,
    ack,
    bye,
    decode_bye,
    decode_totals,
    farewell,
    item_prefix,
)

TOTALS = Totals(260, 200, 50, {"overload": 7, "é": 3}, 1_500_000)
HELLO = Hello(
    "pi",
    bytes(range(16)),
    bytes(range(32)),
    ChainSpec((TaskSpec("get", 1, True), TaskSpec("show", 2)), ("Circle",), bytes([0xDD]) * 32),
    260,
)
WELCOME = Welcome(TOTALS, 2.0, 8.0, 1 << 26, 1 << 25, 1024, 2.0, 0.5, ("none", "zstd"), True)
RANGE = EndingRange(260, 3, Ending.FILTERED, 2, "get", 5_000_000, 1_000_000)
COSTS = Costs(2.0, 0.5, 900, 3, 421_504, 170_000, (TaskBusy(4, 3, 2, 1500),), (PayloadBusy(3, 1, 3, 700),))
LOAD = Load(0.5, 0.25, 0.75, 48.5, 100_000_000)
REFUSAL = RefusalMessage(4, "no", 2.0)

TOTALS_HEX = (
    "0401000000000000 c800000000000000 3200000000000000 0a00000000000000 60e3160000000000 02"
    "0800 6f7665726c6f6164 0700000000000000 0200 c3a9 0300000000000000"
)
# Each message, and its bytes as docs/protocol.md lays them out: frame header, head, body.
GOLDEN: dict[str, tuple[bytes, str]] = {
    "hello": (
        HELLO.encode(),
        "01 00 0000 7b000000 0000000000000000"
        "50544f46 0100 0000 000102030405060708090a0b0c0d0e0f"
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd 0401000000000000"
        "0200 7069 02 05 0300 676574 02 0400 73686f77 01 0600 436972636c65",
    ),
    "item": (
        item_prefix(260, 1_000_000, 3, 1, 2, 64) + b"\xaa\xbb" + bytes(64),
        "02 00 0000 1a000000 4000000000000000 0401000000000000 40420f0000000000 03 01 000000000000 aabb" + "00" * 64,
    ),
    "endings": (
        RANGE.encode(),
        "03 00 0000 23000000 0000000000000000"
        "0401000000000000 03000000 01 02 0300 404b4c0000000000 40420f0000000000 676574",
    ),
    "load": (
        LOAD.encode(),
        "04 00 0000 18000000 0000000000000000 0000003f 0000803e 0000403f 00004242 00e1f50500000000",
    ),
    "bye": (bye(260), "05 00 0000 08000000 0000000000000000 0401000000000000"),
    "welcome": (
        WELCOME.encode(),
        "10 00 0000 7c000000 0000000000000000 0100 0100 00000040 00000041 0000000400000000 0000000200000000 00040000"
        f"00000040 0000003f {TOTALS_HEX} 02 0400 6e6f6e65 0400 7a737464",
    ),
    "ack": (ack(TOTALS), f"11 00 0000 47000000 0000000000000000 {TOTALS_HEX}"),
    "costs": (
        COSTS.encode(),
        "12 00 0000 4a000000 0000000000000000 00000040 0000003f 8403000000000000 0300000000000000"
        "806e060000000000 1098020000000000 01 0100 04 03000000 02000000 dc05000000000000"
        "03 01 03000000 bc02000000000000",
    ),
    "farewell": (farewell(TOTALS), f"13 00 0000 47000000 0000000000000000 {TOTALS_HEX}"),
    "ping": (PING, "20 00 0000 00000000 0000000000000000"),
    "refusal": (REFUSAL.encode(), "21 00 0000 0a000000 0000000000000000 0400 00000040 0200 6e6f"),
}
DECODERS: dict[str, tuple[Any, Any]] = {
    "hello": (Hello.decode, HELLO),
    "endings": (EndingRange.decode, RANGE),
    "load": (Load.decode, LOAD),
    "bye": (decode_bye, 260),
    "welcome": (Welcome.decode, WELCOME),
    "ack": (decode_totals, TOTALS),
    "costs": (Costs.decode, COSTS),
    "farewell": (decode_totals, TOTALS),
    "refusal": (RefusalMessage.decode, REFUSAL),
}
HEADER_BYTES = 16


class PlainMemory:
    """Fresh memory for each body, and a list of what was asked for."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, size_bytes: int) -> memoryview:
        self.taken.append(size_bytes)
        return memoryview(bytearray(size_bytes))


def new_reader(limits: FrameLimits | None = None, memory: PlainMemory | None = None) -> FrameReader:
    return FrameReader(memory or PlainMemory(), limits or FrameLimits())


def feed(reader: FrameReader, data: bytes, sizes: Iterable[int] = ()) -> list[Frame]:
    """Gives a reader the bytes in pieces of these sizes, and then as much at once as it takes."""
    frames: list[Frame] = []
    at = 0
    pieces = iter(sizes)
    while at < len(data):
        buffer = reader.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), next(pieces, len(buffer)), len(data) - at)
        buffer[:count] = data[at : at + count]
        at += count
        reader.received(count)
        frames += iter(reader.next, None)
    return frames


def frame_of(message: bytes) -> Frame:
    """The one frame of a message."""
    (found,) = feed(new_reader(), message)
    return found


def raw_frame(kind: Kind, head: bytes = b"", body: bytes = b"") -> Frame:
    return Frame(kind, head, memoryview(bytearray(body)) if body else None)


u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
sequences = st.integers(0, MOST_SEQUENCE - 1)
positive_f32 = st.floats(0, 2.0**100, width=32)
shares = st.floats(0, 1, width=32)


def texts(most_bytes: int, least: int = 0) -> st.SearchStrategy[str]:
    """Texts that travel as they are."""
    characters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029")
    return st.text(characters, min_size=least, max_size=most_bytes // 4)


counts = st.integers(0, 2**55)


@st.composite
def totals(draw: st.DrawFn) -> Totals:
    completed, filtered = draw(counts), draw(counts)
    dropped = draw(st.dictionaries(texts(80), counts, max_size=5))
    recorded = completed + filtered + sum(dropped.values())
    return Totals(draw(st.integers(recorded, 2**62)), completed, filtered, dropped, draw(u64))


chains = st.builds(
    ChainSpec,
    st.lists(st.builds(TaskSpec, texts(255), st.integers(0, 2), st.booleans()), max_size=8).map(tuple),
    st.lists(texts(255), max_size=4).map(tuple),
    st.binary(min_size=32, max_size=32),
)
hellos = st.builds(
    Hello,
    texts(64, least=1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    chains,
    sequences,
)
welcomes = st.builds(
    Welcome,
    totals(),
    st.floats(0.125, 100, width=32),
    st.floats(101, 3000, width=32),
    st.integers(1, 2**64 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(1, 2**32 - 1),
    positive_f32,
    shares,
    st.lists(texts(40), max_size=4).map(tuple),
    st.booleans(),
)


@st.composite
def ranges(draw: st.DrawFn) -> EndingRange:
    count = draw(st.integers(1, MOST_IN_RANGE))
    newest = draw(u64)
    return EndingRange(
        draw(st.integers(0, MOST_SEQUENCE - count)),
        count,
        draw(st.sampled_from(Ending)),
        draw(u8),
        draw(texts(255)),
        draw(st.integers(newest, 2**64 - 1)),
        newest,
    )


@st.composite
def task_costs(draw: st.DrawFn) -> TaskBusy:
    items = draw(u32)
    return TaskBusy(draw(u8), items, draw(st.integers(0, items)), draw(u64))


costs = st.builds(
    Costs,
    positive_f32,
    shares,
    u64,
    u64,
    u64,
    u64,
    st.lists(task_costs(), max_size=5).map(tuple),
    st.lists(st.builds(PayloadBusy, u8, u8, u32, u64), max_size=5).map(tuple),
)
loads = st.builds(
    Load,
    positive_f32,
    positive_f32,
    positive_f32,
    st.floats(-300, 300, width=32),
    u64,
)
refusals = st.builds(RefusalMessage, u16, texts(2048), st.floats(0, 24 * 3600, width=32))
objects = st.one_of(hellos, welcomes, ranges(), costs, loads, refusals)


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """An item's message with any payload."""
    head, body = draw(st.binary(max_size=100)), draw(st.binary(max_size=300))
    prefix = item_prefix(draw(u64), draw(u64), draw(u8), draw(u8), len(head), len(body))
    return prefix + head + body


messages = st.one_of(
    objects.map(lambda each: each.encode()), totals().map(ack), totals().map(farewell), sequences.map(bye),
    st.just(PING), items(),
)  # fmt: skip


def header(kind: int, head_bytes: int, body_bytes: int, reserved: int = 0) -> bytes:
    """A frame header by hand."""
    return struct.pack("<BBHIQ", kind, reserved & 0xFF, reserved >> 8, head_bytes, body_bytes)
