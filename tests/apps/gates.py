"""Lets a test decide when a task goes on, and hear that it got there. Used by the apps beside it."""

import os
import select


class Gate:
    """A named pipe, whose path stands in an environment variable: each byte in it lets one item pass.

    Without the variable everything passes.
    """

    def __init__(self, variable: str) -> None:
        path = os.environ.get(variable)
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if path else None

    def wait(self) -> bool:
        """Waits for a byte. False if the test has closed the gate for good."""
        while self._file is not None:
            # Not for ever: a signal that comes right before a system call does not interrupt it, and `select` does not
            # tell of a gate that was closed before this side opened it.
            select.select([self._file], [], [], 0.1)
            try:
                return os.read(self._file, 1) != b""
            except BlockingIOError:
                pass
        return True


def say(*words: object) -> None:
    """Prints a line at once, for a test to wait for; only if LOUD is set."""
    if os.environ.get("LOUD"):
        os.write(1, (" ".join(map(str, words)) + "\n").encode())
