"""What the benchmarks share: processes that do as they are told, medians, and tables with their bars.

Machines are noisy, so figures of two runs are never compared. A benchmark runs what it compares in turn, forwards and
backwards (A B B A ...), and compares round by round: the median of the ratios counts.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


class Peer:
    """A process of its own that waits for calls, so that what it imported and warmed up stays.

    `target` runs in it with a `Connection` as first argument, and ends when that says None.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_quietly, args=(target, theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, *message: Any) -> None:
        self._pipe.send(message)

    def answer(self) -> Any:
        """The next thing it says. Raises EOFError if it died; its traceback is on stderr."""
        return self._pipe.recv()

    def ask(self, *message: Any) -> Any:
        self.tell(*message)
        return self.answer()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(20)


def _quietly(target: Callable[..., None], pipe: Connection, *args: Any) -> None:
    """Runs `target` without what it prints for its users, and ends the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    target(pipe, *args)
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end aborts where a thread is still in OpenCV, as the forerunner's are


def calls(pipe: Connection) -> Iterator[tuple[Any, ...]]:
    """What the other end tells, until it says None."""
    while (message := pipe.recv()) is not None:
        yield message


def in_turn(contenders: Sequence[T], rounds: int) -> Iterator[T]:
    """Each contender once a round, in an order that turns round."""
    for number in range(rounds):
        yield from contenders if number % 2 == 0 else reversed(contenders)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ours by theirs over the rounds that both have run: a benchmark may have been stopped in one."""
    return median(a / b for a, b in zip(ours, theirs, strict=False))


def verdict(ratio: float, at_least: float | None = None, at_most: float | None = None) -> str:
    """A ratio beside its bar."""
    met = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)
    bar = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return f"{ratio:.2f} ({bar}: {'met' if met else 'MISSED'})"


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a Markdown table whose columns are aligned."""
    texts = [list(head), *([each if isinstance(each, str) else f"{each:,.0f}" for each in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    texts.insert(1, ["-" * width for width in widths])
    for row in texts:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)
