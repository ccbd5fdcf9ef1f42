"""Codecs: how arrays travel smaller, without loss unless the user asked for it. In: `--codec`. Out: what it does.

An image hardly shrinks as it is, and well as differences: each row less the row above (`diff`), of the planes green,
blue less green, red less green (`green`), all modulo 256. What the eye sees as a change of brightness alone is then
in one plane only. Which filter serves an array best, or none, is tried on a sample of it, now and then, and
remembered by its place among the arguments.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from task_offload.errors import ConfigError, PayloadError, ProtocolError
from task_offload.wire.arrays import Array, Encoding, Shape, encode_jpeg, flat_bytes, jpeg_fits, opencv

Encoded = tuple[Encoding, "bytes | memoryview"]
Compress = Callable[[Array, int], "Encoded | None"]
"""Takes an array and its place among the arguments; None means that it travels as it is."""
Decode = Callable[[memoryview, Shape, "np.dtype[Any]"], Array]

_ENCODINGS = {
    "lz4": (Encoding.LZ4, Encoding.LZ4_DIFF, Encoding.LZ4_GREEN),
    "zstd": (Encoding.ZSTD, Encoding.ZSTD_DIFF, Encoding.ZSTD_GREEN),
}
_PACKAGES = {"lz4": ("lz4.block", "lz4"), "zstd": ("zstandard", "zstandard")}

_SAMPLE_BYTES = 64 * 1024
_ITEMS_BETWEEN_SAMPLES = 64  # a sample costs about as much as encoding one frame
_WORTH_IT = 0.9  # of the size; less gain does not pay for the decoding
_CHOICES = 1024
_ZSTD_LEVEL = 1  # level 3 doubles the time for a tenth of the size
_ZSTD_WINDOW_BYTES = 8 << 20


def available_codecs() -> tuple[str, ...]:
    """The lossless codecs that this machine has, "none" first."""
    names = ["none"]
    for name in _ENCODINGS:
        try:
            _require(name)
        except ConfigError:
            continue
        names.append(name)
    return tuple(names)


def encodings_beside(codecs: Collection[str]) -> frozenset[Encoding]:
    """The encodings that a machine with these lossless codecs lacks."""
    return frozenset(each for name, encodings in _ENCODINGS.items() if name not in codecs for each in encodings)


class Compressions:
    """The codecs of one stream of items, with what was learned of its arrays. Threads may share it."""

    def __init__(self) -> None:
        self._by_name: dict[str, Compress | None] = {"none": None}

    def of(self, codec: str) -> Compress | None:
        """What a codec, as `--codec` names it, does with an array; None for nothing.

        Raises:
            ConfigError: there is no such codec, or its package is not installed.
        """
        try:
            return self._by_name[codec]
        except KeyError:
            found = self._by_name[codec] = _compress(codec)
            return found


def _compress(codec: str) -> Compress:
    encodings = _ENCODINGS.get(codec)
    if encodings is not None:
        _require(codec)
        return _Lossless(encodings)
    name, _, quality = codec.partition(":")
    if name == "jpeg" and quality.isascii() and quality.isdecimal() and 1 <= int(quality) <= 100:
        return partial(_as_jpeg, int(quality))
    raise ConfigError(f"codec {codec!r} is unknown; choose none, {', '.join(_ENCODINGS)} or jpeg:QUALITY (1 to 100)")


def _require(codec: str) -> None:
    module, package = _PACKAGES[codec]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"codec {codec} needs a package that is not installed; pip install {package}") from error


def _as_jpeg(quality: int, array: Array, _: int) -> Encoded | None:
    # A grey array is rather a mask, whose exact values count.
    if array.ndim != 3 or not jpeg_fits(array):
        return None
    return Encoding.JPEG, encode_jpeg(array, quality)


class _Choice(NamedTuple):
    encoding: Encoding
    items_left: int


class _Lossless:
    """Compresses arrays, each in the encoding that served a sample of it best."""

    def __init__(self, encodings: tuple[Encoding, ...]) -> None:
        self._encodings = encodings
        # Threads may overwrite each other's choice: the worst is a sample more.
        self._choices: dict[tuple[int, np.dtype[Any], Shape], _Choice] = {}

    def __call__(self, array: Array, place: int) -> Encoded | None:
        key = (place, array.dtype, array.shape)
        encoding, items_left = self._choices.get(key, (Encoding.RAW, 0))
        if not items_left:
            encoding, items_left = self._best(array), _ITEMS_BETWEEN_SAMPLES
        encoded = None
        if encoding != Encoding.RAW:
            data = encode(array, encoding)
            if len(data) <= array.nbytes * _WORTH_IT:
                encoded = (encoding, data)
            else:
                encoding = Encoding.RAW
        if len(self._choices) >= _CHOICES:
            self._choices.clear()
        self._choices[key] = _Choice(encoding, items_left - 1)
        return encoded

    def _best(self, array: Array) -> Encoding:
        sample = _sample(array)
        sizes = {each: len(encode(sample, each)) for each in self._encodings if _fits(each, array.dtype, array.shape)}
        best = min(sizes, key=sizes.__getitem__)
        return best if sizes[best] <= sample.nbytes * _WORTH_IT else Encoding.RAW


def _sample(array: Array) -> Array:
    """Some of the middle of an array, whole rows."""
    if array.ndim < 2:
        array = array.reshape(-1)
    rows = max(1, _SAMPLE_BYTES * len(array) // array.nbytes)
    begin = max(0, (len(array) - rows) // 2)
    return array[begin : begin + rows]


# --- filters and compressors ------------------------------------------------------------------------------------

_DIFF = (Encoding.LZ4_DIFF, Encoding.ZSTD_DIFF)
_GREEN = (Encoding.LZ4_GREEN, Encoding.ZSTD_GREEN)


def _fits(encoding: Encoding, dtype: np.dtype[Any], shape: Shape) -> bool:
    if encoding in _GREEN:
        return dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
    return encoding not in _DIFF or (dtype == np.uint8 and len(shape) in (2, 3))


def encode(array: Array, encoding: Encoding) -> bytes:
    """The bytes of an array that is not empty, in an encoding that fits it.

    Raises:
        PayloadError: a package is missing.
    """
    if encoding in _GREEN:
        data = flat_bytes(_less_row_above(_green_planes(array)))
    elif encoding in _DIFF:
        data = flat_bytes(_less_row_above(np.ascontiguousarray(array).reshape(1, len(array), -1)))
    else:
        data = flat_bytes(array)
    if encoding in _LZ4:
        compressed: bytes = _import("lz4.block").compress(data, store_size=False)
    else:
        compressed = _zstd().compressor.compress(data)
    return compressed


def _decode(encoding: Encoding, data: memoryview, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """The array of compressed bytes. No more memory is taken than `shape` says.

    Raises:
        ProtocolError: they are not the encoding of an array of this shape and dtype, or a package is missing.
    """
    if 0 in shape or not _fits(encoding, dtype, shape):
        raise ProtocolError(f"an array of shape {shape} and dtype {dtype} came in encoding {encoding}")
    flat = (_expand_lz4 if encoding in _LZ4 else _expand_zstd)(data, math.prod(shape) * dtype.itemsize)
    if encoding in _GREEN:
        height, width, _ = shape
        planes = flat.reshape(3, height, width)
        _add_row_above(planes)
        return _of_green_planes(planes)
    if encoding in _DIFF:
        _add_row_above(flat.reshape(1, shape[0], -1))
    return flat.view(dtype).reshape(shape)


_LZ4 = (Encoding.LZ4, Encoding.LZ4_DIFF, Encoding.LZ4_GREEN)
DECODERS: dict[int, Decode] = {
    encoding: partial(_decode, encoding) for encodings in _ENCODINGS.values() for encoding in encodings
}


def _green_planes(image: Array) -> Array:
    blue, green, red = opencv(PayloadError).split(np.ascontiguousarray(image))
    planes = np.empty((3, *green.shape), np.uint8)
    planes[0] = green
    np.subtract(blue, green, out=planes[1])
    np.subtract(red, green, out=planes[2])
    return planes


def _of_green_planes(planes: Array) -> Array:
    green, blue, red = planes
    blue += green
    red += green
    image: Array = opencv(ProtocolError).merge((blue, green, red))
    return image


def _less_row_above(planes: Array) -> Array:
    """Differences of rows, modulo 256. Shape (planes, rows, bytes of a row)."""
    differences = np.empty_like(planes)
    differences[:, 0] = planes[:, 0]
    np.subtract(planes[:, 1:], planes[:, :-1], out=differences[:, 1:])
    return differences


_BLOCK = 16  # rows
_NARROW_BYTES = 64  # of a row


def _add_row_above(planes: Array) -> None:
    """The inverse of `_less_row_above`, in place.

    NumPy's running sum takes long for each row; it serves narrow rows, of which a payload may have 64 million. Others
    go in blocks: the first rows of all blocks are summed at once, the second, and so on; then each block is raised by
    the last row before it.
    """
    rows = planes.shape[1]
    if planes.shape[2] < _NARROW_BYTES:
        np.add.accumulate(planes, axis=1, dtype=np.uint8, out=planes)
        return
    for row in range(1, min(_BLOCK, rows)):
        of_all_blocks = planes[:, row::_BLOCK]
        of_all_blocks += planes[:, row - 1 :: _BLOCK][:, : of_all_blocks.shape[1]]
    for begin in range(_BLOCK, rows, _BLOCK):
        planes[:, begin : begin + _BLOCK] += planes[:, begin - 1 : begin]


class _Zstd(threading.local):
    """Compressors and decompressors may not be shared between threads."""

    def __init__(self) -> None:
        zstandard = _import("zstandard")
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)


@lru_cache(maxsize=1)
def _zstd() -> _Zstd:
    return _Zstd()


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ProtocolError(f"an array came compressed, and {module.partition('.')[0]} is not installed") from error


def _expand_lz4(data: memoryview, size_bytes: int) -> Array:
    lz4 = _import("lz4.block")
    try:
        expanded = lz4.decompress(data, uncompressed_size=size_bytes, return_bytearray=True)
    except lz4.LZ4BlockError as error:
        raise ProtocolError(f"an array does not decompress: {error}") from error
    if len(expanded) != size_bytes:
        raise ProtocolError("an array is smaller than its table says")
    return np.frombuffer(expanded, np.uint8)


def _expand_zstd(data: memoryview, size_bytes: int) -> Array:
    # Into memory of our own: the one-call form allocates what the data says.
    flat: Array = np.empty(size_bytes, np.uint8)
    target = flat.data
    filled = 0
    try:
        with _zstd().decompressor.stream_reader(data) as reader:
            while filled < size_bytes:
                count = reader.readinto(target[filled:])
                if not count:
                    raise ProtocolError("an array is smaller than its table says")
                filled += count
            if reader.read(1):
                raise ProtocolError("an array is larger than its table says")
    except _import("zstandard").ZstdError as error:
        raise ProtocolError(f"an array does not decompress: {error}") from error
    return flat
