"""A class of the app that is not in payload_types, between the second task and the third.

PINNED pins the second task to the device, so that no split is left whose payload can travel.
"""

import itertools
import os

from task_offload.task import task

_numbers = itertools.count()


class Thing:
    def __init__(self, number):
        self.number = number


def count():
    number = next(_numbers)
    return number < 200, number


@task(runs_on="device" if os.environ.get("PINNED") else None)
def wrap(number):
    return True, Thing(number)


@task(runs_on="cloud" if os.environ.get("PINNED") else None)
def unwrap(thing):
    return True, thing.number


def report(number):
    return True, number


tasks = [count, wrap, unwrap, report]
