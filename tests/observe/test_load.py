from pathlib import Path

from task_offload.observe.load import DelayMeter


def thread(tasks: Path, number: int, ran_ns: int, waited_ns: int) -> None:
    (tasks / str(number)).mkdir(exist_ok=True)
    (tasks / str(number) / "schedstat").write_text(f"{ran_ns} {waited_ns} 7\n")


def test_delays_of_all_threads_since_the_call_before(tmp_path: Path) -> None:
    thread(tmp_path, 1, 10, 1_000_000_000)
    meter = DelayMeter(tmp_path)
    thread(tmp_path, 1, 20, 1_500_000_000)
    thread(tmp_path, 2, 5, 250_000_000)
    assert meter.measure() == 0.75
    assert meter.measure() == 0.0


def test_a_thread_that_has_ended(tmp_path: Path) -> None:
    thread(tmp_path, 1, 10, 0)
    thread(tmp_path, 2, 10, 500)
    meter = DelayMeter(tmp_path)
    (tmp_path / "2" / "schedstat").unlink()
    thread(tmp_path, 1, 10, 2_000_000_000)
    assert meter.measure() == 2.0


def test_a_system_that_does_not_count_them(tmp_path: Path) -> None:
    assert DelayMeter(tmp_path / "nothing").measure() is None
    thread(tmp_path, 1, 0, 0)
    assert DelayMeter(tmp_path).measure() is None


def test_this_process() -> None:
    delay_s = DelayMeter().measure()
    assert delay_s is None or delay_s >= 0.0
