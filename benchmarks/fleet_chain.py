"""The ball chain for emulated devices, which replay payloads that were recorded before. In: a split. Out: payloads.

The last task opens no window and counts what it ends. A device may leave the picture out; then nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2

from ball_tracking_example import taskified
from task_offload.picture import Picture
from task_offload.runner import Runner, States
from task_offload.task import Item, load_app, publish_frame
from task_offload.wire.codec import Encoder, Payload

cv2.setNumThreads(1)

APP = "benchmarks.fleet_chain"
FRAMES = 16

ended = 0


def draw_circle(frame, circle, scale):
    if frame is None:
        return True, (None, taskified.to_source(circle, scale))
    return taskified.draw_circle(frame, circle, scale)


def show_frame(frame, ball):
    global ended
    ended += 1
    if frame is not None:
        publish_frame(frame)
    return True, ball


open_source = taskified.open_source
tasks = [*taskified.tasks[1:-2], draw_circle, show_frame]
tasks.insert(0, taskified.get_frame)


def arguments(split: int, picture: bool) -> list[tuple]:
    """Arguments of the task after `split` for the first frames of the clip, recorded by running the chain."""
    chain = load_app(APP)
    open_source(None)
    recorded = []
    for number in range(FRAMES):
        item = Item("recorded", "", number, 0.0, split)
        args = Runner(chain).run(item, States(), (), 0, split).value
        recorded.append(args if picture else tuple(map(_without_picture, args)))
    return recorded


def _without_picture(value):
    return None if type(value) is Picture else value


def payloads(split: int, picture_quality: int | None) -> Sequence[Payload]:
    """What a device would send at a split; without the picture where its quality is None."""
    encode = partial(Encoder(picture_quality=picture_quality or 0).encode, codec="none")
    return [encode(args) for args in arguments(split, picture_quality is not None)]
