"""One array and its bytes. In: an array. Out: its encoding and bytes; and the way back, from bytes of anybody.

An array is described by dtype and shape, never by NumPy's own pickle: the same bytes mean the same to 32 and
64 bit, NumPy 1 and 2.
"""

from __future__ import annotations

import math
import re
import struct
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task_offload.errors import PayloadError, ProtocolError

Array = NDArray[Any]
Shape = tuple[int, ...]


class Encoding(IntEnum):
    """How the bytes of an array were made. The number travels."""

    RAW = 0
    JPEG = 1
    LZ4 = 2
    LZ4_DIFF = 3
    LZ4_GREEN = 4
    ZSTD = 5
    ZSTD_DIFF = 6
    ZSTD_GREEN = 7


# --- dtypes ---------------------------------------------------------------------------------------------------

_DTYPE = re.compile(rb"[<>|]([biufcSUMm])(\d{1,9})(\[(?:[1-9]\d{0,8})?(?:[YMWDhms]|[munpfa]s)\])?")
_ITEM_BYTES = {
    b"b": (1,),
    b"i": (1, 2, 4, 8),
    b"u": (1, 2, 4, 8),
    b"f": (2, 4, 8),  # larger ones differ between machines
    b"c": (8, 16),
    b"M": (8,),
    b"m": (8,),
}
_MAX_EMPTY = 2**31 - 1  # of an empty array NumPy multiplies the other dimensions, in 32 bits on a small machine


@lru_cache(maxsize=256)
def dtype_of(text: bytes) -> np.dtype[Any]:
    """The dtype that `dtype.str` of the other side names.

    Raises:
        ProtocolError: there is no such dtype, or it is of a kind that does not travel.
    """
    match = _DTYPE.fullmatch(text)
    if match is not None:
        kind, size, unit = match.groups()
        if (int(size) in _ITEM_BYTES.get(kind, (int(size) or -1,))) and (unit is None or kind in b"Mm"):
            try:
                dtype = np.dtype(text.decode())
            except (TypeError, ValueError, OverflowError) as error:
                raise ProtocolError(f"dtype {text!r} does not exist: {error}") from error
            if dtype.str.encode() == text:
                return dtype
    raise ProtocolError(f"dtype {text[:40]!r} does not travel")


@lru_cache(maxsize=256)
def dtype_text(dtype: np.dtype[Any]) -> bytes:
    """The name of a dtype on the wire.

    Raises:
        PayloadError: arrays of it do not travel; the message says what to do instead.
    """
    text: bytes = dtype.str.encode()
    try:
        dtype_of(text)
    except ProtocolError:
        if dtype.hasobject:
            advice = "make it an array of numbers, or pass a list"
        elif dtype.names is not None:
            advice = "pass each field as an array of its own"
        else:
            advice = "convert it with .astype() to a standard number type"
        raise PayloadError(f"an array of dtype {dtype} cannot travel; {advice}") from None
    return text


def raw_size_bytes(shape: Shape, dtype: np.dtype[Any], limit_bytes: int) -> int:
    """Size of an array's memory.

    Raises:
        ProtocolError: it is over the limit, or NumPy could not hold such a shape.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes > limit_bytes or (size_bytes == 0 and math.prod(filter(None, shape)) * dtype.itemsize > _MAX_EMPTY):
        raise ProtocolError(f"an array of shape {shape!s:.100} and dtype {dtype} is over {limit_bytes} bytes")
    return size_bytes


# --- raw ------------------------------------------------------------------------------------------------------


def flat_bytes(array: Array) -> memoryview:
    """The memory of an array as flat bytes; of a copy if it is not contiguous."""
    try:
        return array.data.cast("B")
    except (TypeError, ValueError):  # not contiguous, empty, or of a dtype that a memoryview does not know
        return array.ravel().view(np.uint8).data


# --- JPEG -----------------------------------------------------------------------------------------------------

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_SEGMENT = struct.Struct(">BBH")
_BASELINE = struct.Struct(">BHHB")  # bits of a sample, height, width, components
_SOF0, _SOS = 0xC0, 0xDA
_TABLES = frozenset({0xDB, 0xC4, 0xDD})  # quantisation, Huffman tables, restart interval
_JFIF = 0xE0
_HEADER_BYTES = 4096
_OTHER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # neither a stuffed byte nor a restart
_MAX_SIDE = 65_500


def jpeg_fits(image: Array) -> bool:
    """Whether a picture can travel as a JPEG: 8 bits, grey or of 3 channels, not empty."""
    shape = image.shape
    return (
        image.dtype == np.uint8
        and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))
        and 0 < shape[0] <= _MAX_SIDE
        and 0 < shape[1] <= _MAX_SIDE
    )


def encode_jpeg(image: Array, quality: int) -> memoryview:
    """A picture as a baseline JPEG.

    Raises:
        PayloadError: OpenCV is not installed.
    """
    cv2 = opencv(PayloadError)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return memoryview(data.reshape(-1))


def decode_jpeg(data: memoryview, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """The picture of a JPEG. What it declares is compared with `shape` before anything is allocated.

    Raises:
        ProtocolError: it is not a baseline JPEG of this shape and one scan, or OpenCV is not installed.
    """
    if dtype != np.uint8 or len(shape) not in (2, 3):
        raise ProtocolError("a JPEG is not of the shape or dtype that its array table says")
    scan = _jpeg_scan(bytes(data[:_HEADER_BYTES]), shape)
    if data[-2:] != _JPEG_END:
        raise ProtocolError("a JPEG has no end")
    # Each further scan takes ten bytes, and a pass over the whole picture.
    if _OTHER_MARKER.search(data[scan:-2]):
        raise ProtocolError("a JPEG has more than one scan")
    cv2 = opencv(ProtocolError)
    flags = (cv2.IMREAD_COLOR if len(shape) == 3 else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    image: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or image.shape != shape:
        raise ProtocolError("a JPEG does not decode")
    return image


def _jpeg_scan(start: bytes, shape: Shape) -> int:
    """Where the one scan of a JPEG begins, which has all components of the shape.

    Raises:
        ProtocolError: it is not of the shape, or not one that `encode_jpeg` makes.
    """
    found: Shape | None = None
    kind: int
    length: int
    position = len(_JPEG_START)
    while start[:2] == _JPEG_START and position + _SEGMENT.size + _BASELINE.size <= len(start):
        marker, kind, length = _SEGMENT.unpack_from(start, position)
        content = position + _SEGMENT.size
        position += 2 + length
        if marker != 0xFF or length < 2:
            break
        if kind == _SOS:
            if found == shape and start[content] == (1 if len(shape) == 2 else 3):
                return position
            break
        if kind == _SOF0 and found is None:
            bits, height, width, components = _BASELINE.unpack_from(start, content)
            found = {1: (height, width), 3: (height, width, 3)}.get(components) if bits == 8 else None
            if found != shape:
                break
        elif kind not in _TABLES and (kind != _JFIF or found is not None):
            break
    raise ProtocolError("a JPEG is not of the shape that its array table says, or of a kind that does not travel")


@lru_cache(maxsize=1)
def _import_opencv() -> Any:
    import cv2  # an app without pictures needs no OpenCV

    return cv2


def opencv(kind: type[PayloadError] | type[ProtocolError]) -> Any:
    """The cv2 module; an error of this kind if it is not there."""
    try:
        return _import_opencv()
    except ImportError as error:
        raise kind(
            f"images are encoded with OpenCV, which does not import ({error}); "
            "pip install opencv-python, or use --picture-quality 0 and --codec none"
        ) from error
