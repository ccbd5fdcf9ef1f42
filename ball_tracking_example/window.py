"""Windows for people who watch, where there is a display. In: frames. Nothing comes out, and nothing fails.

A machine in a rack has no display, and OpenCV's headless build no windows. Others have a `DISPLAY` that leads
nowhere, and there the window build does not raise an error: it aborts the process. So a child process tries first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np

# A window costs its thread a millisecond each time, and people see no difference above this rate.
MAX_RATE_HZ = 30.0

_TRY = "import cv2; cv2.namedWindow('offload'); cv2.waitKey(1)"


class Windows:
    """One window for each title. All calls come from one thread, the process's main one.

    Arguments:
        usable: None while it is not known yet whether windows work here, then whether they do.
        gui: what draws them; OpenCV.
        clock: seconds.
    """

    def __init__(self, usable: Callable[[], bool | None], gui=cv2, clock: Callable[[], float] = time.monotonic) -> None:
        self._usable = usable
        self._gui = gui
        self._clock = clock
        self._shown_s: dict[str, float] = {}
        self._closed: set[str] = set()

    def show(self, title: str, frame: np.ndarray) -> bool:
        """Shows a frame in the window of this title, or does not where windows do not work.

        Returns:
            False once somebody has closed that window or pressed q in it; it stays closed.
        """
        if title in self._closed:
            return False
        now_s = self._clock()
        if now_s - self._shown_s.get(title, -1.0) < 1 / MAX_RATE_HZ or not self._usable():
            return True
        if title in self._shown_s and self._gui.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            self._closed.add(title)
            return False
        self._shown_s[title] = now_s
        self._gui.imshow(title, frame)
        if self._gui.waitKey(1) & 0xFF == ord("q"):
            self._closed.add(title)
            self._gui.destroyWindow(title)
            return False
        return True


class Trial:
    """Opens a window in a child process, without waiting for it."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> bool | None:
        """None while the child is at it, then whether it could."""
        if self.child is None:
            if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                return False
            self.child = subprocess.Popen(
                [sys.executable, "-c", _TRY],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        status = self.child.poll()
        return None if status is None else status == 0


_windows = Windows(Trial())


def show(title: str, frame: np.ndarray) -> bool:
    """Shows a frame in the window of this title, if there is a display. False once somebody has closed the window."""
    return _windows.show(title, frame)
