"""The ball chain as an app for benchmarks: the same tasks, with the times at which each item was captured and ended.

--source FILE            frames of a video, from its beginning again when it ends (default: the example's clip)
--source memory:FILE     some of its frames, decoded before the run, so that capture is nearly free
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice

import cv2

from ball_tracking_example import CLIP, taskified
from ball_tracking_example.sequential import shrink
from ball_tracking_example.video_source import VideoSource

MEMORY = "memory:"
FRAMES_IN_MEMORY = 64  # 27 MB at 500 x 281: more than a processor's own caches hold

cv2.setNumThreads(1)

captured_s: list[float] = []  # by sequence, on the machine's steady clock
ended_s: list[float] = []
cpu_began_s = 0.0  # CPU of this process when the first task was called for the first time

_frames: Iterator = iter(())


def open_source(source: str | None) -> float:
    global _frames
    source = source or str(CLIP)
    if source.startswith(MEMORY):
        # A copy: the last tasks draw into the frame, and the one in memory comes again.
        _frames = ((frame.copy(), scale) for frame, scale in cycle(_decoded(source.removeprefix(MEMORY) or str(CLIP))))
    else:
        _frames = _read(source)
    captured_s.clear()
    return VideoSource(source.removeprefix(MEMORY) or str(CLIP)).fps or 30.0


def _read(source: str) -> Iterator:
    while True:
        video = VideoSource(source)
        while (frame := video.read()) is not None:
            yield shrink(frame)


@cache
def _decoded(source: str) -> list:
    return list(islice(_read(source), FRAMES_IN_MEMORY))


def get_frame():
    global cpu_began_s
    if not captured_s:
        cpu_began_s = time.process_time()
    captured = next(_frames)
    captured_s.append(time.monotonic())
    return True, captured


def show_frame(frame, ball):
    returned = taskified.show_frame(frame, ball)
    ended_s.append(time.monotonic())
    return returned


tasks = [get_frame, *taskified.tasks[1:-1], show_frame]
