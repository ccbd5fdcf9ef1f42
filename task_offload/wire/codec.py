"""Arguments of a task and their payload. In: a tuple of arguments. Out: a payload's head and body; and back.

The head holds the array table, small arrays, and a pickle of everything else (`unpickle`, `objects`). The body
holds the large arrays' memory as it is, each padded to 64 bytes. `docs/protocol.md` specifies both.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from task_offload.errors import PayloadError, ProtocolError
from task_offload.picture import Picture
from task_offload.wire import arrays, compression, unpickle
from task_offload.wire.arrays import Array, Encoding, Shape
from task_offload.wire.objects import PayloadTypes
from task_offload.wire.payload_limits import PayloadLimits

__all__ = ["Decoder", "Encoder", "Payload", "PayloadLimits", "decompressed", "padded_body"]

_HEAD = struct.Struct("<II")  # arrays, size of the small arrays' bytes
_ARRAY = struct.Struct("<BBBBQ")  # encoding, place, dimensions, length of the dtype's name, size of the bytes
_DIMENSIONS = [struct.Struct(f"<{n}Q") for n in range(65)]
_IN_HEAD, _IN_BODY = 0, 1

BODY_ALIGNMENT = 64
_HEAD_ALIGNMENT = 8
_PADDING = [bytes(n) for n in range(_HEAD_ALIGNMENT)]
_SMALL_BYTES = 4096  # up to here a copy into the head costs less than one more part of a send
_TINY_BYTES = 512  # less is not worth compressing
_SMALL_IN_ALL_BYTES = 256 * 1024  # beyond, small arrays go to the body too

_PLAIN_HEADS = 64  # of items that are large arrays alone; the heads of one stream are mostly the same, and are kept
_PLAIN_HEAD_BYTES = 1024  # a longer one is not worth its memory

# First value of a persistent id that is a tuple. An id that is a number is an array of the table.
_PICTURE, _SCALAR, _COMPLEX, _OBJECT, _FROZENSET = range(5)

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Payload(NamedTuple):
    """Encoded arguments.

    Attributes:
        head: array table, small arrays and pickle.
        buffers: the body's parts, flat bytes; each is followed by zeros up to a multiple of 64 bytes. They refer
            to the arrays' own memory: nobody may write to them until they are sent.
        size_bytes: of head and body, padding included.
    """

    head: bytes
    buffers: tuple[memoryview, ...]
    size_bytes: int


def padded_body(payload: Payload) -> list[bytes | memoryview]:
    """A payload's buffers, each padded as the body demands."""
    body: list[bytes | memoryview] = []
    for buffer in payload.buffers:
        body.append(buffer)
        if padding := -len(buffer) % BODY_ALIGNMENT:
            body.append(bytes(padding))
    return body


class Encoder:
    """Makes payloads of arguments. Threads may share it.

    Arguments:
        payload_types: the app's classes that may travel.
        picture_quality: JPEG quality of pictures, 1 to 100; 0 sends them lossless.
        codec: how arrays travel, as `--codec` names it.
        limits: of one payload; the same as the decoder's.

    Raises:
        ConfigError: there is no such codec, or not on this machine.
    """

    def __init__(
        self,
        payload_types: Sequence[type] = (),
        picture_quality: int = 90,
        codec: str = "none",
        limits: PayloadLimits | None = None,
    ) -> None:
        self._objects = PayloadTypes(payload_types)
        self._picture_quality = picture_quality
        self._codec = codec
        self._compressions = compression.Compressions()
        self._compressions.of(codec)
        self._limits = limits or DEFAULT_LIMITS
        self._handlers = _Handlers(self._objects)
        self._plain: dict[tuple[Any, ...], Payload] = {}  # by `_plain_key`, their buffers empty

    def encode(self, args: tuple[Any, ...], codec: str | None = None) -> Payload:
        """Encodes the arguments of one item.

        Arguments:
            args: as `Outcome.value` has them, pictures as `Picture`.
            codec: for this item; None for the encoder's own.

        Raises:
            PayloadError: something in them cannot travel, or they are over the limits. The encoder stays usable.
            ConfigError: there is no such codec, or not on this machine.
        """
        compress = self._compressions.of(self._codec if codec is None else codec)
        try:
            key, images = _plain_key(args) if compress is None else (None, [])
            if key is not None and (plain := self._plain.get(key)) is not None:
                return Payload(plain.head, tuple(map(arrays.flat_bytes, images)), plain.size_bytes)
            table = _Table(args, self._picture_quality, compress, self._limits)
            pickled = self._pickle(args, table)
        except PayloadError:
            raise
        except ProtocolError as error:
            raise PayloadError(f"arguments cannot travel: {error}; pass fewer, flatter values or arrays") from error
        except (RecursionError, ValueError) as error:
            raise PayloadError(
                f"arguments cannot travel: they contain themselves or are nested too deeply ({error})"
            ) from error
        except Exception as error:
            raise PayloadError(f"arguments cannot travel: {type(error).__name__}: {error}") from error
        payload = table.payload(pickled)
        if key is not None and table.raw:
            _keep(self._plain, key, payload.head, Payload(payload.head, (), payload.size_bytes))
        return payload

    def _pickle(self, args: tuple[Any, ...], table: _Table) -> bytes:
        file = io.BytesIO()
        pickler = _Pickler(file, unpickle.PROTOCOL)
        pickler.fast = True  # no memo: the decoder's unpickler is safe because there is none
        pickler.handlers = self._handlers
        pickler.table = table
        pickler.dump(args)
        pickled = file.getvalue()
        # What the decoder refuses would cost the connection, and again after each reconnect.
        unpickle.check(pickled, self._limits)
        return pickled


class Decoder:
    """Makes arguments of payloads that nobody vouches for. Threads may share it.

    Arguments:
        payload_types: the app's classes that may travel.
        limits: of one payload.
    """

    def __init__(self, payload_types: Sequence[type] = (), limits: PayloadLimits | None = None) -> None:
        self._objects = PayloadTypes(payload_types)
        self._limits = limits or DEFAULT_LIMITS
        self._plain: dict[bytes, _Plain] = {}  # by head

    def decode(self, head: bytes | memoryview, body: memoryview) -> tuple[Any, ...]:
        """The arguments of one item, pictures as `Picture`. Arrays refer to the body's memory and are writable.

        Arguments:
            head: as `Payload.head`.
            body: flat bytes; read-only memory is copied.

        Raises:
            ProtocolError: the payload is not what an encoder makes. The decoder stays usable.
        """
        head = bytes(head)
        plain = self._plain.get(head)
        if plain is not None and plain.body_bytes == body.nbytes and not body.readonly:
            return plain.args(body)
        try:
            found, raw, pickled = self._read_head(head, body)
            args = unpickle.loads(pickled, _Resolver(found, self._objects), self._limits)
        except ProtocolError:
            raise
        except Exception as error:
            raise ProtocolError(f"a payload does not decode: {type(error).__name__}: {error}") from error
        if type(args) is not tuple:
            raise ProtocolError("the arguments of a payload are not a tuple")
        if raw and list(map(id, map(_image, args))) == list(map(id, found)):
            _keep(self._plain, head, head, _Plain(args, body.nbytes))
        return args

    def _read_head(self, head: bytes, body: memoryview) -> tuple[list[Array], bool, bytes]:
        """The arrays, whether all are the body's memory as it came, and the pickle."""
        limits = self._limits
        if len(head) > limits.head_bytes or body.nbytes > limits.body_bytes:
            raise ProtocolError(f"a payload of {len(head)} and {body.nbytes} bytes is over the limits")
        entries, small_begin, pickle_begin = _read_table(head, limits)
        regions = (
            _Region(memoryview(bytearray(head[small_begin:pickle_begin])), _HEAD_ALIGNMENT),
            _Region(body if not body.readonly else memoryview(bytearray(body)), BODY_ALIGNMENT),
        )
        raw_left_bytes = limits.raw_bytes
        found = []
        raw = bool(entries)
        for encoding, place, size_bytes, shape, dtype in entries:
            raw_bytes = arrays.raw_size_bytes(shape, dtype, raw_left_bytes)
            raw_left_bytes -= raw_bytes
            if place not in (_IN_HEAD, _IN_BODY):
                raise ProtocolError(f"an array is at an unknown place {place}")
            raw = raw and place == _IN_BODY and encoding == Encoding.RAW and raw_bytes > 0
            region = regions[place]
            offset = region.take(size_bytes)
            if encoding == Encoding.RAW:
                if size_bytes != raw_bytes:
                    raise ProtocolError(f"an array of {raw_bytes} bytes came as {size_bytes} bytes")
                found.append(np.ndarray(shape, dtype, region.memory, offset) if raw_bytes else np.empty(shape, dtype))
                continue
            decode = _DECODERS.get(encoding)
            if decode is None:
                raise ProtocolError(f"an array has an unknown encoding {encoding}")
            found.append(decode(region.memory[offset : offset + size_bytes], shape, dtype))
        for region in regions:
            region.check_used()
        return found, raw, head[pickle_begin:]


def _read_table(
    head: bytes, limits: PayloadLimits
) -> tuple[list[tuple[int, int, int, Shape, np.dtype[Any]]], int, int]:
    """Each array's encoding, place, size in bytes, shape and dtype; where the small arrays begin, and the pickle."""
    count, small_bytes = _HEAD.unpack_from(head)
    if count > limits.arrays:
        raise ProtocolError(f"a payload of {count} arrays; {limits.arrays} are allowed")
    position = _HEAD.size
    entries = []
    for _ in range(count):
        encoding, place, dimensions, text_bytes, size_bytes = _ARRAY.unpack_from(head, position)
        position += _ARRAY.size
        if dimensions > limits.dimensions:
            raise ProtocolError(f"an array of {dimensions} dimensions; {limits.dimensions} are allowed")
        shape = _DIMENSIONS[dimensions].unpack_from(head, position)
        position += 8 * dimensions
        dtype = arrays.dtype_of(head[position : position + text_bytes])
        position += text_bytes
        entries.append((encoding, place, size_bytes, shape, dtype))
    pickle_begin = position + small_bytes
    if pickle_begin > len(head):
        raise ProtocolError("the small arrays are longer than the head")
    return entries, position, pickle_begin


def decompressed(payload: Payload, encodings: Collection[int]) -> Payload:
    """A payload of this device without these encodings: what was compressed so travels as it is.

    The same if there is nothing of that kind in it, or this machine cannot decompress it any more.
    """
    try:
        entries, small_begin, pickle_begin = _read_table(payload.head, DEFAULT_LIMITS)
        if not any(entry[0] in encodings for entry in entries):
            return payload
        body = b"".join(padded_body(payload))
        regions = (
            _Region(memoryview(payload.head)[small_begin:pickle_begin], _HEAD_ALIGNMENT),
            _Region(memoryview(body), BODY_ALIGNMENT),
        )
        table = _Table((), 0, None, DEFAULT_LIMITS)
        for encoding, place, size_bytes, shape, dtype in entries:
            region = regions[place]
            offset = region.take(size_bytes)
            data = region.memory[offset : offset + size_bytes]
            if encoding in encodings:
                encoding, data = Encoding.RAW, arrays.flat_bytes(_DECODERS[encoding](data, shape, dtype))
            table.append(Encoding(encoding), shape, arrays.dtype_text(dtype), data)
        return table.payload(payload.head[pickle_begin:])
    except Exception:  # damage on the disk, or a package that is gone: what the cloud says of it is on record
        return payload


_DECODERS: dict[int, compression.Decode] = {
    Encoding.JPEG: arrays.decode_jpeg,
    **compression.DECODERS,
}

DEFAULT_LIMITS = PayloadLimits()


# --- encoding -------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    handlers: _Handlers
    table: _Table

    def persistent_id(self, value: Any) -> Any:
        """Called for every value: None for plain data, else what travels in its place."""
        handler = self.handlers[type(value)]
        return handler and handler(self.table, value)


_Handler = Callable[["_Table", Any], Any]


class _Handlers(dict[type, "_Handler | None"]):
    """By exact type, what a pickler does with a value: None for plain data."""

    def __init__(self, objects: PayloadTypes) -> None:
        plain = (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set)
        super().__init__(dict.fromkeys(plain))
        # Without memo, CPython's pickler fails after some 50 frozensets (3.10 to 3.13).
        self[frozenset] = lambda _, value: (_FROZENSET, set(value))
        self[np.ndarray] = self[np.memmap] = _Table.add
        self[Picture] = lambda table, value: (_PICTURE, table.add_picture(value.image))
        self[complex] = lambda _, value: (_COMPLEX, value.real, value.imag)
        for scalar in {np.dtype(code).type for code in "?bhilqBHILQefdFDMm"}:
            self[scalar] = _scalar
        self[np.str_] = lambda _, value: (_SCALAR, "U", str(value))
        self[np.bytes_] = lambda _, value: (_SCALAR, "S", bytes(value))
        for each in objects.types:
            self[each] = lambda _, value: (_OBJECT, *objects.describe(value))

    def __missing__(self, cls: type) -> _Handler:
        return _refuse


def _scalar(_: _Table, value: np.generic) -> Any:
    return (_SCALAR, value.dtype.str, value.tobytes())


def _refuse(_: _Table, value: Any) -> Any:
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(value, np.ndarray):
        advice = "pass np.asarray(it)"
    elif isinstance(value, np.generic):
        advice = "pass a standard number"
    elif isinstance(value, (type, Callable)):  # type: ignore[arg-type]
        raise PayloadError(f"{value!r:.100} cannot travel: classes and functions never do; pass data")
    else:
        advice = f"list it in the app's payload_types, as  payload_types = ({cls.__name__},)  or pass plain data"
    raise PayloadError(f"a {name} cannot travel; {advice}")


class _Table:
    """The arrays of one item."""

    def __init__(
        self, args: tuple[Any, ...], picture_quality: int, compress: compression.Compress | None, limits: PayloadLimits
    ) -> None:
        self._args = args
        self._picture_quality = picture_quality
        self._compress = compress
        self._limits = limits
        self._entries: list[bytes] = []
        self._small: list[bytes | memoryview] = []
        self._small_bytes = 0
        self._buffers: list[memoryview] = []
        self._body_bytes = 0
        self._raw_bytes = 0
        self._raw_in_body = 0
        self._index_of: dict[tuple[int, bool], int] = {}
        self._kept: list[Array] = []  # an id means nothing once its object is gone

    def add(self, array: Array, as_picture: bool = False) -> int:
        """The index of an array; the same for the same array."""
        key = (id(array), as_picture)
        index = self._index_of.get(key)
        if index is None:
            index = self._index_of[key] = len(self._entries)
            self._kept.append(array)
            self._encode(array, as_picture)
        return index

    def add_picture(self, image: Array) -> int:
        lossless = (
            self._picture_quality == 0
            or not arrays.jpeg_fits(image)
            or any(each is image for each in self._args)  # it travels lossless anyway
        )
        return self.add(image, as_picture=not lossless)

    def _encode(self, array: Array, as_picture: bool) -> None:
        text = arrays.dtype_text(array.dtype)
        self._raw_bytes += arrays.raw_size_bytes(array.shape, array.dtype, self._limits.raw_bytes - self._raw_bytes)
        if array.ndim > self._limits.dimensions:
            raise PayloadError(f"an array of {array.ndim} dimensions cannot travel; reshape it")
        encoding: Encoding = Encoding.RAW
        data: bytes | memoryview
        if as_picture:
            encoding, data = Encoding.JPEG, arrays.encode_jpeg(array, self._picture_quality)
        elif array.nbytes < _TINY_BYTES:
            data = array.tobytes()
        else:
            compressed = self._compress(array, len(self._entries)) if self._compress is not None else None
            encoding, data = compressed or (encoding, arrays.flat_bytes(array))
        self.append(encoding, array.shape, text, data)

    def append(self, encoding: Encoding, shape: Shape, text: bytes, data: bytes | memoryview) -> None:
        """Enters an array's bytes; `text` names its dtype."""
        size_bytes = len(data)
        small = size_bytes < _SMALL_BYTES and self._small_bytes + size_bytes <= _SMALL_IN_ALL_BYTES
        self._entries.append(
            _ARRAY.pack(encoding, _IN_HEAD if small else _IN_BODY, len(shape), len(text), size_bytes)
            + _DIMENSIONS[len(shape)].pack(*shape)
            + text
        )
        if small:
            padding = _PADDING[-size_bytes % _HEAD_ALIGNMENT]
            self._small += (data, padding)
            self._small_bytes += size_bytes + len(padding)
        else:
            self._raw_in_body += encoding is Encoding.RAW
            self._buffers.append(memoryview(data))
            self._body_bytes += size_bytes + -size_bytes % BODY_ALIGNMENT

    @property
    def raw(self) -> bool:
        """Whether all arrays stand in the body as they are."""
        return self._raw_in_body == len(self._entries)

    def payload(self, pickled: bytes) -> Payload:
        limits = self._limits
        head = b"".join([_HEAD.pack(len(self._entries), self._small_bytes), *self._entries, *self._small, pickled])
        if len(self._entries) > limits.arrays or len(self._buffers) > limits.buffers:
            raise PayloadError(
                f"{len(self._entries)} arrays, {len(self._buffers)} of them large, cannot travel: "
                f"{limits.arrays} and {limits.buffers} are the limits; join them (np.concatenate)"
            )
        if len(head) > limits.head_bytes or self._body_bytes > limits.body_bytes:
            raise PayloadError(
                f"arguments of {len(head)} bytes and {self._body_bytes} bytes of large arrays cannot travel: "
                f"{limits.head_bytes} and {limits.body_bytes} are the limits; pass arrays instead of lists, or less"
            )
        return Payload(head, tuple(self._buffers), len(head) + self._body_bytes)


def _keep(kept: dict[_Key, _Value], key: _Key, head: bytes, value: _Value) -> None:
    """Keeps what a head means. Many heads of one peer take no memory, and no place from the others' for good."""
    if len(head) <= _PLAIN_HEAD_BYTES:
        if len(kept) >= _PLAIN_HEADS:
            kept.clear()
        kept[key] = value


def _image(arg: Any) -> Any:
    return arg.image if type(arg) is Picture else arg


def _plain_key(args: tuple[Any, ...]) -> tuple[tuple[Any, ...] | None, list[Array]]:
    """What the head depends on, and the arrays, if all arguments are arrays or pictures, each another one."""
    key: list[Any] = []
    images: list[Array] = []
    for arg in args:
        image = arg.image if type(arg) is Picture else arg
        if type(image) is not np.ndarray:
            return None, []
        key += (type(arg), image.shape, image.dtype)
        images.append(image)
    if len(images) > 1 and len(set(map(id, images))) < len(images):
        return None, []
    return tuple(key), images


# --- decoding -------------------------------------------------------------------------------------------------


class _Plain:
    """How the arguments of an item lie in its body, if all are arrays or pictures there as they are, in order."""

    def __init__(self, args: tuple[Any, ...], body_bytes: int) -> None:
        self.body_bytes = body_bytes
        self._places = []
        offset = 0
        for arg in args:
            image = _image(arg)
            self._places.append((type(arg) is Picture, image.shape, image.dtype, offset))
            offset += image.nbytes + -image.nbytes % BODY_ALIGNMENT

    def args(self, body: memoryview) -> tuple[Any, ...]:
        found = []
        for is_picture, shape, dtype, offset in self._places:
            array = np.ndarray(shape, dtype, body, offset)
            found.append(Picture(array) if is_picture else array)
        return tuple(found)


class _Region:
    """Memory that holds arrays one after the other, so that none overlap."""

    def __init__(self, memory: memoryview, alignment: int) -> None:
        self.memory = memory
        self._alignment = alignment
        self._size_bytes = memory.nbytes
        self._position = 0

    def take(self, size_bytes: int) -> int:
        """The offset of the next array."""
        offset = self._position
        self._position = offset + size_bytes + -size_bytes % self._alignment
        if self._position > self._size_bytes:
            raise ProtocolError(f"an array of {size_bytes} bytes is longer than what came")
        return offset

    def check_used(self) -> None:
        if self._position != self._size_bytes:
            raise ProtocolError("more bytes of arrays came than the array table says")


class _Resolver:
    """Gives the value of a persistent id."""

    def __init__(self, found: list[Array], objects: PayloadTypes) -> None:
        self._found = found
        self._objects = objects

    def __call__(self, pid: Any) -> Any:
        if type(pid) is int:
            return self._array(pid)
        if type(pid) is tuple and pid:
            kind, *rest = pid
            if kind == _OBJECT and 2 <= len(rest) <= 5 and type(rest[0]) is str:
                return self._objects.make(tuple(rest))
            if len(rest) == 1:
                if kind == _PICTURE:
                    return Picture(self._array(rest[0]))
                if kind == _FROZENSET and type(rest[0]) is set:
                    return frozenset(rest[0])
            if len(rest) == 2:
                if kind == _SCALAR:
                    return _read_scalar(*rest)
                if kind == _COMPLEX and type(rest[0]) is type(rest[1]) is float:
                    return complex(*rest)
        raise ProtocolError("a pickle refers to something unknown")

    def _array(self, index: Any) -> Array:
        if type(index) is int and 0 <= index < len(self._found):
            return self._found[index]
        raise ProtocolError("a pickle refers to an array that did not come")


def _read_scalar(text: Any, data: Any) -> Any:
    if type(text) is str:
        if text == "U" and type(data) is str:
            return np.str_(data)
        if type(data) is bytes:
            if text == "S":
                return np.bytes_(data)
            dtype = arrays.dtype_of(text.encode())
            if dtype.kind not in "SU" and len(data) == dtype.itemsize:
                return np.frombuffer(data, dtype)[0]
    raise ProtocolError("a number does not fit its dtype")
