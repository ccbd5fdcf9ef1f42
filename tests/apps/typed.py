"""Arguments of every kind: arrays large and small, pictures, plain data, and a class of the app."""

import itertools

import numpy as np

from task_offload.picture import picture

SIZE = (300, 400, 3)
COUNT = 12


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


payload_types = (Point,)
_numbers = itertools.count()


def capture():
    number = next(_numbers)
    if number >= COUNT:
        return False
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, SIZE, np.uint8)
    return True, (number, image, image[::2, ::3, 1].copy())


def measure(number, image, small):
    view = image[10:100, 20:50]  # not contiguous
    return True, (picture(image), view.copy(order="F"), Point(number, float(small.mean())), {"n": [number, None, b"x"]})


def reduce(image, view, point, more):
    sums = view.sum(axis=(0, 1), dtype=np.int64)
    return True, (image, sums, point, more, np.float32(point.y), (number_of(more), {"deep": {"er": (1, 2.5, "é")}}))


def number_of(more):
    return more["n"][0]


def check(image, sums, point, more, mean, deep):
    if isinstance(image, np.ndarray) and image.flags.writeable:
        image[0, 0] = 0  # a task may write to what it was given
    return True, (sums, point, more, mean, deep)


def last(sums, point, more, mean, deep):
    assert more["n"][2] == b"x"
    assert type(point).__name__ == "Point"
    return True, {
        "sums": sums,
        "x": point.x,
        "y": round(float(mean), 3),
        "deep": deep[1]["deep"]["er"],
        "number": deep[0],
    }


tasks = [capture, measure, reduce, check, last]
