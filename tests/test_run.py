"""What both kinds of a device's run have: signals, and an end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from task_offload.config import DeviceConfig
from task_offload.run import Run
from task_offload.task import Chain, Contract, Task

SIGNAL_AT_EACH_LINE = """
import signal, sys
from task_offload.run import Signals

def wait_with_signal_at(line):
    signals = Signals()
    signals.listen()
    lines = 0
    def trace(frame, event, argument):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                signal.raise_signal(signal.SIGINT)
        return trace
    sys.settrace(trace)
    signals.wait(0.001)
    sys.settrace(None)
    assert signals.count == (lines >= line)
    assert signals.count == 0 or signals.wait(60.0)  # at once
    return signals.count

line = 1
while wait_with_signal_at(line):
    line += 1
print(line)
"""


def test_a_signal_at_any_moment_of_a_wait_is_no_deadlock() -> None:
    """The handler runs on the thread that waits, between any two of its steps."""
    ended = subprocess.run([sys.executable, "-c", SIGNAL_AT_EACH_LINE], stdout=subprocess.PIPE, timeout=60, text=True)
    assert ended.returncode == 0
    assert int(ended.stdout) > 3


def test_books_that_do_not_add_up_are_an_error_and_the_report_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = tmp_path / "run.json"
    run = Run(DeviceConfig(report=report), Chain("app", tuple(Task(name, print, Contract()) for name in "ab")))
    run.begin()
    run.books.captured, run.books.completed = 3, 2
    assert run.finish({}, None) == 1
    [told] = caplog.messages
    assert told.startswith(
        "the books do not add up, which is a bug of this program; please report it: Books(captured=3"
    )
    assert json.loads(report.read_text())["items"]["completed"] == 2
    run.books.filtered = 1
    assert run.finish({}, None) == 0
