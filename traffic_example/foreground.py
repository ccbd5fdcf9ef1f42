"""What does not belong to the empty road. In: grey frames, in order. Out: masks.

The model is the mean of what each pixel shows when nothing is there. Clouds and the camera's exposure change a whole
frame at once, by a factor: it is found first and taken out, or else every pixel would seem new.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]

BRIGHTER = 14  # grey levels above the road
DARKER = 24  # below it; more, because a shadow is darker too
LEARNING = 0.04  # weight of a new frame where the road is seen
FORGETTING = 0.002  # and where something covers it, so that a parked car belongs to the road after a minute
WARM_UP_FRAMES = 10
_EVERY = 4  # pixels between two that the factor is computed from
_SMALL = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
_LARGE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))


class Background:
    """The empty road as seen by one camera.

    Arguments:
        first: the first frame, taken for empty until proven otherwise.
    """

    def __init__(self, first: Gray) -> None:
        self._road = first.astype(np.float32)
        self._covered = np.zeros(first.shape, bool)
        self._frames = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._road.shape

    def foreground(self, frame: Gray) -> Gray:
        """The mask of what is not road, 255 where something is, and learns from the frame."""
        light = self._light(frame)
        difference = frame - light * self._road
        mask = ((difference > BRIGHTER) | (difference < -DARKER)).astype(np.uint8) * np.uint8(255)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _SMALL)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _LARGE)
        self._learn(frame / light, mask)
        return mask

    def _light(self, frame: Gray) -> np.float32:
        """By how much the road is brighter than in the model."""
        road = ~self._covered[::_EVERY, ::_EVERY]
        if not road.any():
            return np.float32(1)
        factors = frame[::_EVERY, ::_EVERY][road] / np.maximum(self._road[::_EVERY, ::_EVERY][road], 1)
        return np.float32(max(np.median(factors), 0.05))

    def _learn(self, frame: NDArray[np.float32], mask: Gray) -> None:
        near = cv2.dilate(mask, _LARGE)
        self._covered = near > 0
        self._frames += 1
        rate = max(LEARNING, 1 / self._frames) if self._frames <= WARM_UP_FRAMES else LEARNING
        cv2.accumulateWeighted(frame, self._road, FORGETTING, near)
        cv2.accumulateWeighted(frame, self._road, rate, cv2.bitwise_not(near))
