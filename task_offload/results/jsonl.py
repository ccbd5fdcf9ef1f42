"""A sink that appends every row to a file, one JSON object a line. In: rows. Out: lines, whole ones only."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from task_offload.errors import StoreError
from task_offload.results.base import Row

_MAX_TAIL: Final = 128 * 1024  # a torn last line is shorter: a result has 64 KiB at most


class JsonlSink:
    """Results as JSON lines. Where the file was moved away (logrotate), a new one is begun.

    Arguments:
        path: the file; made if it is not there. A torn last line, left by a crash, is cut off. A pipe or a terminal,
            as /dev/stdout may be, is written to as it is.

    Raises:
        StoreError: the file cannot be written, or nobody reads from the pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._open()

    @property
    def name(self) -> str:
        return f"jsonl:{self._path}"

    def write(self, rows: Sequence[Row]) -> None:
        """Appends a line for each row.

        Raises:
            StoreError: none of the lines is in the file.
        """
        lines = "".join(map(json_line, rows)).encode()
        self._reopen_if_moved()
        try:
            size = os.fstat(self._file).st_size
            try:
                done = 0
                while done < len(lines):
                    done += os.write(self._file, memoryview(lines)[done:])
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)
                raise
        except OSError as error:
            raise StoreError(f"{self.name}: {error.strerror}; make room or check its folder") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        try:
            if self._path.exists() and not self._path.is_file():
                self._file = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no reader
                os.set_blocking(self._file, True)
                return
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._cut_torn_line()
        except OSError as error:
            self.close()
            raise StoreError(f"{self.name}: {error.strerror}; name a file that you can write") from error

    def _reopen_if_moved(self) -> None:
        try:
            there = self._file >= 0 and os.path.samestat(self._path.stat(), os.fstat(self._file))
        except OSError:
            there = False
        if not there:
            self.close()
            self._open()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        begin = max(0, size - _MAX_TAIL)
        tail = os.pread(self._file, size - begin, begin)
        kept = tail.rfind(b"\n") + 1
        if tail[kept:].startswith(_LINE_BEGIN[: len(tail) - kept]):  # anything else is not ours to cut
            os.ftruncate(self._file, begin + kept)
        else:
            os.write(self._file, b"\n")


_LINE_BEGIN: Final = b'{"device":'


def json_line(row: Row) -> str:
    """A row as a JSON object with a line end: the columns of the table `items`, the result as JSON, not as text."""
    columns = row._asdict()
    result = columns.pop("result")
    text = json.dumps(columns, separators=(",", ":"))
    return f'{text[:-1]},"result":{"null" if result is None else result}}}\n'
