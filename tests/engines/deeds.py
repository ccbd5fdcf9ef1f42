"""An app whose second task does as its item says: the suite over all engines runs it, with and without state."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import numpy as np

from task_offload.picture import picture
from task_offload.task import current_item

IN_CHILD = "DEEDS_IN_CHILD"  # an environment variable: what the app does when it is imported elsewhere than in the test
let_go = threading.Event()  # ends the threads that hang

if os.environ.get("DEEDS_PID", str(os.getpid())) != str(os.getpid()):
    if os.environ.get(IN_CHILD) == "fail":
        raise RuntimeError("no such camera")
    if (mark := os.environ.get("DEEDS_DIE_ONCE")) and not Path(mark).exists():
        Path(mark).touch()
        os._exit(3)


class Box:
    """One without a width travels, and cannot be made again."""

    def __init__(self, width):
        if width <= 0:
            raise ValueError("a box has a width")
        self.width = width

    def __reduce__(self):
        return Box, (self.width,)


def take():
    return True, ()


def do(deed, value):
    if deed == "double":
        return True, (os.getpid(), threading.get_ident(), value * 2)
    if deed == "drop":
        return False
    if deed == "raise":
        raise ValueError(f"cannot do {value}")
    if deed == "return":
        return value
    if deed == "shape":
        return True, (picture(value + 1), value.shape)
    if deed == "die":
        os._exit(3)
    if deed == "die once":
        if not Path(value).exists():
            Path(value).touch()
            os._exit(3)
        return True, ("alive",)
    if deed == "hang and let nothing else run":
        re.match(r"(a+)+$", "a" * 40 + "b")
    if deed == "hang":
        let_go.wait(60)
        return True, ("late",)
    if deed == "sum":
        state = current_item().state
        state["sum"] = state.get("sum", 0) + value
        os.sched_yield()  # lets others in, if anything does
        return True, (os.getpid(), state["sum"])
    if deed == "large":
        return True, (np.full(value, 7, np.uint8),)
    if deed == "box":
        box = Box(1)
        box.width = value
        return True, (box,)
    raise AssertionError(deed)


def show(*args):
    return True, list(args)


tasks = [take, do, show]
payload_types = (Box,)
