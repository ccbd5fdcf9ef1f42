"""The coordinator with each engine, as real processes: the same results in order, and nothing left at its end."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.apps import expected_of_counter
from tests.support.processes import Lab, check_order
from tests.support.shared_memory import left_of, mapped_by


@pytest.mark.parametrize(("split", "end"), [("1", signal.SIGINT), ("3", signal.SIGTERM)])
def test_processes_give_the_same_results_and_end_with_their_server(lab: Lab, split: str, end: signal.Signals) -> None:
    server = lab.server("counter", "--no-tls", "--engine", "processes", "--workers", "2")
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) >= 2
    lab.device("counter", split, "--no-tls", port=server.port, env={"COUNT": "60"}).finish()
    # As a terminal and systemd do it: to the server and to its workers.
    for each in [*children, psutil.Process(server.pid)]:
        each.send_signal(end)
    server.wait(0)
    rows = server.rows()
    check_order(rows)
    ended = [(row["sequence"], row["ending"], row["detail"], row["result"]) for row in rows]
    assert ended == [(n, *expected_of_counter(n, "device")) for n in range(60)]
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_workers_end_when_their_server_is_killed(lab: Lab) -> None:
    server = lab.server("typed", "--no-tls", "--engine", "processes", "--workers", "2")
    children = psutil.Process(server.pid).children(recursive=True)
    lab.device("typed", "1", "--no-tls", port=server.port).finish()
    shared = mapped_by(psutil.Process(server.pid))
    assert shared
    server.kill()
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert left_of(shared) == set()
