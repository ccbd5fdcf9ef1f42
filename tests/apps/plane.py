"""Arrays that shrink well: what is sent in a codec, only a cloud that has the codec can decode.

CAPTURE_GATE holds items up.
"""

import itertools

import numpy as np
from gates import Gate, say

_numbers = itertools.count()
_gate = None


def count():
    global _gate
    _gate = _gate or Gate("CAPTURE_GATE")
    if not _gate.wait():
        return False
    number = next(_numbers)
    say("count", number)
    return True, np.full((100, 100), number)


def double(plane):
    return True, 2 * plane


def report(plane):
    return True, int(plane.sum())


tasks = [count, double, report]
