"""State on both sides: each sums what it sees of one device, in order. 60 items."""

import itertools

from task_offload.task import current_item, task

_numbers = itertools.count(1)


def count():
    number = next(_numbers)
    return number <= 60, number


@task(runs_on="device", stateful=True)
def sum_on_device(number):
    state = current_item().state
    state["sum"] = state.get("sum", 0) + number
    return True, (number, state["sum"])


def check(number, summed):
    return True, (number, summed)


@task(runs_on="cloud", stateful=True)
def sum_in_cloud(number, summed):
    state = current_item().state
    state["sum"] = state.get("sum", 0) + number
    return number % 2 == 0, (number, summed, state["sum"])


def last(number, on_device, in_cloud):
    return True, [number, on_device, in_cloud]


tasks = [count, sum_on_device, check, sum_in_cloud, last]
