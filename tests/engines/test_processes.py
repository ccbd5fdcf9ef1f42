"""A worker in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from task_offload.engines.base import Lane, Unit, WorkerLostError
from task_offload.engines.processes import ProcessWorker
from task_offload.task import Item, load_app
from task_offload.wire.codec import Encoder
from tests.support.processes import ROOT, clean_environment


def double(number: int) -> Unit:
    return unit(number, "double", number)


def unit(number: int, *deed: object) -> Unit:
    head = Encoder().encode(deed).head
    return Unit(Lane(), Item("device", "0" * 32, number, 0.0, 1), head, None, 0, None)


def test_replies_that_nobody_read_are_not_those_of_the_next_units() -> None:
    worker = ProcessWorker(load_app("tests.engines.deeds"), timeout_s=60.0)
    try:
        worker.wait()
        run = worker.run([double(1), double(2)])
        next(run)
        run.close()  # as any error does that ends it half-way
        worker.wait()
        (done,) = worker.run([double(3)])
        assert done.outcome.value[-1] == 6
    finally:
        worker.close()


def test_a_kill_that_comes_too_late_for_its_unit_is_no_timeout_of_the_next() -> None:
    worker = ProcessWorker(load_app("tests.engines.deeds"), timeout_s=60.0)
    try:
        worker.wait()
        run = worker.run([double(1), unit(2, "hang", 0)])
        next(run)
        worker.kill()
        with pytest.raises(WorkerLostError):
            next(run)
    finally:
        worker.close()


STARTER = """
import signal, sys
from pathlib import Path
from task_offload.engines.processes import ProcessWorker
from task_offload.task import load_app

if __name__ == "__main__":
    worker = ProcessWorker(load_app("tests.engines.deeds"), timeout_s=60.0)
    worker.wait()
    worker.close()
else:  # a worker's process, on its way to its work
    Path(sys.argv[1]).write_text(str(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""


def test_the_first_worker_of_a_server_does_not_hear_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    script, deaf = tmp_path / "starter.py", tmp_path / "deaf"
    script.write_text(STARTER)
    subprocess.run([sys.executable, str(script), str(deaf)], check=True, cwd=ROOT, env=clean_environment(tmp_path))
    assert deaf.read_text() == "True"
