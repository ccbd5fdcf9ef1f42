import decimal
import gc
import weakref
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, Flag, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from task_offload.errors import ConfigError, PayloadError
from task_offload.picture import Picture
from task_offload.wire import compression
from task_offload.wire.codec import Decoder, Encoder, Payload, PayloadLimits, decompressed
from task_offload.wire.memory import MemoryPool


def body_of(payload: Payload) -> memoryview:
    return memoryview(bytearray(b"".join(bytes(each) + bytes(-len(each) % 64) for each in payload.buffers)))


def there_and_back(args: tuple[Any, ...], types: tuple[type, ...] = (), **options: Any) -> tuple[Any, ...]:
    payload = Encoder(types, **options).encode(args)
    body = body_of(payload)
    assert payload.size_bytes == len(payload.head) + len(body)
    return Decoder(types).decode(payload.head, body)


def frame(height: int = 281, width: int = 500, noise_levels: int = 6) -> Any:
    """Something like an image: smooth, with noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(1).integers(0, noise_levels, (height, width, 3))
    return (np.stack([x // 4 + y // 8, x // 4 + y // 3, x // 3], axis=2) % 250 + noise).astype(np.uint8)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


# --- what travels ---------------------------------------------------------------------------------------------


GOLDEN = {
    "nothing": ((), "0000000000000000 8005292e"),
    "circle": (
        (1.5, (2, -3), "ball", None, True, b"\x00"),
        "0000000000000000 8005951f00000000000000 28473ff8000000000000 4b024afdffffff86 8c0462616c6c 4e 88 430100 74 2e",
    ),
    "array": (
        (np.array([[1, -2, 3]], "<i2"),),
        "01000000 08000000 00000203 0600000000000000 0100000000000000 0300000000000000 3c6932 0100feff03000000"
        "8005950500000000000000 4b005185 2e",
    ),
    "scalar": (
        (np.float32(1), 2j),
        "0000000000000000 80059527000000000000004b01 8c033c6634 43040000803f 87 51"
        "4b02 470000000000000000 474000000000000000 87 51 86 2e",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_fixed_bytes_under_every_version(name):
    args, expected = GOLDEN[name]
    payload = Encoder().encode(args)
    assert payload.head.hex() == expected.replace(" ", "")
    assert payload.buffers == ()
    assert all(map(same, args, Decoder().decode(bytes.fromhex(expected), memoryview(b""))))


def test_large_arrays_travel_as_their_own_memory():
    image = frame()
    payload = Encoder().encode((image, 1.0))
    assert payload.head.hex() == (
        "0100000000000000" "00010303" "7c6e060000000000" "1901000000000000" "f401000000000000" "0300000000000000"
        "7c7531" "8005950e00000000000000" "4b0051" "473ff0000000000000" "86" "2e"
    )  # fmt: skip
    (buffer,) = payload.buffers
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), image)
    body = MemoryPool(0).take(421_504)
    body[:421_500] = buffer
    decoded, _ = Decoder().decode(payload.head, body)
    assert np.shares_memory(decoded, np.frombuffer(body, np.uint8))
    assert np.array_equal(decoded, image)


dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.unicode_string_dtypes(endianness="?", min_len=1),
    hnp.byte_string_dtypes(min_len=1),
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8))


@given(arrays, st.booleans())
def test_arrays_of_every_kind_come_back(array, in_body):
    if in_body:  # over the size that is sent with the head
        array = np.broadcast_to(array, (1 + 8192 // max(1, array.nbytes), *array.shape))
    (decoded,) = there_and_back((array,))
    assert same(np.ascontiguousarray(array) if array.ndim else array, decoded)
    assert decoded.flags.writeable


@given(hnp.arrays(hnp.scalar_dtypes(), ()).map(lambda array: array[()]))
def test_numpy_scalars_come_back_as_numpy_scalars_or_are_refused(scalar):
    if scalar.dtype.itemsize > (16 if scalar.dtype.kind == "c" else 8):
        with pytest.raises(PayloadError, match="cannot travel"):
            Encoder().encode((scalar,))
        return
    (decoded,) = there_and_back((scalar,))
    assert decoded.dtype == scalar.dtype.newbyteorder("<")
    assert decoded.tobytes() == scalar.astype(decoded.dtype).tobytes()


def test_text_scalars_come_back():
    args = (np.str_("ball"), np.str_(""), np.bytes_(b"ball"), np.bool_(True))
    assert all(map(same, args, there_and_back(args)))


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::2],
        lambda image: image[:, ::-1],
        lambda image: image.transpose(2, 0, 1),
        lambda image: np.asfortranarray(image),
        lambda image: np.broadcast_to(image[:1], image.shape),
        lambda image: image[:3, 10:20],
        lambda image: image[..., 0],
        lambda image: image[:0],
        lambda image: image[0, 0, 0].reshape(()),
    ],
)
@pytest.mark.parametrize("codec", compression.available_codecs())
def test_arrays_that_are_not_contiguous_are_copied(view, codec):
    array = view(frame())
    (decoded,) = there_and_back((array,), codec=codec)
    assert np.array_equal(decoded, array)
    assert decoded.shape == array.shape


@pytest.mark.parametrize("size", [3, 100_000])
def test_one_array_passed_twice_is_sent_once_and_stays_one(size):
    array = np.arange(size)
    payload = Encoder().encode((array, [array], {"again": array}))
    assert len(payload.head) + sum(map(len, payload.buffers)) < array.nbytes + 200
    a, (b,), rest = Decoder().decode(payload.head, body_of(payload))
    assert a is b is rest["again"]
    c, d = there_and_back((array, array.copy()))
    assert not np.shares_memory(c, d)


def test_small_arrays_do_not_share_memory_with_each_other():
    decoded = there_and_back(tuple(np.full(n, n, np.uint8) for n in range(1, 20)))
    for each in decoded:
        each += 1
    assert [each.tolist() for each in decoded] == [[n + 1] * n for n in range(1, 20)]


def test_many_small_arrays_overflow_into_the_body():
    args = tuple(np.full(500, n) for n in range(100))
    payload = Encoder().encode(args)
    assert len(payload.head) < 300_000
    assert payload.buffers
    assert all(map(same, args, Decoder().decode(payload.head, body_of(payload))))


def test_read_only_bodies_are_copied():
    payload = Encoder().encode((frame(),))
    (decoded,) = Decoder().decode(memoryview(payload.head), body_of(payload).toreadonly())
    decoded[:] = 0
    assert np.array_equal(decoded, np.zeros_like(frame()))


def test_arrays_keep_the_body_alive():
    pool = MemoryPool(1 << 20)
    payload = Encoder().encode((frame(),))
    body = pool.take(421_504)
    body[:421_500] = payload.buffers[0]
    (decoded,) = Decoder().decode(payload.head, body)
    del body
    assert pool.free_bytes == 0
    part = decoded[10:20, ::2].view(np.int8)
    del decoded
    assert pool.free_bytes == 0
    del part
    assert pool.free_bytes >= 421_504


def test_the_encoder_keeps_nothing_of_an_item():
    encoder = Encoder(codec=compression.available_codecs()[-1])
    array = np.arange(10_000)
    gone = weakref.ref(array)
    encoder.encode((array, Picture(frame())))
    del array
    gc.collect()
    assert gone() is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**2000), 2**2000) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(plain | st.frozensets(st.integers()) | st.complex_numbers(allow_nan=False), max_size=4).map(tuple))
def test_plain_data_comes_back(args):
    assert there_and_back(args) == args


def test_more_frozensets_than_the_pickler_can_count_come_back():
    args = ({frozenset({n}): frozenset({(n, frozenset())}) for n in range(200)},)
    assert there_and_back(args) == args


# --- objects --------------------------------------------------------------------------------------------------


class Colour(Enum):
    GREEN = 1
    BLUE = "b"


class Level(IntEnum):
    LOW = 1


class Options(Flag):
    A = 1
    B = 2


@dataclass
class Circle:
    x: float
    hits: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: Any


@dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = None


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Any


class Named(NamedTuple):
    a: Any
    b: Any


class Base:
    def __init__(self, a: Any) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class WithState(Base):
    def __getstate__(self) -> Any:
        return ("state", self.a)

    def __setstate__(self, state: Any) -> None:
        assert state[0] == "state"
        self.a = state[1]


class WithReduce(Base):
    def __reduce__(self) -> Any:
        return (WithReduce, (self.a,))


class Numbers(list):  # type: ignore[type-arg]
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


class Metres(float):
    pass


class Code(bytes):
    pass


OBJECTS = [
    Colour.GREEN, Colour.BLUE, Level.LOW, Options.B, Circle(1.5, [Circle(2.0)]), Frozen((1, Named(2, [3]))),
    Slotted(1), FrozenSlotted({"k": Frozen(None)}), Named(1, (2,)), Base([1]), WithState(7), WithReduce("x"),
    Numbers([1, 2]), Table(a=1, b=[2]), Metres(1.5), Code(b"ab"), decimal.Decimal("1.50"), datetime(2026, 1, 2, 3),
    OrderedDict(b=1, a=2), Counter("abca"),
]  # fmt: skip
TYPES = tuple({type(each): None for each in OBJECTS})


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_objects_of_payload_types_come_back(value):
    (decoded,) = there_and_back((value,), TYPES)
    assert same(value, decoded)


def test_objects_hold_arrays():
    circle = Circle(1.0, [np.arange(2000.0), np.arange(2)])
    (decoded, big) = there_and_back((circle, circle.hits[0]), TYPES)
    assert all(map(same, circle.hits, decoded.hits))
    assert decoded.hits[0] is big


def test_enum_members_stay_themselves():
    assert there_and_back((Colour.BLUE,), TYPES)[0] is Colour.BLUE


class Elsewhere:
    def __reduce__(self) -> Any:
        return (print, ("never",))


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> Any:
    value: Any = ()
    for _ in range(100_000):
        value = (value,)
    return value


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (Circle(1.0), r"payload_types = \(Circle,\)"),
        (print, "pass data"),
        (Circle, "pass data"),
        (lambda: 0, "pass data"),
        (np.zeros(2, object), "array of numbers"),
        (np.zeros(2, [("a", "i4"), ("b", "f8")]), "each field"),
        (np.zeros(2, "V4"), "astype"),
        (np.ma.zeros(3), "np.asarray"),
        (cyclic(), "contain themselves"),
        (deep(), "nested"),
        (1 << 5000, "cannot travel"),
        ({(n,): n for n in range(5000)}, "dict keys"),
        ([[] for _ in range(70_000)], "containers"),
        (b"x" * (1 << 20), "limits"),
        (np.broadcast_to(np.uint8(0), (65 << 20,)), "over"),
        ([np.zeros(5000, np.uint8) for _ in range(65)], "np.concatenate"),
        (np.broadcast_to(np.uint8(0), (1 << 40,)), "over"),
        (np.zeros((0, 1 << 32)), "over"),
    ],
    ids=lambda value: value if type(value) is str else type(value).__name__,
)
def test_what_cannot_travel_says_what_to_do(value, advice):
    encoder = Encoder()
    with pytest.raises(PayloadError, match=advice):
        encoder.encode((value,))
    assert encoder.encode((1,)).head


@pytest.mark.parametrize(("value", "advice"), [(Elsewhere(), "made by print"), (Options.A | Options.B, r"\.value")])
def test_objects_that_cannot_be_described_are_refused(value, advice):
    with pytest.raises(PayloadError, match=advice):
        Encoder((Elsewhere, Options)).encode((value,))


def test_an_error_of_an_object_costs_the_item_alone():
    class Broken:
        def __reduce__(self) -> Any:
            raise OSError("no")

    with pytest.raises(PayloadError, match="OSError: no"):
        Encoder((Broken,)).encode((Broken(),))


# --- pictures and codecs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [frame(), frame()[..., 1]], ids=["colour", "grey"])
def test_pictures_travel_as_jpeg(image):
    payload = Encoder().encode((Picture(image), 1.0))
    assert payload.size_bytes < image.nbytes / 2
    picture, _ = Decoder().decode(payload.head, body_of(payload))
    assert type(picture) is Picture
    assert picture.image.shape == image.shape
    assert np.abs(picture.image.astype(int) - image).mean() < 3
    assert picture.image.flags.writeable


def test_quality_sets_the_size():
    sizes = [Encoder(picture_quality=quality).encode((Picture(frame()),)).size_bytes for quality in (30, 90, 0)]
    assert sizes == sorted(sizes)
    assert sizes[2] > frame().nbytes


@pytest.mark.parametrize(
    "image",
    [frame().astype(np.float32), frame()[:0], frame()[..., :2], np.zeros((2, 2, 2, 3), np.uint8), np.zeros(5000)],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_pictures_of_other_kinds_travel_lossless(image):
    (picture,) = there_and_back((Picture(image),))
    assert same(picture.image, image)


def test_a_picture_that_is_an_argument_too_travels_once_and_lossless():
    image = frame()
    for args in ((Picture(image), image), (image, Picture(image))):
        a, b = (each.image if type(each) is Picture else each for each in there_and_back(args))
        assert a is b
        assert np.array_equal(a, image)


@pytest.mark.parametrize("codec", compression.available_codecs())
def test_lossless_codecs_give_the_same_arrays(codec):
    mask = np.zeros((281, 500), np.uint8)
    mask[100:120, 50:90] = 255
    noise = np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    args = (frame(), mask, noise, np.arange(70_000.0), np.arange(700_000, dtype=">u4").reshape(7, -1), frame(17, 300))
    encoder, decoder = Encoder(codec=codec), Decoder()
    for _ in range(3):
        payload = encoder.encode(args)
        assert all(map(same, args, decoder.decode(payload.head, body_of(payload))))
    small = encoder.encode((mask,)).size_bytes
    assert (small < mask.nbytes / 50) == (codec != "none")
    assert encoder.encode((noise,)).size_bytes < noise.nbytes + 200


@pytest.mark.parametrize("codec", compression.available_codecs()[1:])
@pytest.mark.parametrize("spooled", [False, True], ids=["from memory", "from disk"])
def test_what_a_cloud_cannot_decode_is_decompressed_and_nothing_else(codec, spooled):
    lacking = compression.encodings_beside([name for name in compression.available_codecs() if name != codec])
    image = frame()
    args = (Picture(image), image[::2].copy(), np.zeros((281, 500), np.uint8), np.arange(300.0), {"n": [1, image[0]]})
    sent = Encoder(codec=codec).encode(args)
    body = body_of(sent)
    if spooled:
        sent = Payload(sent.head, (body,), sent.size_bytes)
    found = decompressed(sent, lacking)
    assert found == Encoder(codec="none").encode(args)
    assert decompressed(found, lacking) is found
    assert decompressed(sent, compression.encodings_beside([codec])) is sent


def test_what_this_machine_cannot_decompress_either_goes_as_it_is(monkeypatch):
    if "lz4" not in compression.available_codecs():
        pytest.skip("lz4 is not installed")
    sent = Encoder(codec="lz4").encode((np.zeros((281, 500), np.uint8),))

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(compression.importlib, "import_module", missing)
    for payload in (sent, Payload(sent.head[:20], sent.buffers, 0), Payload(b"", (), 0)):
        assert decompressed(payload, compression.encodings_beside(["none"])) is payload


@pytest.mark.parametrize("codec", compression.available_codecs()[1:])
def test_filters_shrink_images_more(codec):
    image = frame(noise_levels=2)
    plain, diff, green = (len(compression.encode(image, each)) for each in compression._ENCODINGS[codec])
    assert diff < 0.9 * plain
    assert Encoder(codec=codec).encode((image,)).size_bytes < 1.1 * min(diff, green)


def test_arrays_that_change_their_kind_are_sampled_again():
    if "zstd" not in compression.available_codecs():
        pytest.skip("zstandard is not installed")
    noise = np.random.default_rng(3).integers(0, 256, (100, 100), dtype=np.uint8)
    flat = np.zeros_like(noise)
    encoder = Encoder(codec="zstd")
    assert encoder.encode((noise,)).size_bytes > noise.nbytes
    sizes = [encoder.encode((flat,)).size_bytes for _ in range(70)]
    assert sizes[-1] < 200
    assert encoder.encode((noise,)).size_bytes < noise.nbytes + 200


def test_jpeg_as_a_codec_is_for_images_alone():
    mask = np.tile(np.array([[0, 255]], np.uint8), (200, 100))
    args = (frame(), mask, np.arange(5000.0))
    decoded = there_and_back(args, codec="jpeg:80")
    assert not np.array_equal(decoded[0], args[0])
    assert all(map(same, args[1:], decoded[1:]))


def test_a_codec_may_be_chosen_for_one_item():
    encoder = Encoder()
    assert encoder.encode((frame(),), codec="jpeg:50").size_bytes < encoder.encode((frame(),)).size_bytes / 4
    assert encoder.encode((frame(),)).size_bytes > frame().nbytes


@pytest.mark.parametrize(
    "codec", ["", "zip", "jpeg", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:x", "zstd+", "none:1", "auto"]
)
def test_unknown_codecs_are_refused(codec):
    with pytest.raises(ConfigError, match="choose none"):
        Encoder(codec=codec)


def test_a_codec_without_its_package_says_what_to_install(monkeypatch):
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(compression.importlib, "import_module", missing)
    assert compression.available_codecs() == ("none",)
    with pytest.raises(ConfigError, match="pip install zstandard"):
        Encoder(codec="zstd")


DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("clip", ["hand_and_green_ball.mp4", "cars_from_above.mp4"])
@pytest.mark.parametrize("codec", compression.available_codecs()[1:])
def test_real_frames_come_back(clip, codec):
    if not (DATA / clip).exists():
        pytest.skip("the shared footage is not here")
    import cv2

    capture = cv2.VideoCapture(str(DATA / clip))
    encoder, decoder = Encoder(codec=codec), Decoder()
    for _ in range(5):
        ok, image = capture.read()
        assert ok
        payload = encoder.encode((image,))
        assert payload.size_bytes < image.nbytes
        assert np.array_equal(decoder.decode(payload.head, body_of(payload))[0], image)
    capture.release()


def test_limits_are_kept_by_both_sides():
    limits = PayloadLimits(body_bytes=1000)
    with pytest.raises(PayloadError):
        Encoder(limits=limits).encode((frame(),))
