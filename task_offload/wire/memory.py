"""Memory to receive into. In: a size. Out: a writable memoryview whose memory is used again after its last user.

Fresh memory for each message costs more in page faults than the message costs otherwise, so memory is kept. It may
be used again only when no array refers to it: NumPy arrays keep alive what they were made on, so each piece of
memory is lent through an array of its own, and is given back when that array dies.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np

ALIGNMENT = 64  # a cache line, and the widest vector register
_SMALLEST = 4096
_STEPS = 8  # sizes per doubling: at most an eighth of a block is unused


class _Loan(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("block",)
    block: memoryview


class MemoryPool:
    """Lends memory and takes it back by itself. Threads may share it.

    Arguments:
        limit_bytes: free memory that is kept at most; what comes back beyond it is released.

    Attributes:
        free_bytes: memory that is kept and not lent.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._free: dict[int, list[memoryview]] = {}  # by size; what came back last is lent first
        self._unused: dict[int, int] = {}  # of each size, how many have been free ever since the last `trim`
        self.free_bytes = 0
        self._lent: dict[int, _Loan] = {}
        # Memory comes back wherever an array dies: that may be inside `take` itself.
        self._lock = threading.RLock()

    def take(self, size_bytes: int) -> memoryview:
        """Writable memory of this size, flat bytes, aligned to 64. Its content is arbitrary.

        It comes back when neither the view nor an array or view made on it is left.
        """
        block_bytes = _block_bytes(size_bytes)
        with self._lock:
            blocks = self._free.get(block_bytes)
            block = None
            if blocks:
                block = blocks.pop()
                self.free_bytes -= block_bytes
                if len(blocks) < self._unused.get(block_bytes, 0):
                    self._unused[block_bytes] = len(blocks)
        if block is None:
            block = _aligned(block_bytes)
        # NumPy lets a view refer to its base's base where both are plain arrays. The base of `owner` is a
        # memoryview, so that arrays made on `owner` refer to it and to nothing deeper.
        owner = np.frombuffer(block, np.uint8, size_bytes)
        loan = _Loan(owner, self._come_back)
        loan.block = block
        self._lent[id(loan)] = loan
        return owner.data

    def trim(self) -> None:
        """Releases what nobody has needed since the call before."""
        with self._lock:
            for block_bytes, blocks in list(self._free.items()):
                unused = self._unused.get(block_bytes, 0)
                del blocks[:unused]
                self.free_bytes -= unused * block_bytes
                self._unused[block_bytes] = len(blocks)
                if not blocks:
                    del self._free[block_bytes], self._unused[block_bytes]

    def _come_back(self, loan: weakref.ref[object]) -> None:
        del self._lent[id(loan)]
        block = loan.block  # type: ignore[attr-defined]
        with self._lock:
            if self.free_bytes + block.nbytes <= self._limit_bytes:
                self.free_bytes += block.nbytes
                self._free.setdefault(block.nbytes, []).append(block)


def _block_bytes(size_bytes: int) -> int:
    if size_bytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << ((size_bytes - 1).bit_length() - _STEPS.bit_length())
    return -(-size_bytes // step) * step


def _aligned(size_bytes: int) -> memoryview:
    memory = np.empty(size_bytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory.data[offset : offset + size_bytes]
