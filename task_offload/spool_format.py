"""The spool's segment files: bytes on the disk. In: the parts of a message, or a file. Out: heads, messages.

    NUMBER-SESSION.spool   a segment: a head, then records; a session's segments follow each other by number
    segment head           magic 8s, version H, zero H, meta length I, number Q, session 16s, the meta,
                           CRC-32 of all that I
    record head            mark I, items I, sequence Q, body length I, CRC-32 of the body I, CRC-32 of this head I;
                           then the body

All little-endian. The CRC of a record's head begins with the CRC of its segment's head, so that a stale block of
another file is no record. A damaged body costs its record; after a damaged head nothing of the segment can be found.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_META_BYTES: Final = 64 * 1024
MAX_MESSAGE_BYTES: Final = 1024 * 1024 * 1024  # far above the wire's own limit; a wrong length goes no further

_SEGMENT_HEAD: Final = struct.Struct("<8sHHIQ16s")
_RECORD_HEAD: Final = struct.Struct("<IIQIII")
_CRC: Final = struct.Struct("<I")
_MAGIC: Final = b"OFFSPOOL"
_VERSION: Final = 1
_MARK: Final = 0x4C4F5053
_FILE_NAME: Final = re.compile(r"([0-9]{12})-([0-9a-f]{32})\.spool")

RECORD_HEAD_BYTES: Final = _RECORD_HEAD.size


class SegmentHead(NamedTuple):
    """What stands at the beginning of a segment: the session's meta, the head's CRC and its length."""

    meta: bytes
    crc: int
    size_bytes: int


class RecordHead(NamedTuple):
    """What stands before a message: where it begins and ends, its first sequence, and how many items it tells of."""

    body: int
    end: int
    sequence: int
    items: int
    body_crc: int


def file_name(number: int, session: str) -> str:
    return f"{number:012d}-{session}.spool"


def parse_file_name(name: str) -> tuple[int, str] | None:
    """Number and session of a segment; None if the file is none."""
    match = _FILE_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def pack_segment_head(number: int, session: str, meta: bytes) -> bytes:
    head = _SEGMENT_HEAD.pack(_MAGIC, _VERSION, 0, len(meta), number, bytes.fromhex(session)) + meta
    return head + _CRC.pack(zlib.crc32(head))


def read_segment_head(file: int, number: int, session: str) -> SegmentHead | None:
    """The head at the beginning of a file; None if it is damaged, or another file's."""
    raw = os.pread(file, _SEGMENT_HEAD.size, 0)
    if len(raw) < _SEGMENT_HEAD.size:
        return None
    magic, version, _, meta_bytes, its_number, its_session = _SEGMENT_HEAD.unpack(raw)
    if (magic, version, its_number, its_session.hex()) != (_MAGIC, _VERSION, number, session):
        return None
    if meta_bytes > MAX_META_BYTES:
        return None
    rest = os.pread(file, meta_bytes + _CRC.size, len(raw))
    meta, tail = rest[:meta_bytes], rest[meta_bytes:]
    crc = zlib.crc32(meta, zlib.crc32(raw))
    if tail != _CRC.pack(crc):
        return None
    return SegmentHead(meta, crc, len(raw) + len(rest))


def is_torn_segment_head(file: int) -> bool:
    """Whether a damaged segment head is one that a crash cut short."""
    raw = os.pread(file, _SEGMENT_HEAD.size, 0)
    if len(raw) < _SEGMENT_HEAD.size or not any(raw):
        return True
    meta_bytes = _SEGMENT_HEAD.unpack(raw)[3]
    return bool(meta_bytes <= MAX_META_BYTES and os.fstat(file).st_size < len(raw) + meta_bytes + _CRC.size)


def pack_record_head(segment_crc: int, sequence: int, items: int, parts: list[memoryview]) -> bytes:
    body_crc = 0
    for part in parts:
        body_crc = zlib.crc32(part, body_crc)
    length = sum(map(len, parts))
    head = _RECORD_HEAD.pack(_MARK, items, sequence, length, body_crc, 0)[: -_CRC.size]
    return head + _CRC.pack(zlib.crc32(head, segment_crc))


def read_record_head(file: int, offset: int, size: int, segment_crc: int) -> RecordHead | None:
    """The head of the record at an offset; None if it is damaged, or the record does not end within `size`."""
    raw = os.pread(file, _RECORD_HEAD.size, offset)
    if len(raw) < _RECORD_HEAD.size:
        return None
    mark, items, sequence, length, body_crc, head_crc = _RECORD_HEAD.unpack(raw)
    if mark != _MARK or zlib.crc32(raw[: -_CRC.size], segment_crc) != head_crc:
        return None
    body = offset + _RECORD_HEAD.size
    if length > MAX_MESSAGE_BYTES or body + length > size:
        return None
    return RecordHead(body, body + length, sequence, items, body_crc)


def read_body(file: int, head: RecordHead) -> bytearray | None:
    """A record's message; None if it is damaged."""
    message = bytearray(head.end - head.body)
    view = memoryview(message)
    offset = head.body
    while view:
        count = os.preadv(file, [view], offset)
        if count == 0:
            return None
        view = view[count:]
        offset += count
    return message if zlib.crc32(message) == head.body_crc else None


def walk(file: int, begin: int, size: int, segment_crc: int) -> Iterator[RecordHead]:
    """The head of every record, up to the first that is damaged."""
    while begin < size:
        head = read_record_head(file, begin, size, segment_crc)
        if head is None:
            return
        yield head
        begin = head.end


def is_torn(file: int, offset: int, segment_crc: int) -> bool:
    """Whether what lies at an offset is a record that a crash cut short, and not one that was damaged later."""
    raw = os.pread(file, _RECORD_HEAD.size, offset)
    if len(raw) < _RECORD_HEAD.size or not any(raw):  # zeros: the file had grown, its data was not on the disk
        return True
    return read_record_head(file, offset, 2**63, segment_crc) is not None
