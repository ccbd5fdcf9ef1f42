from pathlib import Path

import pytest

from task_offload.observe.load import DelayMeter, Delays


def thread(tasks: Path, number: int, ran_ns: int, waited_ns: int) -> None:
    (tasks / str(number)).mkdir(exist_ok=True)
    (tasks / str(number) / "schedstat").write_text(f"{ran_ns} {waited_ns} 7\n")


def test_delays_of_all_threads_since_the_call_before(tmp_path: Path) -> None:
    thread(tmp_path, 1, 10, 1_000_000_000)
    meter = DelayMeter(tmp_path)
    thread(tmp_path, 1, 20, 1_500_000_000)
    thread(tmp_path, 2, 5, 250_000_000)
    delays = meter.measure()
    assert delays is not None
    assert delays.seconds == 0.75
    assert delays.threads == pytest.approx(0.75**2 / (0.5**2 + 0.25**2))
    assert meter.measure() == Delays(0.0, 1.0)


def test_a_thread_that_has_ended(tmp_path: Path) -> None:
    thread(tmp_path, 1, 10, 0)
    thread(tmp_path, 2, 10, 500)
    meter = DelayMeter(tmp_path)
    (tmp_path / "2" / "schedstat").unlink()
    thread(tmp_path, 1, 10, 2_000_000_000)
    assert meter.measure() == Delays(2.0, 1.0)


def test_a_system_that_does_not_count_them(tmp_path: Path) -> None:
    assert DelayMeter(tmp_path / "nothing").measure() is None
    thread(tmp_path, 1, 0, 0)
    assert DelayMeter(tmp_path).measure() is None


def test_this_process() -> None:
    delays = DelayMeter().measure()
    assert delays is None or (delays.seconds >= 0.0 and delays.threads >= 1.0)
