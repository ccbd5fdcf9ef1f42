"""Restricted unpickling. In: a pickle that nobody vouches for. Out: plain data, or ProtocolError.

The pickles of this protocol hold plain data alone. Whatever else an item has (arrays, objects) appears as a
persistent id, plain data too, that the codec resolves. So there is no name of a class or function in them,
nothing is called by the unpickler but the codec's one resolver, and no shared object is within its reach.

C's unpickler was not made for hostile input: it allocates what a length field says, and a chain of memo
operations makes structures whose hash takes for ever. It therefore sees a byte only after `check` has proved
that the pickle is one well-formed value in the few opcodes that Python's pickler (protocol 5, without memo) uses
for plain data, within the limits. The proof has two steps, both by regular expressions, at C's speed:

1. Split the pickle into opcodes and keep one symbol of each (`_symbols`). Every length is compared with what is
   there. Unknown opcodes end it.
2. Replace each innermost container by one symbol until a single one is left (`_prove`). Each round takes away one
   or two levels of nesting.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from task_offload.errors import ProtocolError
from task_offload.wire.payload_limits import PayloadLimits

PROTOCOL = 5
_PREFIX = b"\x80\x05"
_STOP = b"."

_INLINE = 32  # lengths of text and bytes that the regular expression knows; longer ones take a step in Python


def _sized(longest: int) -> bytes:
    """A pattern for a length byte and as many bytes, for lengths up to `longest`."""
    return b"(?:" + b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(longest + 1)) + b")"


_TOKEN = b"|".join(
    [
        rb"[N\x88\x89)\]}\x8f(\x85\x86\x87taesu\x90\x91Q]",  # constants, containers, BINPERSID
        rb"G.{8}",  # float
        rb"K.|M.{2}|J.{4}",  # int of 8, 16, 32 bits
        rb"\x8a" + _sized(8),  # int of up to 64 bits
        rb"\x8c" + _sized(_INLINE),  # text
        rb"C" + _sized(_INLINE),  # bytes
        rb"\x95.{3}\x00{5}",  # FRAME: a hint to read ahead
    ]
)
# sre keeps some state for each repeat of a group: a bounded repeat bounds it.
_RUN = re.compile(rb"(?:" + _TOKEN + rb"){0,1000}", re.DOTALL)
_OPCODE = re.compile(rb"(?=(.))(?:" + _TOKEN + rb")", re.DOTALL)

_LENGTH_BYTES = {b"\x8a": 1, b"\x8c": 1, b"C": 1, b"X": 4, b"B": 4, b"\x96": 8}

# Symbols. k: a value that cannot be chosen to have a given hash. h: another finished value.
# ] } and \x8f are a list, dict and set that may still grow. The rest stands for itself.
_SYMBOLS = bytes.maketrans(b"N\x88\x89)GKMJ\x8a\x8cXCB\x96", b"kkkkkkkkkkkkkh")
_VALUE = rb"[kh\]}\x8f]"
_CONTAINERS = bytes(set(range(256)) - set(b"]}\x8f\x85\x86\x87t\x91Q"))

_GROWTH = re.compile(  # what is put into a list, dict or set
    rb"(?<=\])(?:Va|\(V*e)+|(?<=\})(?:VVs|\((?:VV)*u)+|(?<=\x8f)(?:\(V*\x90)+".replace(b"V", _VALUE)
)
_FINISHED = re.compile(  # tuples of 1, 2, 3 and more, frozensets, persistent ids
    rb"V(?:[\x85Q]|V(?:\x86|V\x87))|\(V*[t\x91]".replace(b"V", _VALUE)
)
_KEYED = re.compile(rb"\(((?:VV)*)u|(V)Vs|\((V*)[\x90\x91]".replace(b"V", _VALUE))


def check(data: bytes, limits: PayloadLimits) -> None:
    """Proves that a pickle is one value of plain data and persistent ids, within the limits.

    Raises:
        ProtocolError: it is not.
    """
    if data[:2] != _PREFIX or data[-1:] != _STOP:
        raise ProtocolError("the pickle does not begin and end as protocol 5 does")
    symbols = _symbols(data)
    if len(symbols) <= _CACHED_SYMBOLS:  # items of one stream mostly have one structure
        _prove_cached(symbols, limits)
    else:
        _prove(symbols, limits)


def _symbols(data: bytes) -> bytes:
    """One symbol for each opcode between the prefix and STOP."""
    opcodes: list[bytes] = []
    position, end = len(_PREFIX), len(data) - 1
    while position < end:
        begin = position
        match = _RUN.match(data, position, end)
        position = match.end() if match is not None else begin
        opcodes += _OPCODE.findall(data, begin, position)
        if position == begin:
            position = _long_token(data, position, end, opcodes)
    return b"".join(opcodes).translate(_SYMBOLS, b"\x95")


def _long_token(data: bytes, position: int, end: int, opcodes: list[bytes]) -> int:
    opcode = data[position : position + 1]
    size_bytes = _LENGTH_BYTES.get(opcode)
    if size_bytes is None:
        raise ProtocolError(
            f"opcode {data[position]:#04x} or its argument is not allowed at byte {position} of a pickle"
        )
    begin = position + 1 + size_bytes
    length = int.from_bytes(data[position + 1 : begin], "little")
    if begin + length > end:
        raise ProtocolError(f"a value of {length} bytes at byte {position} is longer than its pickle")
    opcodes.append(b"h" if opcode == b"\x8a" else opcode)
    return begin + length


_CACHED_SYMBOLS = 256


def _prove(symbols: bytes, limits: PayloadLimits) -> None:
    if len(symbols.translate(None, _CONTAINERS)) > limits.containers:
        raise ProtocolError(f"more than {limits.containers} containers and objects in one payload")
    keys = 0
    values = symbols.count(b"h")
    for _ in range(limits.levels):
        if values > limits.hashed:
            keys += _keys_of_unknown_hash(symbols)
            if keys > limits.hashed:
                raise ProtocolError(
                    f"more than {limits.hashed} dict keys and set members other than text, bytes and 64-bit numbers"
                )
        symbols, grown = _GROWTH.subn(b"", symbols)
        symbols, finished = _FINISHED.subn(b"h", symbols)
        values += finished
        if not grown and not finished:
            break
    if len(symbols) != 1 or symbols not in b"kh]}\x8f":
        raise ProtocolError(f"the pickle is not one value, or is nested deeper than {limits.levels} levels")


_prove_cached = lru_cache(maxsize=1024)(_prove)


def _keys_of_unknown_hash(symbols: bytes) -> int:
    return sum(
        (items or b"")[::2].count(b"h") + (item or b"").count(b"h") + (members or b"").count(b"h")
        for items, item, members in (match.groups() for match in _KEYED.finditer(symbols))
    )


class _Unpickler(pickle.Unpickler):
    resolve: Callable[[Any], Any]

    def persistent_load(self, pid: Any) -> Any:
        return self.resolve(pid)

    def find_class(self, module: str, name: str) -> Any:
        raise ProtocolError(f"a pickle names {module}.{name}; payloads hold no names of code")


def loads(data: bytes, resolve: Callable[[Any], Any], limits: PayloadLimits) -> Any:
    """Unpickles plain data; `resolve` gives the value of each persistent id.

    Raises:
        ProtocolError: the pickle is not what `check` allows, or `resolve` or the hash of a key raised.
    """
    check(data, limits)
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.resolve = resolve
    try:
        return unpickler.load()
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"the pickle does not load: {type(error).__name__}: {error}") from error
