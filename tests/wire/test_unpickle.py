import io
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.errors import ProtocolError
from task_offload.wire import unpickle
from task_offload.wire.payload_limits import PayloadLimits

LIMITS = PayloadLimits()


def dumped(value: Any) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def load(data: bytes, limits: PayloadLimits = LIMITS) -> Any:
    return unpickle.loads(data, lambda pid: ("resolved", pid), limits)


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x05" + b"".join(parts) + b"."


hashable = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**2000), 2**2000) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=6,
)
plain = st.recursive(
    hashable | st.binary(max_size=300).map(bytearray) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_what_the_pickler_writes_of_plain_data_passes(value):
    assert load(dumped(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        list(range(5000)),
        [(float(i), i, str(i)) for i in range(4000)],
        {str(i): {"x": [i, -i, i << 40]} for i in range(3000)},
        ["long text" * 40] * 300,
        [b"", "x" * 63, "x" * 64, "x" * 255, "x" * 256, b"x" * 63, b"x" * 64, b"x" * 255, b"x" * 256],
        ["a" * 70_000, b"b" * 70_000, bytearray(70_000), "c", "d" * 200_000],
        [0, 255, 256, 65535, 65536, -1, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**63, 2**64, -(2**100), 2**2000],
        set(range(3000)),
        [[]] * 2000 + [{}] * 1001 + [set(), ()],
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_large_and_long_values_pass(value):
    # 64 KiB is where frames end, 1,000 where the items of a container are split.
    assert load(dumped(value)) == value


def test_persistent_ids_are_resolved():
    assert load(pickled(b"(K\x01QK\x02\x85Qt")) == (("resolved", 1), ("resolved", (2,)))


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("nothing", b""),
        ("two values", b"NN"),
        ("tuple of too few", b"N\x86"),
        ("mark alone", b"("),
        ("append to a tuple", b")Na"),
        ("append to a number", b"K\x01Na"),
        ("items of a tuple", b")(NNe"),
        ("set item of a list", b"]NNs"),
        ("odd number of dict items", b"}(NNNu"),
        ("members of a list", b"](N\x90"),
        ("stop within", b"N.N"),
        ("pop", b"NN0"),
        ("frozenset", b"(\x91"),
        ("duplicate", b"N2\x86"),
        ("memoize", b"]\x94"),
        ("put", b"]q\x00"),
        ("get", b"h\x00"),
        ("reduce", b")R"),
        ("build", b"]}b"),
        ("new object", b"))\x81"),
        ("stack global", b"\x8c\x02os\x8c\x06system\x93"),
        ("global", b"cos\nsystem\n"),
        ("instance", b"(ios\nsystem\n"),
        ("object", b"(o"),
        ("extension", b"\x82\x01"),
        ("text persistent id", b"P1\n"),
        ("out-of-band buffer", b"\x97"),
        ("read-only buffer", b"\x97\x98"),
        ("text number", b"I1\n"),
        ("text string", b"S'a'\n"),
        ("text unicode", b"Va\n"),
        ("protocol again", b"\x80\x05N"),
        ("number cut off", b"J\x00\x00"),
        ("float cut off", b"G\x00\x00"),
        ("text cut off", b"\x8c\x05ab"),
        ("long text cut off", b"\x8c\xffab"),
        ("long integer", b"\x8b\x01\x00\x00\x00\x01"),
        ("text longer than it needs to be", b"X\x01\x00\x00\x00a"),
        ("no opcode", b"\xff"),
        ("symbol of the proof", b"h"),
    ],
)
def test_what_is_not_one_value_in_the_allowed_opcodes_is_refused(name, program):
    with pytest.raises(ProtocolError):
        load(pickled(program))
    framed = pickled(b"\x95" + struct.pack("<Q", len(program) + 1), program)
    with pytest.raises(ProtocolError):
        load(framed)


@pytest.mark.parametrize("data", [b"", b".", b"\x80\x05", b"\x80\x04N.", b"\x80\x05N", b"N."])
def test_prefix_and_stop_are_required(data):
    with pytest.raises(ProtocolError):
        load(data)


@pytest.mark.parametrize("opcode", [b"\x8c", b"C", b"X", b"B", b"\x8d", b"\x8e", b"\x96", b"\x8a", b"\x8b", b"\x95"])
@pytest.mark.parametrize("length", [b"\x7f" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\xff\xff\xff\x7f" + bytes(4)])
def test_declared_lengths_are_compared_with_what_is_there(opcode, length):
    for program in (opcode + length, b"(" + opcode + length + b"abct", opcode + length + bytes(100)):
        with pytest.raises(ProtocolError):
            load(pickled(program))


def test_frames_may_not_cut_an_opcode():
    frame = b"\x95" + struct.pack("<Q", 4)
    with pytest.raises(ProtocolError):
        load(pickled(frame, b"K\x01K", frame, b"\x02\x86"))


@pytest.mark.parametrize("nest", [b"\x85", b"K\x01\x86", b"KKK\x01\x87"])
def test_nesting_is_bounded(nest):
    with pytest.raises(ProtocolError, match="nested deeper"):
        load(pickled(b"KK" if nest[:1] == b"K" else b")", nest * 60_000))


def test_nesting_by_marks_is_bounded():
    for opening, closing in [(b"(", b"t"), (b"](", b"e"), (b"}(N", b"u"), (b"]", b"a"), (b"", b"Q")]:
        few, many = 10, 200
        assert load(pickled(opening * few, b")", closing * few)) is not None
        with pytest.raises(ProtocolError, match="nested deeper"):
            load(pickled(opening * many, b")", closing * many))


def test_the_cost_of_the_proof_is_bounded():
    wide = b"(" + b"N" * 900_000
    assert load(pickled(wide, b")", b"\x85" * 5, b"t")) is not None
    with pytest.raises(ProtocolError, match="many values and deep"):
        load(pickled(wide, b")", b"\x85" * 30, b"t"))


def test_containers_are_bounded():
    limits = PayloadLimits(containers=100)
    assert len(load(pickled(b"(", b"\x8f" * 99, b"t"), limits)) == 99
    with pytest.raises(ProtocolError, match="containers"):
        load(pickled(b"(", b"\x8f" * 100, b"t"), limits)


@pytest.mark.parametrize(
    "keys",
    [
        [k * (2**61 - 1) for k in range(16, 3000)],
        [tuple(-1 - (n >> bit & 1) for bit in range(12)) for n in range(2048)],
        [(n * (2**61 - 1),) for n in range(2000)],
    ],
    ids=["numbers", "tuples", "tuples of numbers"],
)
@pytest.mark.parametrize("kind", [set, dict.fromkeys])
def test_keys_whose_hashes_a_peer_can_choose_are_bounded(keys, kind):
    with pytest.raises(ProtocolError, match="dict keys and set members"):
        load(dumped([kind(keys)]))
    assert load(dumped(keys)) == keys
    assert load(dumped(kind(keys[:500]))) == kind(keys[:500])


@pytest.mark.parametrize("last", [b"]Na", b"](Ne", b"}NNs", b"}(NNu", b"\x8f(N\x90", b")\x85", b"NQ", b"]N\x85\x85a"])
def test_keys_are_counted_whatever_stands_beside_them(last):
    keys = b"".join(b"K" + bytes([n % 256]) + b"M" + struct.pack("<H", n) + b"\x86" for n in range(600))
    pairs = b"".join(b"K" + bytes([n % 256]) + b"M" + struct.pack("<H", n) + b"\x86" + last for n in range(600))
    for program in (b"\x8f(" + keys + last + b"\x90", b"}(" + pairs + b"u", b"](" + b"}(" + pairs + b"u" + last + b"e"):
        with pytest.raises(ProtocolError, match="dict keys and set members"):
            unpickle.check(pickled(program), LIMITS)


def test_keys_of_common_kinds_are_not_bounded():
    value = {n: str(n) for n in range(30_000)} | {str(n): (n, n << 20) for n in range(30_000)}
    assert load(dumped(value)) == value


@pytest.mark.parametrize(
    "keys",
    [
        [n << 17 for n in range(1, 4098)],
        [-1 - n for n in range(4097)],
        [n / 3 for n in range(1, 4098)],
        [(1 << 40) + n for n in range(4097)],
    ],
    ids=["32 bits", "negative", "fractions", "64 bits"],
)
@pytest.mark.parametrize("kind", [set, dict.fromkeys])
def test_keys_whose_places_in_a_table_a_peer_can_choose_are_bounded(keys, kind):
    with pytest.raises(ProtocolError, match="numbers of over 16 bits"):
        load(dumped([kind(keys)]))
    with pytest.raises(ProtocolError, match="numbers of over 16 bits"):
        load(dumped([kind(keys[:2100]), ["text" * 100], kind(keys[2000:])]))
    assert load(dumped([kind(keys[1:]), kind(range(65536)), {0: keys}])) == [
        kind(keys[1:]), kind(range(65536)), {0: keys},
    ]  # fmt: skip


def test_unhashable_keys_are_refused():
    for program in (b"}]Ns", b"\x8f(]\x90", b"}\x96" + bytes(8) + b"Ns"):
        with pytest.raises(ProtocolError, match="does not load"):
            load(pickled(program))


@given(st.binary(max_size=200))
def test_bytes_of_anybody_give_a_value_or_a_protocol_error(data):
    try:
        load(pickled(data))
    except ProtocolError:
        return


allowed = st.sampled_from(
    [bytes([b]) for b in b"N\x88)]}\x8f(\x85\x86\x87taesu\x90\x91Q"] + [b"K\x07", b"\x8c\x01a", b"J\0\0\0\0", b"C\0"]
)


@given(st.lists(allowed, max_size=12).map(b"".join))
def test_what_the_proof_accepts_loads_or_has_an_unhashable_key(program):
    # The proof must be as strict as C's unpickler, which it protects.
    try:
        unpickle.check(pickled(program), LIMITS)
    except ProtocolError:
        return
    try:
        load(pickled(program))
    except ProtocolError as error:
        if "unhashable" not in str(error):
            raise
