"""Every way in which a task can fail, by the item's number modulo 10. 50 items, then the end."""

import itertools
import sys

_numbers = itertools.count()


def count():
    number = next(_numbers)
    if number >= 50:
        return False
    if number % 10 == 1:
        raise OSError("the sensor hiccupped")
    return True, number


def first(number):
    if number % 10 == 2:
        raise ValueError(f"no {number}")  # the message differs each time, the kind does not
    if number % 10 == 3:
        return number  # not (to_continue, args)
    return True, number


def second(number):
    if number % 10 == 4:
        return "yes", number  # the first is no bool
    if number % 10 == 5:
        return True, number, number  # three
    if number % 10 == 6:
        raise ValueError("x" * 199 + "é" * 100 + "\ud800")  # long, beyond ASCII, and not even UTF-8
    if number % 10 == 7:
        sys.exit("a task has no business here")
    return True, number


def last(number):
    if number % 10 == 8:
        raise KeyError(number)
    if number % 10 == 9:
        return True, 1, 2
    return True, number


tasks = [count, first, second, last]
