"""The `picture` marker: an image that people will look at and that no later task computes with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Picture:
    """An image marked by `picture()`. The next task receives the array itself, not this object."""

    __slots__ = ("image",)

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image


def picture(image: NDArray[np.uint8]) -> Picture:
    """Marks an image, one of the arguments that a task returns, as a picture.

    A picture is an ordinary array to the next task. On its way to the cloud it may travel as a JPEG
    (`--picture-quality`), so no later task may compute with it.

    Arguments:
        image: an array of shape (height, width, 3), 8 bits a channel in the order blue, green, red, or of
            shape (height, width). An array of another kind travels lossless.

    Raises:
        TypeError: `image` is not an array.
    """
    if isinstance(image, Picture):
        return image
    if not isinstance(image, np.ndarray):
        raise TypeError(f"picture() takes an array, not {type(image).__name__}")
    return Picture(image)
