"""Where frames come from. In: a camera, a stream or a file by name. Out: its frames, one by one.

A file ends. A live source does not: a camera that was unplugged, or a stream whose sender went away, is waited for
and opened again. Nothing is opened before a `VideoSource` is made.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from task_offload import SourceError

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5  # a camera that only reset its USB port is back by then
LONGEST_WAIT_S = 5.0
USUAL_FPS = 30.0  # for a file that does not say how fast it plays
HIGHEST_FPS = 1000.0  # some files without a steady rate give their time base (90,000) instead
USUAL_SHARE = 0.9  # of the frames that a whole file says it has: in some forms that number is an estimate
PI_CAMERA_SIZE = (640, 480)
SILENT = 0  # an OpenCV log level

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

# FFmpeg reads this once, when OpenCV first opens something; -8 is its "quiet".
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Capture(Protocol):
    """What `VideoSource` needs of a `cv2.VideoCapture`."""

    def read(self) -> tuple[bool, np.ndarray | None]: ...

    def get(self, prop: int) -> float: ...

    def release(self) -> None: ...


class VideoSource:
    """The frames of one source.

    Arguments:
        source: a camera's index ("0"), "picamera2", a URL, or a file.
        open_capture: opens it; None for what does not open.
        sleep: waits some seconds.

    Attributes:
        fps: frames a second of a file (or of a recording behind a URL); None for a live source.

    Raises:
        SourceError: it does not open, or yields no frame.
    """

    def __init__(
        self,
        source: str,
        open_capture: Callable[[str], Capture | None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not _is_utf_8(source):
            raise SourceError(f"{source}: its name is not UTF-8, so OpenCV cannot open it; rename it")
        self._source = source
        self._open_capture = open_capture or _open_capture
        self._sleep = sleep
        self._capture: Capture | None = None
        self._frame = self._open()  # the first frame is read here: many a source opens and then yields nothing
        if self._capture is None or self._frame is None:
            raise SourceError(_why_not(source, opened=self._capture is not None))
        self.fps = None if _is_live(source, self._capture) else _rate(self._capture)
        self._frames = 0

    def read(self) -> np.ndarray | None:
        """The next frame, of shape (height, width, 3), 8 bits a channel in the order blue, green, red.

        Returns:
            None at the end of a file, and ever after. A live source has no end: the call waits until it is back.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            frame = self._read()
        if frame is not None:
            self._frames += 1
        elif self.fps is None:
            frame = self._wait_for_return()
        else:
            self._check_its_end()
        return frame

    def close(self) -> None:
        """Releases the camera or file. `read` returns None from now on if it is a file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _open(self) -> np.ndarray | None:
        self._capture = self._open_capture(self._source)
        return self._read()

    def _read(self) -> np.ndarray | None:
        if self._capture is None:
            return None
        grabbed, frame = self._capture.read()
        return frame if grabbed else None

    def _check_its_end(self) -> None:
        """A file that breaks off reads like one that ends; only how long it says it is tells the two apart."""
        said = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if self._capture is not None else 0
        if self._frames < USUAL_SHARE * said:
            log.warning(
                "%s breaks off after %d of its %d frames; is it damaged? try to play it",
                _without_password(self._source), self._frames, said,
            )  # fmt: skip
        self.close()

    def _wait_for_return(self) -> np.ndarray:
        log.warning("%s is gone; waiting for it to come back", _without_password(self._source))
        wait_s = FIRST_WAIT_S
        while True:
            self.close()
            self._sleep(wait_s)
            frame = self._open()
            if frame is not None:
                log.warning("%s is back", _without_password(self._source))
                return frame
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # in Python such bytes of a name are lone surrogates, at which OpenCV crashes
        return False
    return True


def _is_live(source: str, capture: Capture) -> bool:
    """A camera, or a URL that knows no length. A recording that is only fetched by URL knows one, and ends."""
    if _URL.match(source):
        return not capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    return source.isdigit() or source == "picamera2"


def _rate(capture: Capture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return float(fps) if 0 < fps <= HIGHEST_FPS else USUAL_FPS


def _open_capture(source: str) -> Capture | None:
    if source == "picamera2":
        return _open_pi_camera()
    if "OPENCV_LOG_LEVEL" not in os.environ:  # what it would say is said once, in one line, by whoever opens
        set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, or 5
        set_log_level(SILENT)
    if source.isdigit():
        capture = cv2.VideoCapture(int(source))
    elif cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():  # others, GStreamer above all, fail noisily
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG)
    else:
        capture = cv2.VideoCapture(source)
    return capture if capture.isOpened() else None


class _PiCamera:
    """A `picamera2.Picamera2` in the form of a `cv2.VideoCapture`."""

    def __init__(self, camera) -> None:
        self._camera = camera

    def read(self) -> tuple[bool, np.ndarray | None]:
        try:
            return True, self._camera.capture_array("main")
        except RuntimeError:
            return False, None

    def get(self, prop: int) -> float:
        return 0.0

    def release(self) -> None:
        self._camera.close()


def _open_pi_camera() -> Capture | None:
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise SourceError(
            "picamera2 cannot be imported; sudo apt install python3-picamera2, and make the virtual environment with "
            "--system-site-packages"
        ) from error
    try:
        camera = Picamera2()
    except (IndexError, RuntimeError):
        return None
    # Its "RGB888" names the bytes from the highest down: in memory they are blue, green, red, as OpenCV wants them.
    camera.configure(camera.create_video_configuration(main={"format": "RGB888", "size": PI_CAMERA_SIZE}))
    camera.start()
    return _PiCamera(camera)


def _why_not(source: str, opened: bool) -> str:
    what = _without_password(source)
    if source == "picamera2":
        return "picamera2 finds no camera that works; check its cable, and that  rpicam-hello --list-cameras  shows it"
    if source.isdigit():
        if opened:
            return f"camera {what} opens but yields no frame; is another program using it?"
        return f"camera {what} does not open; is it plugged in? (a Raspberry Pi's own camera is  --source picamera2)"
    if _URL.match(source):
        return f"{what} does not open as a video stream; check the address and that its sender runs"
    if Path(source).is_dir():
        return f"{what} is a folder; give a video file, a camera index or a URL"
    if not Path(source).exists():
        return f"{what} does not exist; give a video file, a camera index or a URL"
    return f"{what} cannot be decoded as a video; try to play it, or convert it to mp4"


def _without_password(source: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", source)
