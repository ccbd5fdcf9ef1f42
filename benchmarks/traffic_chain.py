"""The traffic chain as an app for benchmarks: the same tasks on frames in memory, from their first again at their last.

A run then lasts as long as it is asked to, and capture is nearly free. `--source` takes a video of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice

import cv2

from ball_tracking_example.video_source import VideoSource
from traffic_example import CLIP, taskified

FRAMES_IN_MEMORY = 270  # the example's whole clip: 105 MB

cv2.setNumThreads(1)

_frames: Iterator = iter(())


def open_source(source: str | None) -> float:
    global _frames
    # A copy: the last tasks draw into the frame, and the one in memory comes again.
    _frames = (frame.copy() for frame in cycle(_decoded(source or str(CLIP))))
    return VideoSource(source or str(CLIP)).fps or 15.0


@cache
def _decoded(source: str) -> list:
    return list(islice(_read(source), FRAMES_IN_MEMORY))


def _read(source: str) -> Iterator:
    video = VideoSource(source)
    while (frame := video.read()) is not None:
        yield frame


def get_frame():
    return True, next(_frames)


tasks = [get_frame, *taskified.tasks[1:]]
