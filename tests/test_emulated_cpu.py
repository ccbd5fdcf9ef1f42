"""A weaker processor, in a time of the test's own."""

from __future__ import annotations

import pytest

from task_offload.emulated_cpu import EmulatedCpu


class Time:
    """Clocks that only the test moves; `sleep` tells how long was waited, and moves none."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 5.0
        self.slept: list[float] = []

    def pass_(self, seconds: float, cpu_s: float) -> None:
        self.now += seconds
        self.cpu += cpu_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def core(time: Time) -> EmulatedCpu:
    return EmulatedCpu(10.0, lambda: time.now, lambda: time.cpu, time.slept.append)


def test_work_takes_so_many_times_longer(time: Time, core: EmulatedCpu) -> None:
    with core.work():
        time.pass_(0.02, cpu_s=0.02)
    assert time.slept == pytest.approx([0.18])


def test_waiting_is_not_stretched(time: Time, core: EmulatedCpu) -> None:
    with core.work():
        time.pass_(3.0, cpu_s=0.0)
        time.pass_(0.02, cpu_s=0.02)
    assert time.slept == pytest.approx([0.18])


def test_work_of_two_threads_never_overlaps(time: Time, core: EmulatedCpu) -> None:
    with core.work(), core.work():  # both done at once, where the real machine has two cores
        time.pass_(0.02, cpu_s=0.02)
    assert time.slept == pytest.approx([0.18, 0.38])


def test_waiting_leaves_the_core_to_others(time: Time, core: EmulatedCpu) -> None:
    with core.work():
        with core.work():
            time.pass_(0.02, cpu_s=0.02)
        assert time.slept == pytest.approx([0.18])
        time.pass_(3.0, cpu_s=-0.02)  # the outer one stands for another thread, which has used no CPU
        time.pass_(0.01, cpu_s=0.01)
    assert time.slept == pytest.approx([0.18, 0.09])


def test_a_sleep_that_takes_too_long_costs_the_next_work_nothing(time: Time, core: EmulatedCpu) -> None:
    with core.work():
        time.pass_(0.02, cpu_s=0.02)
    time.pass_(0.19, cpu_s=0.0)  # 10 ms more than asked for
    with core.work():
        time.pass_(0.0, cpu_s=0.0)
    assert time.slept == pytest.approx([0.18])


def test_an_error_passes_through(time: Time, core: EmulatedCpu) -> None:
    with pytest.raises(KeyError), core.work():
        raise KeyError
    with core.work():
        time.pass_(0.02, cpu_s=0.02)
    assert time.slept == pytest.approx([0.18])
