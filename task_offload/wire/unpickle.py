"""Restricted unpickling. In: a pickle that nobody vouches for. Out: plain data, or ProtocolError.

The pickles of this protocol hold plain data alone. Whatever else an item has (arrays, objects) appears as a
persistent id, plain data too, that the codec resolves. So there is no name of a class or function in them,
nothing is called by the unpickler but the codec's one resolver, and no shared object is within its reach.

C's unpickler was not made for hostile input: it allocates what a length field says, and a chain of memo
operations makes structures whose hash takes for ever. It therefore sees a byte only after `check` has proved
that the pickle is one well-formed value in the few opcodes that Python's pickler (protocol 5, without memo) uses
for plain data, within the limits. The proof has two steps, both by regular expressions, at C's speed:

1. Make one symbol of each opcode (`_symbols`). Every length is compared with what is there. Unknown opcodes end
   it.
2. Replace each innermost container by one symbol until a single one is left (`_prove`). A round takes away at least
   one level of tuples and objects.
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
_FRAME = 0x95  # a length of 8 bytes follows; whole opcodes lie between two frames' ends
_FRAME_BYTES = 9

_SHORT = 63  # lengths of text and bytes that the regular expression knows; longer ones take a step in Python


def _sized(longest: int) -> bytes:
    """A pattern for a length byte and as many bytes, for lengths up to `longest`."""
    return b"(?:" + b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(longest + 1)) + b")"


# Float; int of 8, 16, 32, up to 64 bits; text; bytes.
_ATOM = rb"G.{8}|K.|M..|J.{4}|\x8a%b|\x8c%b|C%b" % (_sized(8), _sized(_SHORT), _sized(_SHORT))
_ATOMS = re.compile(_ATOM, re.DOTALL)
# Constants, containers and BINPERSID are a byte each. No atom begins with one of them.
_SINGLE = b"N\x88\x89)]}\x8f(\x85\x86\x87taesu\x90Q"
# sre keeps some state for each repeat of a group: a bounded repeat bounds it.
_RUN = re.compile(rb"(?:[%b]|%b){0,1000}" % (re.escape(_SINGLE), _ATOM), re.DOTALL)
_LENGTH_BYTES = {b"\x8a": 1, b"\x8c": 1, b"C": 1, b"X": 4, b"B": 4, b"\x96": 8}

# Symbols. N: a value that cannot be chosen to have a given hash. n: a number, told apart only where there are many;
# equal hashes it cannot have, but a peer can choose numbers whose places in a table collide. h: another finished value.
# ] } and \x8f are a list, dict and set that may still grow. The rest stands for itself.
_SYMBOLS = bytes.maketrans(b"\x88\x89)", b"NNN")
_VALUE = rb"[Nnh\]}\x8f]"
_CONTAINERS = bytes(set(range(256)) - set(b"]}\x8f\x85\x86\x87tQ"))

# Each pattern begins with one rare symbol that a search skips to, and never looks at a stretch of values twice:
# the time is linear in the symbols for each round.
# What is put into a list, dict or set: after its opening symbol, which stays. The groups are keys and members.
_GROWTH = [
    (re.compile(pattern.replace(b"V", _VALUE)), re.compile(keys.replace(b"V", _VALUE)) if keys else None, opening)
    for pattern, keys, opening in [
        (rb"\](?:Va|\(V*e)+", None, b"]"),
        (rb"\}(?:VVs|\((?:VV)*u)+", rb"\(((?:VV)*)u|(V)Vs", b"}"),
        (rb"\x8f(?:\(V*\x90)+", rb"()\((V*)\x90", b"\x8f"),
    ]
]
# Persistent ids, tuples of 1, 2, 3 and more. Here the closing symbol is the rare one, so this reads backwards.
_FINISHED_BACKWARDS = re.compile(rb"[Q\x85]V|\x86VV|\x87VVV|tV*\(".replace(b"V", _VALUE))


def check(data: bytes, limits: PayloadLimits) -> None:
    """Proves that a pickle is one value of plain data and persistent ids, within the limits.

    Raises:
        ProtocolError: it is not.
    """
    if data[:2] != _PREFIX or data[-1:] != _STOP:
        raise ProtocolError("the pickle does not begin and end as protocol 5 does")
    symbols = _symbols(data, b"N")
    if len(symbols) > limits.numbers and (b"}" in symbols or b"\x8f" in symbols):
        symbols = _symbols(data, _by_kind)
    if len(symbols) <= _CACHED_SYMBOLS:  # items of one stream mostly have one structure
        _prove_cached(symbols, limits)
    else:
        _prove(symbols, limits)


_Symbol = bytes | Callable[[re.Match[bytes]], bytes]  # of an atom


def _by_kind(atom: re.Match[bytes]) -> bytes:
    return b"n" if atom[0][0] in b"GJ\x8a" else b"N"  # 8 or 16 bits give a place of their own to each number


def _symbols(data: bytes, atom: _Symbol) -> bytes:
    """The symbols of all between the prefix and STOP."""
    symbols: list[bytes] = []
    position, end = len(_PREFIX), len(data) - 1
    while position < end:
        if data[position] == _FRAME:
            begin = position + _FRAME_BYTES
            length = int.from_bytes(data[position + 1 : begin], "little")
            if begin + length > len(data):
                raise ProtocolError(f"a frame of {length} bytes at byte {position} is longer than its pickle")
            position = min(begin + length, end)
            _add_symbols(data[begin:position], atom, symbols)
        elif data[position] in b"XB\x96":  # a long value stands between frames
            position = _add_long(data, position, end, symbols)
        else:
            _add_symbols(data[position:end], atom, symbols)
            position = end
    return b"".join(symbols).translate(_SYMBOLS)


def _add_symbols(data: bytes, atom: _Symbol, symbols: list[bytes]) -> None:
    """Adds the symbols of whole opcodes."""
    found = _ATOMS.sub(b"N", data)
    if not found.translate(None, _SINGLE):
        symbols.append(found if atom == b"N" else _ATOMS.sub(atom, data))
        return
    # There are long values, or what is not allowed.
    position, end = 0, len(data)
    while position < end:
        match = _RUN.match(data, position)
        run_end = match.end() if match is not None else position
        symbols.append(_ATOMS.sub(atom, data[position:run_end]))
        position = run_end if run_end > position else _add_long(data, position, end, symbols)


def _add_long(data: bytes, position: int, end: int, symbols: list[bytes]) -> int:
    """Adds the symbol of one long value. Gives the position after it."""
    opcode = data[position : position + 1]
    size_bytes = _LENGTH_BYTES.get(opcode)
    if size_bytes is None:
        raise ProtocolError(f"opcode {opcode.hex()} or its argument is not allowed in a pickle")
    begin = position + 1 + size_bytes
    length = int.from_bytes(data[position + 1 : begin], "little")
    if begin + length > end:
        raise ProtocolError(f"a value of {length} bytes is longer than its pickle")
    if length <= 255 and opcode in b"XB":  # each costs a step here; the pickler has shorter opcodes
        raise ProtocolError(f"a value of {length} bytes is not in its shortest form")
    symbols.append(b"h" if opcode in (b"\x8a", b"\x96") else b"N")
    return begin + length


_CACHED_SYMBOLS = 256


def _prove(symbols: bytes, limits: PayloadLimits) -> None:
    if len(symbols.translate(None, _CONTAINERS)) > limits.containers:
        raise ProtocolError(f"more than {limits.containers} containers and objects in one payload")
    keys = numbers = 0
    values = symbols.count(b"h")
    many_numbers = symbols.count(b"n") > limits.numbers
    work = 0
    for _ in range(limits.levels):
        work += len(symbols)
        if work > limits.proof:
            raise ProtocolError("a payload has many values and deep nesting at once")
        grown = 0
        for pattern, keys_pattern, opening in _GROWTH:
            if keys_pattern is not None:
                if values > limits.hashed:
                    keys += _count_keys(b"h", keys_pattern, symbols)
                if many_numbers:
                    numbers += _count_keys(b"n", keys_pattern, symbols)
            symbols, count = pattern.subn(opening, symbols)
            grown += count
        if keys > limits.hashed:
            raise ProtocolError(
                f"more than {limits.hashed} dict keys and set members other than text, bytes and 64-bit numbers"
            )
        if numbers > limits.numbers:
            raise ProtocolError(f"more than {limits.numbers} dict keys and set members are numbers of over 16 bits")
        symbols, finished = _FINISHED_BACKWARDS.subn(b"h", symbols[::-1])
        symbols = symbols[::-1]
        values += finished
        if not grown and not finished:
            break
    if len(symbols) != 1 or symbols not in b"Nnh]}\x8f":
        raise ProtocolError(f"the pickle is not one value, or is nested deeper than {limits.levels} levels")


_prove_cached = lru_cache(maxsize=1024)(_prove)


def _count_keys(kind: bytes, pattern: re.Pattern[bytes], symbols: bytes) -> int:
    """How many dict keys and set members have this symbol."""
    keys = 0
    for match in pattern.finditer(symbols):
        items, others = match.groups()
        keys += (items or b"")[::2].count(kind) + (others or b"").count(kind)
    return keys


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
