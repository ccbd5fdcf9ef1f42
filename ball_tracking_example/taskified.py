"""Ball tracking as a chain of seven tasks: the loop of `sequential.py`, cut where a cloud may take over.

In: frames of a camera, a stream or a file. Out: for each frame the ball as {"x", "y", "radius"} in pixels of the
source frame, or None where there is none; a frame without a ball runs through the whole chain too.

The frame rides along to the end, because people want to see it. From `calculate_hsv` on no task computes with it
any more, so it is marked as a `picture` there. `scale` leads from the small frame back to the source's pixels.
"""

from __future__ import annotations

import cv2
import imutils

from ball_tracking_example import CLIP
from ball_tracking_example.sequential import (
    CANDIDATES,
    GREEN_LOWER,
    GREEN_UPPER,
    draw,
    find_circle,
    shrink,
    to_source,
)
from ball_tracking_example.video_source import VideoSource
from ball_tracking_example.window import show
from task_offload import current_item, picture, publish_frame

_video: VideoSource | None = None


def open_source(source: str | None) -> float | None:
    """Opens the camera, stream or file that `get_frame` reads; None means the clip. Returns a file's frame rate.

    Raises:
        SourceError: it does not open.
    """
    global _video
    _video = VideoSource(source or str(CLIP))
    return _video.fps


def get_frame():
    frame = _video.read()
    if frame is None:
        return False
    return True, shrink(frame)


def calculate_hsv(frame, scale):
    blurred = cv2.GaussianBlur(frame, (11, 11), 0)
    hsv = cv2.cvtColor(blurred, cv2.COLOR_BGR2HSV)
    return True, (picture(frame), hsv, scale)


def calculate_mask(frame, hsv, scale):
    mask = cv2.inRange(hsv, GREEN_LOWER, GREEN_UPPER)
    mask = cv2.erode(mask, None, iterations=2)
    mask = cv2.dilate(mask, None, iterations=6)
    mask = cv2.erode(mask, None, iterations=4)
    return True, (picture(frame), mask, scale)


def find_contours(frame, mask, scale):
    found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(imutils.grab_contours(found), key=cv2.contourArea, reverse=True)[:CANDIDATES]
    return True, (picture(frame), contours, scale)


def calculate_circle(frame, contours, scale):
    return True, (picture(frame), find_circle(contours), scale)


def draw_circle(frame, circle, scale):
    if circle is not None:
        draw(frame, circle)
    return True, (picture(frame), to_source(circle, scale))


def show_frame(frame, ball):
    publish_frame(frame)
    show(current_item().device, frame)
    return True, ball


tasks = [get_frame, calculate_hsv, calculate_mask, find_contours, calculate_circle, draw_circle, show_frame]
