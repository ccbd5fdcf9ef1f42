"""docs/protocol.md says what the code does: its example, its tables and its limits."""

import pickletools
import re
from pathlib import Path

import numpy as np
import pytest

from task_offload.task import MAX_TASKS
from task_offload.transport import exchange
from task_offload.transport.listener import SIGNS_A_TICK
from task_offload.wire import messages, session, unpickle
from task_offload.wire.arrays import Encoding
from task_offload.wire.codec import Decoder, Encoder
from task_offload.wire.framing import BEFORE_AUTHENTICATION, FrameLimits
from task_offload.wire.messages import (
    FRAME,
    ITEM,
    LASTING,
    MOST_IN_RANGE,
    MOST_SEQUENCE,
    ChainSpec,
    Ending,
    EndingRange,
    Hello,
    Kind,
    Refusal,
    TaskSpec,
    Totals,
    Welcome,
    ack,
    bye,
    farewell,
    item_prefix,
)
from task_offload.wire.payload_limits import PayloadLimits
from task_offload.wire.session import Arrived, Bye, CloudSide, DeviceSide, Farewell, State
from tests.wire.samples import frame_of

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLE = {
    name: bytes.fromhex(re.sub(r"#.*", "", block))
    for name, block in re.findall(r"```hex (\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
}
ARGUMENTS = (7, np.array([1, -2, 3], "<i2"))
HELLO = Hello(
    "pi",
    bytes(range(16)),
    b"\xaa" * 32,
    ChainSpec((TaskSpec("get", 1, True), TaskSpec("square"), TaskSpec("show")), (), b"\xdd" * 32),
)
WELCOME = Welcome(Totals(), 2.0, 8.0, 1 << 26, 1 << 26, 1024, 2.0, 1.0, ("none", "zstd"))
RANGE = EndingRange(1, 2, Ending.FILTERED, 2, "square", 60_000, 40_000)
BOOKS = Totals(3, 1, 2, {}, 1500)


def section(title: str) -> str:
    """What follows a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without its head."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in each.splitlines()[2:]]
        for each in found
    ]


def test_the_example_is_what_the_code_sends():
    payload = Encoder().encode(ARGUMENTS)
    assert payload.buffers == ()
    sent = {
        "HELLO": HELLO.encode(),
        "WELCOME": WELCOME.encode(),
        "ITEM": item_prefix(0, 20_000, 2, 0, len(payload.head), 0) + payload.head,
        "ENDINGS": RANGE.encode(),
        "ACK": ack(BOOKS),
        "BYE": bye(3),
        "FAREWELL": farewell(BOOKS),
    }
    assert {name: message.hex() for name, message in EXAMPLE.items()} == {
        name: message.hex() for name, message in sent.items()
    }


def test_the_example_is_a_whole_connection_for_both_sides():
    device, cloud = DeviceSide(), CloudSide(3, (1, 2))
    frames = {name: frame_of(message) for name, message in EXAMPLE.items()}
    assert cloud.receive(frames["HELLO"]) == HELLO
    cloud.open()
    assert device.receive(frames["WELCOME"]) == WELCOME
    arrived = cloud.receive(frames["ITEM"])
    assert type(arrived) is Arrived
    number, array = Decoder().decode(arrived.head, memoryview(b""))
    assert (number, array.tolist(), array.dtype) == (7, [1, -2, 3], np.dtype("<i2"))
    assert cloud.receive(frames["ENDINGS"]) == RANGE
    device.sent(3)
    assert device.receive(frames["ACK"]) == BOOKS
    device.leave()
    assert cloud.receive(frames["BYE"]) == Bye(3)
    assert device.receive(frames["FAREWELL"]) == Farewell(BOOKS)
    assert device.state is State.CLOSED


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Frames", FRAME),
        ("HELLO", messages._HELLO),
        ("ITEM", ITEM),
        ("ENDINGS", messages._RANGE),
        ("LOAD", messages._LOAD),
        ("BYE", messages._U64),
        ("WELCOME", messages._WELCOME),
        ("ACK and FAREWELL", messages._ACK),
        ("COSTS", messages._COSTS),
        ("REFUSAL", messages._REFUSAL),
    ],
)
def test_fields_have_the_offsets_and_sizes_of_the_code(title, layout):
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f32": 4}
    (rows,) = tables(section(title))
    end = 0
    for offset, size, kind, _ in rows:
        if not offset:
            continue
        assert int(offset) == end
        assert int(size) == sizes.get(kind, int(size))
        end += int(size)
    assert end == layout.size
    letters = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "f": "f32", "s": "bytes", "x": "bytes"}
    kinds = [letters[letter] for letter in re.findall(r"\d*([A-Za-z])", layout.format)]
    assert [kind for offset, _, kind, _ in rows if offset] == kinds


def test_the_kinds_of_messages_are_those_of_the_code():
    (rows,) = tables(section("Messages"))
    assert {row[1]: int(row[0]) for row in rows} == {kind.name: kind.value for kind in Kind}
    for number, name, sender, _ in rows:
        to_cloud = any(Kind(int(number)) in allowed for allowed in session._CLOUD.values())
        to_device = any(Kind(int(number)) in allowed for allowed in session._DEVICE.values())
        assert sender == {(True, False): "device", (False, True): "cloud", (True, True): "both"}[to_cloud, to_device], (
            name
        )


@pytest.mark.parametrize(("number", "allowed"), [(0, session._DEVICE), (1, session._CLOUD)])
def test_the_states_are_those_of_the_code(number, allowed):
    rows = tables(section("States"))[number]
    assert {state: {name for name in names.split(", ") if name} for state, names, _ in rows} == {
        state.value: {kind.name for kind in kinds} for state, kinds in allowed.items()
    }


def test_the_refusals_are_those_of_the_code():
    (rows,) = tables(section("Refusals"))
    assert {row[1]: int(row[0]) for row in rows} == {code.name: code.value for code in Refusal}
    assert {row[1] for row in rows if row[3] == "lasting"} == {code.name for code in LASTING}


def test_the_encodings_are_those_of_the_code():
    rows = tables(section("Payloads"))[2]
    assert {row[1]: int(row[0]) for row in rows} == {each.name: each.value for each in Encoding}


def test_the_opcodes_are_those_of_the_code():
    rows = tables(section("The pickle"))[0]
    names = {each.code.encode("latin-1"): each.name for each in pickletools.opcodes}
    described = {bytes.fromhex(row[0]): row[1] for row in rows}
    assert described == {code: names[code] for code in described}
    fixed = {b"G", b"K", b"M", b"J"}
    around = {unpickle._PREFIX[:1], bytes([unpickle._FRAME]), unpickle._STOP}
    single = {bytes([code]) for code in unpickle._SINGLE}
    assert set(described) == fixed | around | single | set(unpickle._LENGTH_BYTES)


def test_the_limits_are_those_of_the_code():
    (rows,) = tables(section("Limits"))
    limits = [int(row[1].replace(",", "")) for row in rows]
    payload, frames = PayloadLimits(), FrameLimits()
    assert BEFORE_AUTHENTICATION.head_bytes == exchange._CLOUD_LIMITS.head_bytes
    assert BEFORE_AUTHENTICATION.body_bytes == exchange._CLOUD_LIMITS.body_bytes
    assert frames.body_bytes == payload.body_bytes
    assert limits == [
        BEFORE_AUTHENTICATION.head_bytes,
        frames.head_bytes,
        frames.body_bytes,
        BEFORE_AUTHENTICATION.body_bytes,
        payload.head_bytes,
        payload.raw_bytes,
        payload.arrays,
        payload.buffers,
        payload.dimensions,
        payload.levels,
        payload.containers,
        payload.hashed,
        payload.numbers,
        MOST_IN_RANGE,
        SIGNS_A_TICK,
        MAX_TASKS,
        MOST_SEQUENCE,
    ]
    assert payload.head_bytes + ITEM.size <= frames.head_bytes


def test_links_within_the_document_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) <= headings
