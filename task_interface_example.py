"""The smallest app, explained. It runs as it is, with no camera and no OpenCV:

    python3 iot_client_coordinator.py --app task_interface_example.py
    python3 cloud_server_coordinator.py --app task_interface_example.py        (on the cloud, and then)
    python3 iot_client_coordinator.py 2 --app task_interface_example.py        (on the device)

An app is a module that exports `tasks`, a list of at least two functions. The device runs the first N of them on
every item, the cloud runs the rest. Each task returns `(to_continue, args)`, and `args` are the arguments of the next:

    None       the next task takes no argument
    a tuple    it takes as many as there are in the tuple
    the rest   it takes this one

This app reads a thermometer, and reports when a room is warmer than it lately was.
"""

import itertools
import math
import time

# A chain of plain functions needs no import from the framework. These two are for apps that want more.
from task_offload import current_item, task

READINGS = 40
PACE_S = 0.05  # a thermometer is slow, and the first task waits for it, as it would for a camera

_numbers = itertools.count()


def open_source(source):
    """Optional. Called once, on the device only, before the first task, with what `--source` says, or None.

    It returns how many items a second a recording has, or None for a live source, whose items come when they come.
    A camera is opened here and not above: the cloud imports this module too, and has no camera.
    """
    global _numbers
    _numbers = itertools.count()
    return


def read_thermometer():
    """The first task takes nothing and reads the sensor. It always runs on the device."""
    number = next(_numbers)
    if number == READINGS:
        return False  # from the first task: the stream ends here
    time.sleep(PACE_S)
    return True, (number, 290.0 + 8 * math.sin(number / 6))  # two arguments for the next task


def to_celsius(number, kelvin):
    """A task in the middle runs on either side. It uses only its arguments, so it may run on several items at once."""
    return True, (number, kelvin - 273.15)


def only_if_warm(number, celsius):
    """A filter."""
    if celsius < 15:
        return False  # from a later task: this item ends here, it is "filtered"; the stream goes on
    return True, (number, celsius)


@task(runs_on="cloud", stateful=True)  # it remembers, so it must always run in the same place
def compare_with_average(number, celsius):
    """A task that keeps state between items. It sees each device's items in order, one at a time."""
    state = current_item().state  # a dict of this task's own, one for each run of a device
    average = state.get("average", celsius)
    state["average"] = 0.9 * average + 0.1 * celsius
    return True, (number, celsius, celsius > average + 1)


def report(number, celsius, warmer):
    """The last task reports. It always runs in the cloud, on its main thread, for all devices."""
    if not warmer:
        return False  # from the last task: nothing to report; the item is completed all the same
    print(f"{current_item().device}: reading {number} is {celsius:.1f} °C, warmer than lately")
    return True, {"reading": number, "celsius": round(celsius, 2)}  # plain data here is the item's recorded result


tasks = [read_thermometer, to_celsius, only_if_warm, compare_with_average, report]
