"""A live source: the first task waits for its sensor, the second for something else; neither takes much CPU time.

COUNT ends the stream after so many items.
"""

import itertools
import os
import time

from gates import say

SENSOR_S, LOOKUP_S = 0.02, 0.01
_count = int(os.environ.get("COUNT", "0")) or None
_numbers = itertools.count()


def open_source(source):
    return None


def sense():
    number = next(_numbers)
    if number == _count:
        say("the sensor is off")
        return False
    time.sleep(SENSOR_S)
    return True, number


def look_up(number):
    time.sleep(LOOKUP_S)
    return True, number


def report(number):
    return True, number


tasks = [sense, look_up, report]
