"""The chain that `chaos` runs: every item's end can be told from its sequence. In: --source rate. Out: checksums.

Each captured item is written to the file CAPTURED before it goes on, so that the truth outlives a kill -9.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np

from task_offload.task import current_item

_captured = -1


def open_source(source: str | None) -> float | None:
    """`rate:N` is a file of N items a second, `live:N` a live source."""
    global _captured
    _captured = os.open(os.environ["CAPTURED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    return float((source or "rate:100").partition(":")[2])


def payload(sequence: int) -> np.ndarray:
    """A large array now and then, a small one otherwise, never the same."""
    size = 150_000 if sequence % 25 == 7 else 50 + sequence % 200
    return np.random.default_rng(sequence).integers(0, 256, size, np.uint8)


def capture():
    item = current_item()
    os.write(_captured, f"{item.session} {item.sequence}\n".encode())
    return True, (item.sequence, payload(item.sequence))


def check(number, data):
    if number % 11 == 5:
        raise ValueError("meant to fail")
    return True, (number, data, zlib.crc32(data))


def keep_most(number, data, checksum):
    return number % 7 != 3, (number, data, checksum)


def combine(number, data, checksum):
    return True, (number, checksum, int(data.sum(dtype=np.int64)))


def report(number, checksum, total):
    return True, [number, checksum, total]


tasks = [capture, check, keep_most, combine, report]


def expected(sequence: int) -> tuple[str, str | None, Any]:
    """How an item ends if nothing is in its way: ending, detail, result."""
    if sequence % 11 == 5:
        return "dropped", "task_error: check: ValueError: meant to fail", None
    if sequence % 7 == 3:
        return "filtered", "keep_most", None
    data = payload(sequence)
    return "completed", None, [sequence, zlib.crc32(data), int(data.sum(dtype=np.int64))]
