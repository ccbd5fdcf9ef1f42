"""Payloads that no encoder makes. Each must cost its connection: a ProtocolError, at once, and nothing else."""

import copyreg
import io
import operator
import os
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum, Flag
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from task_offload.errors import ProtocolError
from task_offload.picture import Picture
from task_offload.wire import arrays, compression
from task_offload.wire.codec import Decoder, Encoder, PayloadLimits

RAW, JPEG = arrays.Encoding.RAW, arrays.Encoding.JPEG
ran: list[Any] = []


@dataclass
class Circle:
    x: float


class Colour(Enum):
    RED = 1
    BLUE = 2


class Options(Flag):
    A = 1
    B = 2


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Bytes(bytes):
    pass


class Slotted:
    __slots__ = ("x",)


class Table(dict):  # type: ignore[type-arg]
    pass


class Made:
    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return (Made, self.args)


TYPES = (Circle, Colour, Options, Text, Number, Bytes, Slotted, Table, Made)


class Run:
    """Runs code when a plain unpickler loads it."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, _: Any) -> Any:
        return self.reduced


def head_of(pickled: bytes, table: bytes = b"", count: int = 0, small: bytes = b"") -> bytes:
    return struct.pack("<II", count, len(small)) + table + small + pickled


def entry(
    encoding: int = RAW, place: int = 1, shape: tuple[int, ...] = (16,), dtype: bytes = b"|u1", size: int = 16,
    dimensions: int | None = None,
) -> bytes:  # fmt: skip
    count = len(shape) if dimensions is None else dimensions
    return struct.pack(f"<BBBBQ{len(shape)}Q", encoding, place, count, len(dtype), size, *shape) + dtype


def pickled(program: bytes) -> bytes:
    return b"\x80\x05" + program + b"."


def plain(value: Any) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


class _Pids(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if type(value) is Pid else None


class Pid:
    """A persistent id in a pickle."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid if len(pid) != 1 else pid[0]


def with_pids(value: Any) -> bytes:
    file = io.BytesIO()
    pickler = _Pids(file, 5)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


FIRST = pickled(b"K\x00Q\x85")


def refused(head: bytes, body: bytes | memoryview = b"", limits: PayloadLimits | None = None) -> str:
    """Decodes; checks that it is refused and leaves no memory behind. Gives the reason."""
    decoder = Decoder(TYPES, limits)
    memory = memoryview(bytearray(body))
    reason = _reason(decoder, head, memory)  # caches and imports come first
    tracemalloc.start()
    try:
        _reason(decoder, head, memory)
        left_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left_bytes < 50_000
    assert not ran
    return reason


def _reason(decoder: Decoder, head: bytes, body: memoryview) -> str:
    try:
        decoder.decode(head, body)
    except ProtocolError as error:
        return str(error)
    pytest.fail("it was decoded")


def peak_of_refusing(head: bytes, body: bytes | memoryview = b"") -> int:
    decoder, memory = Decoder(TYPES), memoryview(bytearray(body))
    _reason(decoder, head, memory)
    tracemalloc.start()
    try:
        _reason(decoder, head, memory)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- code -----------------------------------------------------------------------------------------------------

GADGETS = {
    "system": Run(os.system, ("true",)),
    "eval": Run(eval, ("ran.append(1)",)),
    "append": Run(ran.append, (1,)),
    "getattr": Run(getattr, (Circle, "__init__")),
    "reduce": Run(reduce, (max, [1, 2])),
    "reconstructor": Run(copyreg._reconstructor, (Circle, object, None)),  # type: ignore[attr-defined]
    "class": Circle,
    "function": ran.append,
    "object array": np.array([Run(eval, ("1",)), 2], dtype=object),
    "array": np.arange(3),
    "dtype": np.dtype("i4"),
    "number": np.float64(1),
    "ordered": OrderedDict(a=1),
    "deque": deque([1]),
    "instance": Circle(1.0),
    "member": Colour.RED,
    "picture": Picture(np.zeros((2, 2), np.uint8)),
    "error": ValueError("x"),
    "range": range(3),
    "partial": partial(eval, "ran.append(1)"),
    "getattr chain": Run(getattr, (Run(getattr, (Circle, "__init__")), "__globals__")),
    "method of a name": operator.methodcaller("system", "true"),
    "namespace": SimpleNamespace(x=1),
    "masked array": np.ma.array([1, 2], mask=[0, 1]),
    "records": np.zeros(2, [("a", "i4"), ("b", "O")]),
    "state that calls": Run(Circle, (1.0,), Run(eval, ("ran.append(1)",))),
    "items that call": Run(Table, (), None, None, iter([(Run(eval, ("ran.append(1)",)), 1)])),
    "key that calls": {Run(eval, ("ran.append(1)",)): 1},
    "deep in plain data": [{"a": ({"b": Run(eval, ("ran.append(1)",))},)}],
    "in an argument of an object": Circle(Run(eval, ("ran.append(1)",))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("protocol", range(6))
def test_no_gadget_gets_through(name, protocol):
    try:
        data = pickle.dumps((GADGETS[name],), protocol)
    except TypeError:  # slots before protocol 2
        data = pickle.dumps((GADGETS[name],), 5)
    refused(head_of(data))
    refused(head_of(b"\x80\x05" + data[2:]))


@pytest.mark.parametrize("names", [("builtins", "eval"), ("task_offload.wire.codec", "Decoder"), ("copyreg", "_x")])
def test_no_name_of_code_gets_through(names):
    module, name = (each.encode() for each in names)
    for program in (
        b"c" + module + b"\n" + name + b"\n",
        b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93",
        b"(i" + module + b"\n" + name + b"\n",
        b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00",
    ):  # fmt: skip
        refused(head_of(pickled(program + b"\x85")))


def test_no_memo_gets_through():
    bomb = b"]" + b"\x94" + b"(" + b"h\x00" * 10 + b"e"
    for program in (bomb, b"]q\x00h\x00\x86", b")r\xff\xff\xff\x7f", b"Np1000000000\n", b"N2\x86" * 40):
        refused(head_of(pickled(program)))


@pytest.mark.parametrize(
    "pid",
    [
        (), None, "0", 1.0, True, 0, 1, -1, 1 << 70, (5,), (-1, 0), (True, 0), ("0",), (0,), (0, 1), (0, -1), (0, "x"),
        (1, "<f8"), (1, "<f8", b"short"), (1, "O", bytes(8)), (1, "|O", bytes(8)), (1, "|V8", bytes(8)),
        (1, "i4,f8", bytes(12)), (1, "U", b"x"), (1, "<U1", bytes(4)), (1, b"<f8", bytes(8)), (1, "<f8", "x" * 8),
        (1, "\udcff", bytes(8)), (2, 1.0), (2, 1, 2), (2, "1", "2"), (4, [1]), (4, (1,)), (4, "x"), (4, {1}, {2}),
        (3,), (3, "Circle"), (3, "Nothing", ()), (3, "object", ()), (3, "Circle.__init__", ()), (3, 0, ()),
        (3, ["Circle"], ()), (3, "Circle", [1]), (3, "Circle", (1,)), (3, "Circle", (), 5), (3, "Circle", (), {1: 2}),
        (3, "Circle", (), None, [1]), (3, "Circle", (), None, None, {1: 2}), (3, "Circle", (), None, None, [(1, 2)]),
        (3, "Circle", (), {}, None, None, None), (3, "Circle", (), (None, {"__class__": 1})),
        (3, "Circle", (), (None, {"__dict__": {}})), (3, "Slotted", (), {"x": 1}), (3, "Slotted", (), (None, {"y": 1})),
        (3, "Slotted", (), (None, [1])), (3, "Colour", ()), (3, "Colour", (1,)), (3, "Colour", ("GREEN",)),
        (3, "Colour", ("RED",), {"_value_": 9}), (3, "Colour", ("RED",), (None, {"_value_": 9})),
        (3, "Colour", ("RED",), None, [1]), (3, "Options", (3,)), (3, "Options", (1 << 60,)),
        (3, "Number", ("9" * 5000,)), (3, "Number", (b"9",)), (3, "Bytes", (10**12,)), (3, "Text", (b"x", "rot13")),
        (3, "Table", (), None, None, [[1, 2]]), (3, "Table", (), None, None, {1: 2}, 3),
    ],
    ids=lambda pid: repr(pid)[:60],
)  # fmt: skip
def test_no_persistent_id_gives_more_than_encoders_make(pid):
    refused(head_of(with_pids((Pid(pid),))))
    assert Colour.RED.value == 1
    assert list(Colour) == [Colour.RED, Colour.BLUE]


def test_an_object_in_a_pickle_cannot_reach_what_is_shared():
    program = with_pids((Pid(3, "Colour", ("RED",)),))
    (member,) = Decoder(TYPES).decode(head_of(program), memoryview(b""))
    assert member is Colour.RED
    refused(head_of(program[:-2] + b"}\x8c\x01x\x8c\x01ysb\x85."))


def test_arguments_are_a_tuple():
    for value in ([1], {}, "x", None, 1):
        assert "tuple" in refused(head_of(plain(value)))


# --- time and memory --------------------------------------------------------------------------------------------


def test_hashes_of_nested_and_shared_structure_are_bounded():
    refused(head_of(pickled(b"}" + b")" + b"\x85" * 900_000 + b"Ns\x85")))
    refused(head_of(pickled(b"\x8f(" + b")" + b"\x85" * 100 + b"\x90\x85")))
    refused(head_of(plain(({k * (2**61 - 1) for k in range(16, 3000)},))))
    pairs = {k * (2**61 - 1): None for k in range(16, 3000)}
    refused(head_of(with_pids((Pid(3, "Table", (), None, None, pairs),))))


def test_many_containers_are_bounded():
    assert peak_of_refusing(head_of(pickled(b"(" + b"\x8f" * 1_000_000 + b"t"))) < 10 << 20


def test_numbers_of_a_million_digits_are_refused():
    value = 10**1_000_000
    data = plain((value,))
    assert b"\x8b" in data[:20]
    assert peak_of_refusing(head_of(data)) < 3 << 20


@pytest.mark.parametrize("opcode", [b"\x8b", b"\x8d", b"\x8e", b"\x96", b"X", b"B", b"T", b"\x95", b"r", b"j"])
@pytest.mark.parametrize("length", [1 << 20, 1 << 30, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_declared_lengths_allocate_nothing(opcode, length):
    program = opcode + struct.pack("<Q", length) + b"x" * 20
    assert peak_of_refusing(head_of(pickled(program))) < 100_000


def test_heads_and_bodies_are_limited():
    limits = PayloadLimits(head_bytes=1000, body_bytes=1000)
    assert "limits" in refused(head_of(plain(("x" * 2000,))), limits=limits)
    assert "limits" in refused(head_of(plain((1,))), bytes(2000), limits)


# --- array table -------------------------------------------------------------------------------------------------


def test_the_table_used_here_is_right():
    decoder = Decoder()
    (array,) = decoder.decode(head_of(FIRST, entry(), 1), memoryview(bytearray(64)))
    assert array.tolist() == [0] * 16


@pytest.mark.parametrize(
    "table",
    [
        entry(shape=(17,)), entry(shape=(15,)), entry(size=15), entry(size=17), entry(size=0), entry(size=64),
        entry(size=1 << 20, shape=(1 << 20,)), entry(size=(1 << 64) - 1, shape=((1 << 64) - 1,)),
        entry(size=(1 << 64) - 16), entry(shape=(1 << 32, 1 << 32), size=0), entry(shape=(1 << 62, 4), size=0),
        entry(shape=((1 << 64) - 16,)), entry(shape=(0, 1 << 63), size=0), entry(shape=(0,) + (1 << 16,) * 4, size=0),
        entry(shape=(1,) * 33, size=1), entry(shape=(1,) * 64 + (16,)), entry(dimensions=255), entry(dimensions=2),
        entry(place=2), entry(place=255), entry(place=0), entry(encoding=8), entry(encoding=255),
        entry(dtype=b"O"), entry(dtype=b"|O"), entry(dtype=b"|O8", shape=(2,)), entry(dtype=b"|V16", shape=(1,)),
        entry(dtype=b"|V0"), entry(dtype=b"<U0", shape=(1 << 60,), size=0), entry(dtype=b"|S0", size=0),
        entry(dtype=b"<U4294967296"), entry(dtype=b"<U999999999", shape=(1,)), entry(dtype=b"S16", shape=(1,)),
        entry(dtype=b"<f16", shape=(1,)), entry(dtype=b"=i4", shape=(4,)), entry(dtype=b"i4", shape=(4,)),
        entry(dtype=b"<i3"), entry(dtype=b"<i4,<f4", shape=(2,)), entry(dtype=b"(2,)<i4", shape=(2,)),
        entry(dtype=b"<M8[x]", shape=(2,)), entry(dtype=b"<i8[ns]", shape=(2,)), entry(dtype=b"<M8[999999999Y]"),
        entry(dtype=b"<M8[0s]", shape=(2,)), entry(dtype=b""), entry(dtype=b"\xff\xfe\xfd"), entry(dtype=b"|u1\x00"),
        entry(dtype=b"|T16", shape=(1,)), entry(dtype=b"[('a', 'O')]"), entry(dtype=b"{}"), entry(dtype=b"<u1"),
        entry(dtype=b"{'names':['a','b'],'formats':['<i4','<i4'],'offsets':[0,2]}", shape=(2,)),
        entry(dtype=b"[('a','<i4'),('b','<i4')]", shape=(2,)), entry(dtype=b"V8,V8", shape=(1,)),
        entry(dtype=b"|S-1"), entry(dtype=b"<i-8", shape=(2,)), entry(dtype=b"object", shape=(2,)),
        entry(dtype=b"|b1\n"), entry(dtype=b"\xd9\xa3"), entry()[:-1], entry()[:5], b"",
    ],
    ids=lambda table: table.hex()[:50],
)  # fmt: skip
def test_tables_that_do_not_match_are_refused(table):
    for body in (bytes(64), bytes(16), b""):
        if table == entry() or (table == entry(size=64, shape=(64,)) and body):
            continue
        refused(head_of(FIRST, table, 1), body)


def test_no_array_overlaps_another():
    # There are no offsets: each array begins where the one before ended.
    refused(head_of(FIRST, entry() * 2, 2), bytes(64))
    refused(head_of(FIRST, entry(place=0) * 2, 2, bytes(16)))
    refused(head_of(FIRST, entry(), 1), bytes(128))
    refused(head_of(FIRST, entry(place=0), 1, bytes(24)))


@pytest.mark.parametrize("count", [1, 2, 16_384, 16_385, 1 << 31, (1 << 32) - 1])
def test_counts_are_compared_with_what_is_there(count):
    refused(struct.pack("<II", count, 0) + FIRST)
    refused(struct.pack("<II", 0, count) + b"x")


def test_all_arrays_together_are_limited():
    limits = PayloadLimits(raw_bytes=100)
    small = entry(place=0, size=64, shape=(64,))
    assert "over" in refused(head_of(FIRST, small * 2, 2, bytes(128)), limits=limits)


def test_an_array_that_did_not_come_is_not_made():
    for index in (b"K\x01", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x8a\x08" + b"\x7f" * 8):
        refused(head_of(pickled(index + b"Q\x85"), entry(), 1), bytes(64))


def test_many_heads_of_one_peer_take_no_memory_and_no_place():
    """A decoder keeps what the heads of arrays alone mean, for all devices."""
    decoder = Decoder()
    tracemalloc.start()
    try:
        for extra in range(20):
            count = 1000 + extra
            pids = with_pids(tuple(Pid(number) for number in range(count)))
            table = entry(shape=(64,), size=64) * count
            assert len(decoder.decode(head_of(pids, table, count), memoryview(bytearray(64 * count)))) == count
        left_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left_bytes < 1 << 20
    for size in range(1, 100):
        decoder.decode(head_of(FIRST, entry(shape=(size,), size=size), 1), memoryview(bytearray(64 * -(-size // 64))))
    assert head_of(FIRST, entry(shape=(99,), size=99), 1) in decoder._plain
    assert len(decoder._plain) <= 64


# --- bombs -------------------------------------------------------------------------------------------------------


def compressed_head(
    encoding: int, data: bytes, shape: tuple[int, ...], dtype: bytes = b"|u1"
) -> tuple[bytes, memoryview]:
    table = entry(encoding, 1, shape, dtype, len(data))
    return head_of(FIRST, table, 1), memoryview(bytearray(data + bytes(-len(data) % 64)))


def jpeg(height: int = 40, width: int = 60, grey: bool = False) -> bytes:
    image = np.zeros((height, width) if grey else (height, width, 3), np.uint8)
    return bytes(arrays.encode_jpeg(image, 90))


def declare(data: bytes, height: int, width: int) -> bytes:
    """Changes the dimensions that a JPEG declares."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_jpeg_is_decoded_only_in_the_shape_of_its_table():
    assert Decoder().decode(*compressed_head(JPEG, jpeg(), (40, 60, 3)))[0].shape == (40, 60, 3)
    good = jpeg()
    for data, shape in [
        (good, (60, 40, 3)), (good, (40, 60)), (good, (40, 60, 1)), (good, (40, 60, 4)), (good, ()),
        (jpeg(grey=True), (40, 60, 3)), (good, (4000, 6000, 3)), (declare(good, 65_500, 65_500), (40, 60, 3)),
        (declare(good, 0, 0), (0, 0, 3)), (declare(good, 0, 60), (0, 60, 3)), (good[:-2], (40, 60, 3)),
        (good[:100], (40, 60, 3)), (b"", (40, 60, 3)), (good.replace(b"\xff\xc0", b"\xff\xc2"), (40, 60, 3)),
        (good[2:], (40, 60, 3)), (b"\x89PNG\r\n\x1a\n" + good, (40, 60, 3)), (b"BM" + good, (40, 60, 3)),
        (good[:2] + b"\xff\xe1\x00\x08Exif\x00\x00" + good[2:], (40, 60, 3)),
    ]:  # fmt: skip
        refused(*compressed_head(JPEG, data, shape))
    refused(*compressed_head(JPEG, good, (40, 60, 3), b"|i1"))


def test_a_jpeg_bomb_allocates_nothing():
    bomb = declare(jpeg(), 65_500, 65_500)
    for shape in ((65_500, 65_500, 3), (40, 60, 3)):
        assert peak_of_refusing(*compressed_head(JPEG, bomb, shape)) < 1 << 20


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, 2 + len(content)) + content


def test_a_jpeg_has_one_scan():
    """Ten bytes more are a pass over all of a picture more, and a body has room for six million of them."""
    good = jpeg()
    tables, scan = good[: good.index(b"\xff\xda")], good[good.index(b"\xff\xda") : -2]
    alone = [segment(0xDA, bytes([1, number, 0x11 if number > 1 else 0, 0, 63, 0])) for number in (1, 2, 3)]
    second_size = segment(0xC0, struct.pack(">BHHB", 8, 40, 60, 3) + bytes([1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]))
    for data in (
        tables + b"".join(alone) + b"\xff\xd9",
        tables + alone[0] + b"\xff\xd9",
        tables + scan + b"".join(alone * 100) + b"\xff\xd9",
        tables + scan + scan + b"\xff\xd9",
        tables + scan + b"\xff\xd9" + scan + b"\xff\xd9",
        tables + second_size + scan + b"\xff\xd9",
        tables + segment(0xE1, b"Exif\0\0") + scan + b"\xff\xd9",
        tables + segment(0xFE, b"a comment") + scan + b"\xff\xd9",
        tables + scan + segment(0xDC, b"\x10\x00") + b"\xff\xd9",  # another number of lines
        tables + segment(0xDB, bytes(4000)) + scan + b"\xff\xd9",
    ):
        refused(*compressed_head(JPEG, data, (40, 60, 3)))
    for data in (tables + scan + b"\xff\xd0" * 100 + b"\xff\xd9", tables + segment(0xDD, b"\0\1") + scan + b"\xff\xd9"):
        assert Decoder().decode(*compressed_head(JPEG, data, (40, 60, 3)))[0].shape == (40, 60, 3)


@pytest.mark.parametrize("name", [each for each in compression.available_codecs() if each != "none"])
def test_narrow_images_take_few_steps_in_python(name):
    """64 million rows of one byte are two kilobytes on the wire."""
    encoding = {"lz4": arrays.Encoding.LZ4_DIFF, "zstd": arrays.Encoding.ZSTD_DIFF}[name]
    image = np.arange(200_000 * 3, dtype=np.uint8).reshape(200_000, 3)
    head, body = compressed_head(encoding, bytes(compression.encode(image, encoding)), image.shape)
    decoder = Decoder()
    lines = 0

    def count(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        (found,) = decoder.decode(head, body)
    finally:
        sys.settrace(before)
    assert (found == image).all()
    assert lines < 5_000


@pytest.mark.parametrize("name", [each for each in compression.available_codecs() if each != "none"])
def test_compressed_bombs_allocate_what_the_table_says_at_most(name):
    huge = np.zeros((1000, 1000, 3), np.uint8)
    payload = Encoder(codec=name).encode((huge,))
    assert payload.size_bytes < 100_000
    encodings = [each for each in arrays.Encoding if each.name.startswith(name[:3].upper())]
    for encoding in encodings:
        data = bytes(compression.encode(huge, encoding))
        for shape in ((40, 60, 3), (1001, 1000, 3), (999, 1000, 3)):
            assert peak_of_refusing(*compressed_head(encoding, data, shape)) < 10 << 20
        assert peak_of_refusing(*compressed_head(encoding, data, (40, 60, 3))) < 1 << 20
        for bad in (data[:-1], data[: len(data) // 2], b"", b"\x00" * 100, b"\xff" * 100, data[1:]):
            refused(*compressed_head(encoding, bad, huge.shape))
        for shape, dtype in (((1 << 20, 1 << 20, 3), b"|u1"), ((0, 1, 3), b"|u1")):
            refused(*compressed_head(encoding, data, shape, dtype))
    for encoding in encodings[1:]:
        refused(*compressed_head(encoding, b"x" * 50, (1000, 3), b"<u4"))
        refused(*compressed_head(encoding, b"x" * 50, (1000,)))


def test_a_zstd_window_is_bounded():
    if "zstd" not in compression.available_codecs():
        pytest.skip("zstandard is not installed")
    magic = struct.pack("<I", 0xFD2FB528)
    for window in (0xF8, 0xFF):  # descriptors of windows of terabytes; no content size declared
        frame = magic + bytes([0x00, window]) + b"\x01\x00\x00"
        assert peak_of_refusing(*compressed_head(arrays.Encoding.ZSTD, frame, (100,))) < 1 << 20
    lying = magic + bytes([0xE0]) + struct.pack("<Q", 1 << 50) + b"\x01\x00\x00"  # one segment of a petabyte
    assert peak_of_refusing(*compressed_head(arrays.Encoding.ZSTD, lying, (100,))) < 1 << 20
