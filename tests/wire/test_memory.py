import threading

import numpy as np
import pytest

from task_offload.wire.memory import ALIGNMENT, MemoryPool


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


@pytest.mark.parametrize("size", [0, 1, 64, 4095, 4096, 4097, 10_000, 421_504, 1 << 20, (1 << 20) + 1])
def test_memory_is_writable_flat_and_aligned(size):
    view = MemoryPool(1 << 24).take(size)
    assert (view.nbytes, view.format, view.ndim, view.readonly) == (size, "B", 1, False)
    if size:
        assert address(view) % ALIGNMENT == 0
        view[-1] = 7


def test_memory_is_used_again_after_its_last_user():
    pool = MemoryPool(1 << 20)
    view = pool.take(100_000)
    where = address(view)
    assert address(pool.take(100_000)) != where
    del view
    assert address(pool.take(100_000)) == where


@pytest.mark.parametrize(
    "use",
    [
        lambda view: view[100:200],
        lambda view: np.frombuffer(view, np.uint8),
        lambda view: np.frombuffer(view, np.uint8)[::2][5:].reshape(1, -1),
        lambda view: np.ndarray((10, 10), "<f8", view, 64),
        lambda view: np.ndarray((10, 10), "<f8", view, 64).T.view(np.int64)[3:],
        lambda view: np.ndarray((10, 10), "<f8", view[64:]).data,
        lambda view: np.asarray(view),
    ],
)
def test_every_kind_of_user_keeps_it(use):
    pool = MemoryPool(1 << 20)
    user = use(pool.take(100_000))
    assert pool.free_bytes == 0
    del user
    assert pool.free_bytes >= 100_000


def test_free_memory_is_limited():
    pool = MemoryPool(250_000)
    views = [pool.take(100_000) for _ in range(5)]
    views.clear()
    assert 200_000 <= pool.free_bytes <= 250_000
    big = pool.take(1_000_000)
    del big
    assert pool.free_bytes <= 250_000


def test_what_nobody_has_needed_since_the_trim_before_is_released():
    pool = MemoryPool(1 << 24)
    views = [pool.take(4096) for _ in range(5)]
    large = pool.take(100_000)
    views.clear()
    del large
    pool.trim()
    assert pool.free_bytes > 5 * 4096 + 100_000  # there was no call before
    for _ in range(3):
        both = pool.take(4096), pool.take(4096)
        del both
    pool.trim()
    assert pool.free_bytes == 2 * 4096
    last = pool.take(4096)
    pool.trim()
    assert pool.free_bytes == 0  # the other one was free all the time
    del last
    pool.trim()
    assert pool.free_bytes == 4096
    pool.trim()
    assert pool.free_bytes == 0


def test_a_pool_of_nothing_still_lends():
    pool = MemoryPool(0)
    pool.take(1000)
    assert pool.free_bytes == 0


@pytest.mark.parametrize("size", [5000, 65_536, 65_537, 421_504, 1_000_001])
def test_sizes_are_rounded_by_an_eighth_at_most(size):
    pool = MemoryPool(1 << 30)
    pool.take(size)
    assert size <= pool.free_bytes <= size * 9 / 8


def test_threads_never_share_memory():
    pool = MemoryPool(1 << 22)
    spoiled = []

    def work(mark: int) -> None:
        for round_ in range(300):
            view = pool.take(5000 + round_)
            array = np.frombuffer(view, np.uint8)
            array[:] = mark
            del view
            if not (array == mark).all():
                spoiled.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not spoiled
    assert 0 < pool.free_bytes <= 8 * 6 * 6000
