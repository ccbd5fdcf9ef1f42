"""Follows vehicles from frame to frame and counts them. In: the boxes of each frame. Out: vehicles and counts.

A vehicle is counted when its centre passes the counting line, in the direction in which it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # x, y, width, height in pixels

REACH = 0.5  # how far from its expected place a vehicle may be found, in lengths of its box's diagonal
TRUSTED_AFTER = 4  # frames in which a vehicle was seen; one seen less often is not counted
LOST_AFTER = 8  # frames in a row in which it was not seen
PAST_LINE = 0.02  # how far past the line its centre must be, in heights of the frame, against trembling boxes
STEADY = 0.3  # weight of the newest step in a vehicle's speed


@dataclass
class Track:
    """One vehicle: where it is, in pixels, and how fast, in pixels a frame."""

    number: int
    box: Box
    came_from: int  # -1 above the counting line, 1 below it
    step: tuple[float, float] = (0.0, 0.0)
    seen: int = 1
    missed: int = 0

    @property
    def center(self) -> tuple[float, float]:
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


class Tracker:
    """The vehicles in one camera's view.

    Arguments:
        line_y: the counting line, in pixels from the top.
        margin: how far past it a centre must be, in pixels.

    Attributes:
        counts: vehicles that have crossed the line until now, "up" and "down".
        crossed: number and direction of each that did so in the newest frame.
    """

    def __init__(self, line_y: float, margin: float) -> None:
        self.counts = {"up": 0, "down": 0}
        self.crossed: list[tuple[int, str]] = []
        self._line_y = line_y
        self._margin = margin
        self._tracks: list[Track] = []
        self._next_number = 1

    def update(self, boxes: list[Box]) -> list[Track]:
        """Takes in the boxes of the next frame. Returns the trusted vehicles that are seen in it."""
        self.crossed = []
        pairs = self._nearest_pairs(boxes)
        for index, track in enumerate(self._tracks):
            if index in pairs:
                self._follow(track, boxes[pairs[index]])
            else:
                track.missed += 1
        self._tracks = [track for track in self._tracks if track.missed <= LOST_AFTER]
        taken = set(pairs.values())
        self._tracks += [self._new(box) for candidate, box in enumerate(boxes) if candidate not in taken]
        return [track for track in self._tracks if track.seen >= TRUSTED_AFTER and not track.missed]

    def _nearest_pairs(self, boxes: list[Box]) -> dict[int, int]:
        """Index of a track -> index of its box. The nearest pair of all goes first, then the nearest of the rest."""
        distances = []
        for index, track in enumerate(self._tracks):
            x, y = track.center
            ahead = 1 + track.missed
            expected = (x + ahead * track.step[0], y + ahead * track.step[1])
            for candidate, (left, top, width, height) in enumerate(boxes):
                distance = math.dist(expected, (left + width / 2, top + height / 2))
                if distance <= REACH * math.hypot(*track.box[2:]):
                    distances.append((distance, index, candidate))
        pairs: dict[int, int] = {}
        taken: set[int] = set()
        for _, index, candidate in sorted(distances):
            if index not in pairs and candidate not in taken:
                pairs[index] = candidate
                taken.add(candidate)
        return pairs

    def _follow(self, track: Track, box: Box) -> None:
        x, y = track.center
        track.box = box
        frames = 1 + track.missed
        step = ((track.center[0] - x) / frames, (track.center[1] - y) / frames)
        weight = STEADY if track.seen > 1 else 1.0
        track.step = (
            track.step[0] + weight * (step[0] - track.step[0]),
            track.step[1] + weight * (step[1] - track.step[1]),
        )
        track.seen += 1
        track.missed = 0
        past = (track.center[1] - self._line_y) * -track.came_from
        if track.seen >= TRUSTED_AFTER and past > self._margin:
            direction = "down" if track.came_from < 0 else "up"
            self.counts[direction] += 1
            self.crossed.append((track.number, direction))
            track.came_from = -track.came_from

    def _new(self, box: Box) -> Track:
        track = Track(self._next_number, box, came_from=0)
        track.came_from = -1 if track.center[1] < self._line_y else 1
        self._next_number += 1
        return track
