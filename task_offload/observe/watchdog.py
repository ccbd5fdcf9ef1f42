"""Tells systemd how this service is. In: calls from the main loop. Out: datagrams to $NOTIFY_SOCKET, as sd_notify(3).

Without systemd every call does nothing. No library: the protocol is one line of text in one datagram, and stable.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress


class Watchdog:
    """The main loop's line to systemd. If `beat` stays away for WatchdogSec, systemd restarts the service.

    Arguments:
        environ: where systemd says what it wants.
        clock: seconds that never go back.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        timeout_us = environ.get("WATCHDOG_USEC", "")
        meant_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval_s = int(timeout_us) / 2e6 if timeout_us.isdecimal() and meant_for_us else None
        self._clock = clock
        self._beat_s = float("-inf")

    def ready(self) -> None:
        """The service is set up and works; `systemctl start` returns now."""
        self._send("READY=1")

    def beat(self) -> None:
        """The main loop is alive. Call it in every pass: it sends at half of WatchdogSec only, and is cheap."""
        if self._interval_s is not None and self._clock() - self._beat_s >= self._interval_s:
            self._beat_s = self._clock()
            self._send("WATCHDOG=1")

    def beat_always(self) -> None:
        """Beats from a thread of its own from now on, for a main thread that waits in tasks."""
        if self._address and self._interval_s:
            threading.Thread(target=self._beat_always, args=(self._interval_s,), name="watchdog", daemon=True).start()

    def _beat_always(self, interval_s: float) -> None:
        while True:
            self.beat()
            time.sleep(interval_s)

    def stopping(self) -> None:
        """The service drains and ends. Go on with `beat` while it does."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # systemd may be busy or gone, and the main loop must not wait for it.
                sock.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
