"""What people read: lines on stdout, and whether somebody still reads them; on stderr, why a command failed."""

from __future__ import annotations

import io
import os
import sys

from task_offload.errors import OffloadError, StoreError


def prepare() -> None:
    """Call it before any file is opened.

    A standard descriptor that is closed becomes /dev/null: a file that got its number would get what is said there.
    A character that the terminal lacks is replaced, so that a task which prints one does not fail.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            lowest_free = os.open(os.devnull, os.O_RDWR)  # which is this number
            os.set_inheritable(lowest_free, True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def is_journal() -> bool:
    """Whether stdout goes to systemd's journal."""
    try:
        found = os.fstat(1)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def say(text: str) -> bool:
    """One line, at once. False if its reader has gone (`| head`); where a disk is full, only the line is lost."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard()
        return False
    except OSError:
        pass
    return True


def deliver(text: str) -> None:
    """What the command was run for. Raises StoreError if it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        _discard()
        raise StoreError(f"the output cannot be written ({os.strerror(error.errno or 0)}); run it again") from error


def complain(program: str, error: OffloadError) -> None:
    """Why a command failed, on stderr: one line, though the text of an app's own error may have several."""
    print(f"{program}: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)


def finish() -> None:
    """Writes what is still buffered, and lets the interpreter find nothing that it could not write."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _discard()


def _discard() -> None:
    """What is written from now on, by tasks too, goes nowhere and fails nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
