"""Messages that wait on the device's disk for the cloud. In: messages in sequence order. Out: the same, in any run.

A message is one record of a segment file (`spool_format`), written at once, so it survives the death of the process.
A thread syncs the files to the disk every second: a power cut costs what came in the last second, and the record that
it tore is cut off cleanly. A segment is deleted when all its messages are forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from task_offload.errors import ConfigError, StoreError
from task_offload.spool_format import (
    MAX_MESSAGE_BYTES,
    MAX_META_BYTES,
    RECORD_HEAD_BYTES,
    file_name,
    is_torn,
    is_torn_segment_head,
    pack_record_head,
    pack_segment_head,
    parse_file_name,
    read_body,
    read_record_head,
    read_segment_head,
    walk,
)

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 4 * 1024 * 1024  # space comes back in such pieces, or in 1/16 of a smaller limit
SYNC_INTERVAL_S: Final = 1.0

_MAX_BUFFERS: Final = 512  # of one writev; Linux takes 1024
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

Buffer = bytes | bytearray | memoryview


class SpoolFull(StoreError):
    """The spool has reached its limit, or its disk is full. Nothing of the message is kept; later ones may fit."""


class Spooled(NamedTuple):
    """A message read back.

    Attributes:
        sequence: of its first item.
        items: how many items it tells of, with the sequences from there on.
        message: as it was given to `append`, joined.
    """

    sequence: int
    items: int
    message: bytearray


class SpooledSession(NamedTuple):
    """What the spool holds of a session.

    Attributes:
        session: 32 hexadecimal digits.
        meta: as it was given to `begin`.
        items: how many items wait.
        first, end: sequence of the first of them, and the one after the last.
    """

    session: str
    meta: bytes
    items: int
    first: int
    end: int


@dataclass
class _Segment:
    path: Path
    number: int
    begin: int  # bytes of its head
    crc: int  # of its head
    size: int  # valid bytes; a reader goes no further
    file_bytes: int
    first: int = 0
    end: int = 0
    items: int = 0  # not forgotten
    index: deque[tuple[int, int]] | None = None  # (end, items) of each record that is not forgotten


@dataclass
class _Session:
    meta: bytes
    segments: deque[_Segment] = field(default_factory=deque)
    end: int = 0
    begun: bool = False  # by this process, which may append more


class DiskSpool:
    """A bounded spool in a folder, which one process owns.

    One thread at a time may append, while others read and forget. Appending holds no lock that those need.

    Arguments:
        folder: made if it is not there. Sessions of earlier runs are found in it.
        limit_bytes: how much the segment files may take together.

    Raises:
        ConfigError: another process uses the folder.
        StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._segment_bytes = min(SEGMENT_BYTES, limit_bytes // 16)
        self._lock = threading.Lock()  # over the books below; no file is written or synced under it
        self._appending = threading.Lock()  # over the tail; taken before _lock
        self._sessions: dict[str, _Session] = {}
        self._size = 0
        self._items = 0
        self._damaged: set[tuple[str, str]] = set()
        self._number = 0
        self._tail: _Segment | None = None
        self._tail_of = ""
        self._tail_file = -1
        self._unsynced: list[int] = []  # files of ended segments
        self._dirty = self._new_files = self._sync_failed = False
        self._stop = threading.Event()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"spool {folder}: {error.strerror}; name a folder that you can write") from error
        try:
            _lock_folder(self._lock_file, folder)
            self._find_segments()
        except OSError as error:
            os.close(self._lock_file)
            raise StoreError(f"spool {folder}: {error.strerror}; check its files, or name another folder") from error
        except ConfigError:
            os.close(self._lock_file)
            raise
        self._syncer = threading.Thread(target=self._sync_on, name="spool sync", daemon=True)
        self._syncer.start()

    @property
    def size_bytes(self) -> int:
        """Bytes that the segment files take."""
        return self._size

    @property
    def items(self) -> int:
        """Items that wait, of all sessions."""
        return self._items

    def sessions(self) -> list[SpooledSession]:
        """The sessions with items that wait, oldest first."""
        with self._lock:
            return [
                SpooledSession(name, s.meta, sum(g.items for g in s.segments), s.segments[0].first, s.segments[-1].end)
                for name, s in self._sessions.items()
                if any(g.items for g in s.segments)
            ]

    def begin(self, session: str, meta: bytes) -> None:
        """Makes a session known, before its first message.

        Arguments:
            session: 32 hexadecimal digits.
            meta: what is needed to continue it in a later run; the spool gives it back as it is.
        """
        if not re.fullmatch("[0-9a-f]{32}", session) or len(meta) > MAX_META_BYTES:
            raise ValueError(f"a session is 32 hexadecimal digits, its meta has at most {MAX_META_BYTES} bytes")
        with self._lock:
            self._sessions.setdefault(session, _Session(meta)).begun = True

    def append(self, session: str, sequence: int, message: Sequence[Buffer], items: int = 1) -> None:
        """Keeps a message. When it returns, the message survives the death of the process.

        Arguments:
            session: one that `begin` named.
            sequence: of the message's first item; above all that the session appended before.
            message: its parts; they are written as they lie.
            items: how many items it tells of, with the sequences from there on.

        Raises:
            SpoolFull: the limit or the disk leaves no room. Nothing is kept.
            StoreError: the disk fails. Nothing is kept.
        """
        parts = [memoryview(part).cast("B") for part in message if memoryview(part).nbytes]
        length = sum(map(len, parts))
        with self._appending:
            with self._lock:
                state = self._sessions[session]
                if sequence < state.end:
                    raise ValueError(f"sequence {sequence} comes after {state.end - 1}")
            if length > MAX_MESSAGE_BYTES:
                raise SpoolFull(f"spool {self._folder}: a message of {length} bytes is too long")
            record_bytes = RECORD_HEAD_BYTES + length
            segment_head = self._segment_head_for(session, state, record_bytes)
            if self._size + len(segment_head) + record_bytes > self._limit:
                raise SpoolFull(f"spool {self._folder}: its limit of {self._limit} bytes is reached")
            try:
                if segment_head:
                    self._begin_segment(session, state, segment_head)
                segment = self._tail
                assert segment is not None
                head = pack_record_head(segment.crc, sequence, items, parts)
                self._write(segment, [memoryview(head), *parts])
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise SpoolFull(f"spool {self._folder}: its disk is full; make room") from error
                raise StoreError(f"spool {self._folder}: {error.strerror}; check the disk") from error
            with self._lock:
                if not segment.items:
                    segment.first = sequence
                segment.size += record_bytes
                segment.file_bytes = segment.size
                segment.end = state.end = sequence + items
                segment.items += items
                if segment.index is not None:
                    segment.index.append((segment.end, items))
                self._size += record_bytes
                self._items += items
                self._dirty = True

    def reader(self, session: str, sequence: int = 0) -> SpoolReader:
        """Reads a session's messages in order, beginning with the one that tells of `sequence` or comes after it."""
        return SpoolReader(self, session, sequence)

    def forget(self, session: str, watermark: int) -> None:
        """Forgets the session's items below the watermark. Space comes back when a whole segment is forgotten.

        The watermark itself is not kept: after a restart, some forgotten items of the oldest segment are back.
        """
        with self._lock:
            state = self._sessions.get(session)
            if state is None:
                return
            while state.segments and state.segments[0].end <= watermark:
                if state.segments[0] is self._tail and not self._end_tail_at_once():
                    break
                self._delete(state.segments.popleft())
            if state.segments:
                self._forget_in(state.segments[0], watermark)
            elif not state.begun:
                del self._sessions[session]

    def sync(self) -> None:
        """Writes to the disk what has been appended. A thread calls it every `SYNC_INTERVAL_S`."""
        files: list[int] = []
        try:
            with self._lock:
                if not self._dirty:
                    return
                tail = [os.dup(self._tail_file)] if self._tail_file >= 0 else []  # the tail may end meanwhile
                files, self._unsynced = self._unsynced + tail, []
                new_files, self._new_files = self._new_files, False
                self._dirty = False
            for file in files:
                os.fsync(file)
            if new_files:
                _sync_folder(self._folder)
            self._sync_failed = False
        except OSError as error:
            if not self._sync_failed:
                log.error("spool %s: %s; a power cut now may cost more than a second", self._folder, error.strerror)
            self._sync_failed = True
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Syncs and closes the spool; what waits stays for the next run."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._syncer.join()
        with self._appending, self._lock:
            self._end_tail()
        self.sync()
        os.close(self._lock_file)

    def __enter__(self) -> DiskSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sync_on(self) -> None:
        while not self._stop.wait(SYNC_INTERVAL_S):
            self.sync()

    def _segment_head_for(self, session: str, state: _Session, record_bytes: int) -> bytes:
        """The head of a new segment, if this record needs one."""
        tail = self._tail
        if tail is not None and self._tail_of == session and tail.size + record_bytes <= self._segment_bytes:
            return b""
        return pack_segment_head(self._number + 1, session, state.meta)

    def _begin_segment(self, session: str, state: _Session, head: bytes) -> None:
        with self._lock:
            self._end_tail()
            self._number += 1
            path = self._folder / file_name(self._number, session)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, head) < len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        crc = int.from_bytes(head[-4:], "little")
        start = state.end
        segment = _Segment(path, self._number, len(head), crc, len(head), len(head), start, start, index=deque())
        with self._lock:
            state.segments.append(segment)
            self._tail, self._tail_of, self._tail_file = segment, session, file
            self._size += len(head)
            self._new_files = self._dirty = True

    def _write(self, segment: _Segment, parts: list[memoryview]) -> None:
        """Appends to the tail's file, all or nothing."""
        try:
            while parts:
                written = os.writev(self._tail_file, parts[:_MAX_BUFFERS])
                while parts and written >= len(parts[0]):
                    written -= len(parts.pop(0))
                if written:
                    parts[0] = parts[0][written:]
        except OSError:
            try:
                os.ftruncate(self._tail_file, segment.size)
                os.lseek(self._tail_file, segment.size, os.SEEK_SET)
            except OSError:
                with self._lock:
                    self._end_tail()  # a torn record is at its end; opening finds it
            raise

    def _end_tail(self) -> None:
        if self._tail_file >= 0:
            self._unsynced.append(self._tail_file)
            self._dirty = True
        if self._tail is not None and self._tail is not self._sessions[self._tail_of].segments[0]:
            self._tail.index = None  # read again when it becomes the oldest
        self._tail, self._tail_of, self._tail_file = None, "", -1

    def _end_tail_at_once(self) -> bool:
        """Ends the tail, unless a message is being appended to it."""
        if not self._appending.acquire(blocking=False):
            return False
        try:
            self._end_tail()
        finally:
            self._appending.release()
        return True

    def _delete(self, segment: _Segment) -> None:
        self._size -= segment.file_bytes
        self._items -= segment.items
        segment.items = 0
        with contextlib.suppress(OSError):
            segment.path.unlink()

    def _forget_in(self, segment: _Segment, watermark: int) -> None:
        if watermark <= segment.first:
            return
        if segment.index is None:
            segment.index = self._read_index(segment)
        while segment.index and segment.index[0][0] <= watermark:
            items = segment.index.popleft()[1]
            segment.items -= items
            self._items -= items
        segment.first = watermark

    def _read_index(self, segment: _Segment) -> deque[tuple[int, int]]:
        try:
            with segment.path.open("rb", buffering=0) as file:
                heads = walk(file.fileno(), segment.begin, segment.size, segment.crc)
                return deque((head.sequence + head.items, head.items) for head in heads)
        except OSError as error:
            log.error("spool %s: %s: %s", self._folder, segment.path.name, error.strerror)
            return deque()

    def _find_segments(self) -> None:
        """Opening: reads the heads in every segment file, oldest first."""
        found = sorted((name, path) for path in self._folder.iterdir() if (name := parse_file_name(path.name)))
        newest = {session: number for (number, session), _ in found}
        for (number, session), path in found:
            self._number = number
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._find_segment(path, file, session, newest[session] == number)
            finally:
                os.close(file)

    def _find_segment(self, path: Path, file: int, session: str, newest: bool) -> None:
        file_bytes = os.fstat(file).st_size
        segment_head = read_segment_head(file, self._number, session)
        if segment_head is None:
            if not (newest and is_torn_segment_head(file)):
                self.report_damage(path, "all of it")
            path.unlink()
            return
        begin = segment_head.size_bytes
        segment = _Segment(path, self._number, begin, segment_head.crc, begin, file_bytes)
        for head in walk(file, begin, file_bytes, segment.crc):
            if not segment.items:
                segment.first = head.sequence
            segment.end = head.sequence + head.items
            segment.items += head.items
            segment.size = head.end
        if segment.size < file_bytes:
            if newest and is_torn(file, segment.size, segment.crc):
                log.info("spool %s: cut a torn message off %s", self._folder, path.name)
                os.ftruncate(file, segment.size)
                segment.file_bytes = segment.size
            else:
                self.report_damage(path, f"what follows byte {segment.size}")
        if not segment.items:
            path.unlink()
            return
        state = self._sessions.setdefault(session, _Session(segment_head.meta))
        state.segments.append(segment)
        state.end = max(state.end, segment.end)
        self._size += segment.file_bytes
        self._items += segment.items

    def report_damage(self, path: Path, what: str) -> None:
        """Logs a damaged place, once, for the spool's readers too."""
        place = (path.name, what)
        if place not in self._damaged:  # a reader may come by again
            log.error("spool %s: %s is damaged; skipped %s", self._folder, path.name, what)
            self._damaged.add(place)

    def segment_after(self, session: str, number: int) -> tuple[_Segment, int, bool] | None:
        """For readers: the session's first segment above a number, its valid bytes, and whether it may grow."""
        with self._lock:
            state = self._sessions.get(session)
            for segment in state.segments if state else ():
                if segment.number > number:
                    return segment, segment.size, segment is self._tail
        return None


class SpoolReader:
    """Reads a session's messages in order. It sees what is appended while it reads; use it from one thread."""

    def __init__(self, spool: DiskSpool, session: str, sequence: int) -> None:
        self._spool = spool
        self._session = session
        self._sequence = sequence
        self._segment: _Segment | None = None
        self._done = 0  # number of the last segment that was read to its end
        self._file = -1
        self._offset = 0

    def next(self) -> Spooled | None:
        """The next message, or None where there is none now; later there may be.

        Raises:
            StoreError: the disk fails. What it failed on is tried again by the next call.
        """
        while True:
            found = self._spool.segment_after(self._session, self._done)
            if found is None:
                return None
            segment, size, grows = found
            try:
                if segment is not self._segment and not self._open(segment):
                    continue
                if self._offset < size:
                    spooled = self._read(segment, size)
                    if spooled is not None:
                        return spooled
                elif grows:
                    return None
                else:
                    self._done = segment.number
            except OSError as error:
                raise StoreError(f"spool {segment.path}: {error.strerror}; check the disk") from error

    def close(self) -> None:
        """Closes the file that it reads."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._segment = -1, None

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, segment: _Segment) -> bool:
        self.close()
        try:
            self._file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # forgotten meanwhile, or removed by somebody
            self._done = segment.number
            return False
        self._segment = segment
        self._offset = segment.begin
        return True

    def _read(self, segment: _Segment, size: int) -> Spooled | None:
        """The record at the offset; None if it is to be skipped."""
        head = read_record_head(self._file, self._offset, size, segment.crc)
        if head is None:
            self._spool.report_damage(segment.path, f"what follows byte {self._offset}")
            self._done = segment.number
            return None
        begin, self._offset = self._offset, head.end
        if head.sequence + head.items <= self._sequence:
            return None
        message = read_body(self._file, head)
        if message is None:
            self._spool.report_damage(segment.path, f"the message at byte {begin}")
            return None
        return Spooled(head.sequence, head.items, message)


def _lock_folder(lock_file: int, folder: Path) -> None:
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"--spool {folder}: another device process uses it; give each its own folder") from error


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
