"""One run of a device, in whatever mode. In: what was counted. Out: prints, windows, the summary, the report."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from task_offload.config import DeviceConfig, usable_cores
from task_offload.errors import AppError, OffloadError, SourceError
from task_offload.observe.books import Books
from task_offload.observe.load import LoadMeter
from task_offload.observe.meters import DeviceMeters
from task_offload.observe.report import load_report, write_report
from task_offload.observe.watchdog import Watchdog
from task_offload.output import complain, say
from task_offload.task import Chain, place_of
from task_offload.wire.messages import Load

log = logging.getLogger(__name__)

WINDOW_S = 3.0  # between prints of the throughput
MOST_WINDOWS = 10_000  # in the report: the newest, of a run of months
MOST_CORES = 8  # that a device uses: more threads would wait for the interpreter's lock


class Signals:
    """The first SIGINT or SIGTERM asks to stop, the second to stop at once.

    Attributes:
        count: how many came.
        in_task: the main thread is in a task, which only an exception can end.
    """

    def __init__(self) -> None:
        self.count = 0
        self.in_task = False
        self._drain_s: float | None = None
        # Not an Event: a signal that came while this thread held the event's lock would wait for it for ever.
        self._woken: SimpleQueue[None] = SimpleQueue()

    def listen(self, drain_s: float | None = None) -> None:
        """From now on. Until then Ctrl-C ends the process, which has nothing to finish yet.

        Arguments:
            drain_s: how long after the first signal a task of the main thread may go on.
        """
        self._drain_s = drain_s
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def wait(self, seconds: float) -> bool:
        """Waits at most so long for the first signal, on the main thread. Returns whether one has come."""
        if not self.count and seconds > 0:
            with suppress(Empty):
                self._woken.get(timeout=seconds)
        return self.count > 0

    def end_task_in(self, seconds: float) -> None:
        """Ends the task that the main thread is in after so many seconds, as the second signal does."""
        signal.signal(signal.SIGALRM, self._overdue)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # 0 would be never

    def ask_to_stop(self) -> None:
        """As the first signal does, if none came yet."""
        self.count = max(self.count, 1)

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        if self.in_task:
            raise KeyboardInterrupt

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._woken.put(None)
        if self.count == 1 and self._drain_s is not None:
            self.end_task_in(self._drain_s)
        if self.in_task:
            if self.count > 1:
                raise KeyboardInterrupt
            said = f"stopping: finishing this item, for {self._drain_s:g} s at most; Ctrl-C again stops at once\n"
            with suppress(OSError):  # not print: the task that was interrupted may be printing
                os.write(1, said.encode())


class Run:
    """What both kinds of run have: a source, prints, windows, a report."""

    def __init__(self, config: DeviceConfig, chain: Chain) -> None:
        self.config = config
        self.chain = chain
        self.books = Books()
        self.meters = DeviceMeters(len(chain.tasks), config.max_latency_s)
        self.signals = Signals()
        self.load = LoadMeter()
        self.last_load: Load | None = None  # what was measured while the run went on
        self.watchdog = Watchdog()
        self.began_at = time.monotonic()
        self.windows: list[dict[str, Any]] = []
        self._window_at = self.began_at
        self._finished_before = 0
        self._cloud_cpu_before_s = 0.0
        self._splits_before: dict[int, int] = {}

    @property
    def live(self) -> bool:
        """Whether the source cannot wait."""
        return self.chain.open_source is not None and self.rate is None

    rate: float | None = None

    def begin(self) -> float:
        """The run and its first window begin. Returns when."""
        self.began_at = self._window_at = time.monotonic()
        return self.began_at

    def pace_s(self) -> float | None:
        if self.config.realtime and self.rate is not None:
            return 1 / self.rate
        return None

    def window_due(self, now: float) -> bool:
        return now - self._window_at >= WINDOW_S

    def end_window(self, now: float, finished: int) -> None:
        """Prints and notes the throughput of the last seconds."""
        seconds = now - self._window_at
        fps = (finished - self._finished_before) / seconds
        splits, cloud_cpu_s = dict(self.meters.splits), self.books.cloud_cpu_s  # other threads go on counting
        shares = share_of({n: count - self._splits_before.get(n, 0) for n, count in splits.items()})
        spent_s = cloud_cpu_s - self._cloud_cpu_before_s
        self._window_at, self._finished_before = now, finished
        self._splits_before, self._cloud_cpu_before_s = splits, cloud_cpu_s
        self.windows.append(
            {
                "t": round(now - self.began_at, 3),
                "fps": round(fps, 3),
                "splits": shares,
                "cloud_cpu_s": round(spent_s, 6),
            }
        )
        del self.windows[:-MOST_WINDOWS]
        self.say(f"average throughput {fps:7.2f} FPS{self.describe(shares)}")

    def say(self, text: str) -> None:
        """One line for people. Once nobody reads any more, the run ends in good order."""
        if not say(text):
            self.signals.ask_to_stop()

    def describe(self, shares: Mapping[str, float]) -> str:
        return ""

    def report(self, duration_s: float, more: Mapping[str, Any]) -> dict[str, Any]:
        latency = self.meters.latency
        times = {f"p{p}": latency.percentile(p) for p in (50, 95, 99)}
        return {
            "schema": 1,
            "mode": self.config.mode,
            "tasks": list(self.chain.names),
            "target_fps": self.config.target_fps,
            "duration_s": round(duration_s, 3),
            "items": self.books.items(),
            "fps": round(self.books.finished / duration_s, 3) if duration_s > 0 else 0.0,
            "windows": self.windows,
            "latency_ms": {name: None if s is None else round(s * 1000, 3) for name, s in times.items()},
            "splits": {str(n): count for n, count in sorted(self.meters.splits.items())},
            "load": load_report(self.last_load or self.load.measure()),
            "device_cpu_s": round(time.process_time(), 3),
            "emulated": {
                "cpu": self.config.emulate_cpu,
                "link_bytes_per_s": self.config.emulate_link.bytes_per_s if self.config.emulate_link else None,
                "link_delay_s": self.config.emulate_link.delay_s if self.config.emulate_link else None,
            },
            **more,
        }

    def finish(self, more: Mapping[str, Any], error: OffloadError | None) -> int:
        """Prints the summary, writes the report, and says why the run could not do its work. Returns the exit status.

        Raises:
            StoreError: the report cannot be written.
        """
        duration_s = time.monotonic() - self.began_at
        books = self.books
        add_up = books.captured == books.ended
        if not add_up:
            log.error("the books do not add up, which is a bug of this program; please report it: %s", books)
        fps = books.finished / duration_s if duration_s > 0 else 0.0
        p50, p99 = (self.meters.latency.percentile(p) for p in (50, 99))
        times = f", latency p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms" if p50 and p99 else ""
        if error is None or books.captured or books.delivered_earlier:
            self.say(f"{books.summary()}; {duration_s:.1f} s, {fps:.2f} FPS{times}")
        if self.config.report is not None:
            write_report(self.config.report, self.report(duration_s, more))
        if error is not None:
            complain("iot_client_coordinator.py", error)
            return 1
        if not add_up:
            return 1
        return 130 if self.signals.count > 1 else 0


def device_cores(config: DeviceConfig) -> int:
    """K, the cores that this device may use."""
    if config.emulate_cpu is not None:
        return 1
    return min(usable_cores(), MOST_CORES)


def open_source(chain: Chain, source: str | None) -> float | None:
    """Opens an app's source. Returns its rate in items a second, None if it is live or does not say.

    Raises:
        AppError: the app takes no source, or returned something else than a rate.
        SourceError: it does not open.
    """
    if chain.open_source is None:
        if source is not None:
            raise AppError(f"app {chain.app}: it takes no --source; give it an open_source(source)")
        return None
    try:
        rate = chain.open_source(source)
    except (OffloadError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() too
        raised = f"{type(error).__name__}: {error}{place_of(error)}"
        raise SourceError(f"app {chain.app}: its open_source raised {raised}") from error
    if rate is not None and not (isinstance(rate, Real) and rate > 0):
        raise AppError(f"app {chain.app}: open_source returned {rate!r}; it returns a rate above 0, or None")
    return rate


def share_of(counts: Mapping[int, float]) -> dict[str, float]:
    """Each split's share of the counts, by its name in reports."""
    total = sum(counts.values())
    return {str(n): round(count / total, 4) for n, count in sorted(counts.items()) if count} if total else {}


def in_words(shares: Mapping[int, float]) -> str:
    """Splits with their shares, for people."""
    if len(shares) == 1:
        return str(next(iter(shares)))
    return " + ".join(f"{n} ({share:.0%})" for n, share in sorted(shares.items()))
