"""The plain loop that people start from. It finds a green ball in every frame of a video.

In: a video file, a stream or a camera. Out: for each frame the ball's place and radius, or None.

    python3 ball_tracking_example/sequential.py [source]

After "Ball Tracking with OpenCV" by Adrian Rosebrock:
https://pyimagesearch.com/2015/09/14/ball-tracking-with-opencv/

A green spot is not yet a ball, so `find_circle` asks more of it than the blog post does.
`taskified.py` is this loop cut into tasks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import imutils
import numpy as np

if not __package__:  # run by its path: Python then searches this folder for modules, not the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ball_tracking_example import CLIP
from ball_tracking_example.window import show

WIDTH = 500  # pixels; every frame is brought to this width, so sizes below mean the same for every camera

# Hue, saturation and value of the ball. Dark and pale pixels have a hue by chance only: the blog post's limits
# (86 and 6) take a black box for a ball, and lose the sunlit side of a real one.
GREEN_LOWER = (30, 52, 40)
GREEN_UPPER = (75, 255, 255)

# What makes a green spot a ball.
MIN_RADIUS = 8  # pixels; below it every spot is round
MIN_CIRCLE_SHARE = 0.5  # of the circle around it; a disc fills it, but fingers hide a part and motion stretches it
MIN_ROUNDNESS = 0.55  # 4 pi area / perimeter^2 is 1 for a disc, and small for ragged things: grass, leaves, shadows
MAX_BOX_SHARE = 0.9  # of the box around it; a disc leaves a fifth free in the corners, a bottle or a book nothing

CANDIDATES = 10  # the ball is not the largest spot where there is a lawn

Circle = tuple[float, float, float]
Scale = tuple[float, float]


def track(source: str) -> Iterator[tuple[np.ndarray, dict[str, float] | None]]:
    """Yields each frame with the ball drawn in, and the ball in pixels of the source, or None where there is none."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        sys.exit(f"{source}: it does not open as a video, a stream or a camera")
    while True:
        grabbed, frame = capture.read()
        if not grabbed:
            break
        frame, scale = shrink(frame)
        blurred = cv2.GaussianBlur(frame, (11, 11), 0)
        hsv = cv2.cvtColor(blurred, cv2.COLOR_BGR2HSV)
        mask = cv2.inRange(hsv, GREEN_LOWER, GREEN_UPPER)
        mask = cv2.erode(mask, None, iterations=2)  # specks go
        mask = cv2.dilate(mask, None, iterations=6)  # holes and bays close: fingers, a seam, a highlight
        mask = cv2.erode(mask, None, iterations=4)
        found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        contours = sorted(imutils.grab_contours(found), key=cv2.contourArea, reverse=True)[:CANDIDATES]
        circle = find_circle(contours)
        if circle is not None:
            draw(frame, circle)
        yield frame, to_source(circle, scale)
    capture.release()


def shrink(frame: np.ndarray) -> tuple[np.ndarray, Scale]:
    """Brings a frame to `WIDTH` pixels. Returns it with (x, y) pixels of the source for one pixel of it.

    Halving is nearly free, and leaves little for the general resize. `imutils.resize` alone would take
    INTER_AREA, which costs more than all the rest of the loop on a 720p frame.
    """
    height, width = frame.shape[:2]
    while frame.shape[1] >= 2 * WIDTH:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_LINEAR)
    if frame.shape[1] != WIDTH:
        frame = imutils.resize(frame, width=WIDTH, inter=cv2.INTER_LINEAR)
    return frame, (width / frame.shape[1], height / frame.shape[0])


def find_circle(contours: Sequence[np.ndarray]) -> Circle | None:
    """The circle (x, y, radius) around the contour that looks most like a ball, or None if none looks like one."""
    best, best_share = None, MIN_CIRCLE_SHARE
    for contour in contours:
        (x, y), radius = cv2.minEnclosingCircle(contour)
        if radius < MIN_RADIUS:
            continue
        area = cv2.contourArea(contour)
        circle_share = area / (math.pi * radius**2)
        roundness = 4 * math.pi * area / cv2.arcLength(contour, True) ** 2
        _, (box_width, box_height), _ = cv2.minAreaRect(contour)
        is_box = area > MAX_BOX_SHARE * box_width * box_height
        if circle_share >= best_share and roundness >= MIN_ROUNDNESS and not is_box:
            best, best_share = (float(x), float(y), float(radius)), circle_share
    return best


def draw(frame: np.ndarray, circle: Circle) -> None:
    """Draws the circle and its centre into the frame."""
    x, y, radius = (round(value) for value in circle)
    cv2.circle(frame, (x, y), radius, (0, 255, 255), 2)
    cv2.circle(frame, (x, y), 3, (0, 0, 255), -1)


def to_source(circle: Circle | None, scale: Scale) -> dict[str, float] | None:
    """The circle in pixels of the source frame, with hundredths; (0, 0) is the centre of its first pixel."""
    if circle is None:
        return None
    (x, y, radius), (scale_x, scale_y) = circle, scale
    return {
        "x": round((x + 0.5) * scale_x - 0.5, 2),
        "y": round((y + 0.5) * scale_y - 0.5, 2),
        "radius": round(radius * scale_x, 2),
    }


def main() -> None:
    frames = balls = 0
    for frame, ball in track(sys.argv[1] if len(sys.argv) > 1 else str(CLIP)):
        frames += 1
        balls += ball is not None
        if not show("ball tracking", frame):
            break
    print(f"{frames} frames, a ball in {balls} of them")


if __name__ == "__main__":
    main()
