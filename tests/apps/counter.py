"""Numbers through five tasks: one filters, all are pure, the result of a number can be told without running them.

COUNT ends the stream after so many items. CAPTURE_GATE, WORK_GATE and LAST_GATE hold items up. CAPTURE_MS is how long
the sensor takes, LABEL_MS the fourth task's CPU time.
"""

import itertools
import os
import time

from gates import Gate, say

from task_offload.task import current_item

_count = int(os.environ.get("COUNT", "0")) or None
_capture_s = float(os.environ.get("CAPTURE_MS", "0")) / 1e3
_label_s = float(os.environ.get("LABEL_MS", "0")) / 1e3
_numbers = itertools.count()
_gates = {}


def _wait(variable):
    # Opened on first use: only the side that runs the task has to find the pipe.
    if variable not in _gates:
        _gates[variable] = Gate(variable)
    return _gates[variable].wait()


def count():
    if not _wait("CAPTURE_GATE"):
        return False
    if _capture_s:
        time.sleep(_capture_s)
    number = next(_numbers)
    if _count is not None and number >= _count:
        return False
    say("count", number)
    return True, number


def square(number):
    return True, (number, number * number)


def keep_most(number, squared):
    return number % 3 != 2, (number, squared)


def label(number, squared):
    say("label", number)
    _wait("WORK_GATE")
    ends_s = time.thread_time() + _label_s
    while time.thread_time() < ends_s:
        pass
    return True, {"number": number, "label": f"{number}:{squared}"}


def report(labelled):
    _wait("LAST_GATE")
    item = current_item()
    say("report", item.device, item.sequence)
    return True, {**labelled, "device": item.device}


tasks = [count, square, keep_most, label, report]
