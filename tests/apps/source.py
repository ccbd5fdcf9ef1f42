"""A source with a rate, or a live one, or one that does not open, as --source says."""

import itertools

from gates import Gate, say

from task_offload.errors import SourceError

_numbers = itertools.count()
_gate = Gate("CAPTURE_GATE")
_work = Gate("WORK_GATE")
_limit = 40


def open_source(source):
    if source == "slow":
        print("opening", flush=True)
        _gate.wait()
    if source == "gone":
        raise SourceError("camera 7 does not open; is it plugged in?")
    if source == "raises":
        raise ZeroDivisionError("by accident")
    if source == "words":
        return "fast"
    if source == "nothing":
        return 0
    return float(source[5:]) if source and source.startswith("rate:") else None


def capture():
    if not _gate.wait():
        return False
    number = next(_numbers)
    if number >= _limit:
        return False
    if number == 20 and _dies:
        raise SourceError("the camera was unplugged and does not come back")
    say("capture", number)
    return True, number


_dies = False


def work(number):
    say("working", number)
    _work.wait()
    return True, number


def last(number):
    return True, number


tasks = [capture, work, last]
