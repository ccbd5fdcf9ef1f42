"""Vehicles on a road, seen from above, are followed and counted in both directions.

What it shows: a chain where offloading pays, since one task in its middle needs most of the time; tasks with state
that are pinned to the cloud; a small image to compute with beside the picture that people look at. Try it on the clip
of the package, on one machine, no network:

    python3 iot_client_coordinator.py --app traffic_example.taskified

With a server, 15 frames a second and the split found automatically (`--source` takes a camera, a file or a URL):

    python3 cloud_server_coordinator.py --app traffic_example.taskified
    HOST=... python3 iot_client_coordinator.py --app traffic_example.taskified --realtime 1 15

The way of an item, with a frame's time on one core of a PC:

    get_frame         device  0.5 ms    a frame, in colour
    scale_to_gray     either  0.8 ms    a small grey image; from here on the frame is only looked at
    denoise           either   30 ms    the heavy task; pure
    find_foreground   cloud     1 ms    what is not road, as a mask (state: the empty road)
    find_boxes        cloud   0.1 ms    a box around each thing
    track             cloud   0.1 ms    which box is which vehicle, and the counts (state: the vehicles)
    draw              cloud   0.2 ms    boxes, numbers and the counting line
    report            cloud   0.1 ms    prints new counts; what it returns is recorded

The splits are 1, 2 and 3: a whole frame without loss on the link, or a small grey image and a JPEG, noisy or clean.
The empty road and the vehicles are state, and state stays where it is; so the tasks that keep it are pinned.
"""

from __future__ import annotations

import cv2

from ball_tracking_example.video_source import VideoSource
from ball_tracking_example.window import show
from task_offload import current_item, picture, publish_frame, task
from traffic_example import CLIP
from traffic_example.foreground import Background
from traffic_example.tracker import PAST_LINE, Tracker

GRAY_WIDTH = 320  # pixels; wide enough for a motorcycle, and the denoising time grows with the square
DENOISE_STRENGTH, DENOISE_PATCH, DENOISE_SEARCH = 6, 5, 13
SMALLEST = 0.003  # of the grey image's area: less is noise, or a bird
GREEN, YELLOW = (80, 220, 80), (60, 210, 250)

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
    return True, frame


def scale_to_gray(frame):
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (GRAY_WIDTH, round(height * GRAY_WIDTH / width)), interpolation=cv2.INTER_AREA)
    return True, (picture(frame), cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))


def denoise(frame, gray):
    clean = cv2.fastNlMeansDenoising(
        gray,
        h=DENOISE_STRENGTH,
        templateWindowSize=DENOISE_PATCH,
        searchWindowSize=DENOISE_SEARCH,
    )
    return True, (picture(frame), clean)


@task(runs_on="cloud", stateful=True)
def find_foreground(frame, gray):
    state = current_item().state
    if "background" not in state or state["background"].shape != gray.shape:  # a camera may come back another size
        state["background"] = Background(gray)
    return True, (picture(frame), state["background"].foreground(gray))


def find_boxes(frame, mask):
    """A box (x, y, width, height) around each thing, in pixels of the frame."""
    scale = frame.shape[1] / mask.shape[1]
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    large = [each for each in contours if cv2.contourArea(each) >= SMALLEST * mask.size]
    boxes = [tuple(round(scale * side) for side in cv2.boundingRect(each)) for each in large]
    return True, (picture(frame), sorted(boxes))


@task(runs_on="cloud", stateful=True)
def track(frame, boxes):
    state, height = current_item().state, frame.shape[0]
    tracker = state.setdefault("tracker", Tracker(line_y=height / 2, margin=PAST_LINE * height))
    vehicles = [{"id": each.number, "box": each.box} for each in tracker.update(boxes)]
    return True, (picture(frame), {**tracker.counts, "crossed": tracker.crossed, "vehicles": vehicles})


def draw(frame, seen):
    height, width = frame.shape[:2]
    cv2.line(frame, (0, height // 2), (width, height // 2), YELLOW, 1)
    for vehicle in seen["vehicles"]:
        x, y, box_width, box_height = vehicle["box"]
        cv2.rectangle(frame, (x, y), (x + box_width, y + box_height), GREEN, 2)
        cv2.putText(frame, str(vehicle["id"]), (x + 4, y + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, GREEN, 2)
    counts = f"up {seen['up']}  down {seen['down']}"
    cv2.putText(frame, counts, (8, height - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.7, YELLOW, 2)
    return True, (picture(frame), seen)


def report(frame, seen):
    """Gives what a frame shows: `up` and `down` (counts until now), `crossed` and `vehicles` (in this frame)."""
    device = current_item().device
    publish_frame(frame)
    show(device, frame)
    for number, direction in seen["crossed"]:
        print(
            f"{device}: vehicle {number} goes {direction}; {seen['up']} up, {seen['down']} down until now", flush=True
        )
    return True, seen


tasks = [get_frame, scale_to_gray, denoise, find_foreground, find_boxes, track, draw, report]
