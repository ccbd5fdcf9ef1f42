"""What a device's run sees. In: what the link tells, totals of link and process. Out: books, meters, observations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from task_offload.observe.books import Books
from task_offload.observe.load import DelayMeter
from task_offload.observe.meters import DeviceMeters
from task_offload.scheduling.observation import Observation
from task_offload.transport.exchange import DeviceSession
from task_offload.transport.link import Link
from task_offload.wire.messages import Costs, Ending, Totals, Welcome
from task_offload.wire.outbox import Acked

log = logging.getLogger(__name__)


class CloudView:
    """What a run knows of its cloud. It hears the link, as `LinkEvents` says, and tells the run's books and meters.

    Arguments:
        address: host and port, for people.
        session: the run's own; what the cloud says of earlier ones tells nothing of this run.
        codecs: those that the run may use.

    Attributes:
        found: set once the cloud has taken a session up.
        codecs: those that the cloud which is connected can decode, too.
        window: how many items it lets be unacknowledged.
    """

    def __init__(
        self,
        address: tuple[str, int],
        session: DeviceSession,
        codecs: Sequence[str],
        books: Books,
        meters: DeviceMeters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._session = session
        self._codecs = codecs
        self._books = books
        self._meters = meters
        self._clock = clock
        self.found = threading.Event()
        self.codecs = frozenset(codecs)
        self.window = 1

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        self._meters.workers, self._meters.main_share = welcome.workers, welcome.main_share
        self.window = welcome.unacked_items
        # A JPEG needs no package that the cloud may lack.
        self.codecs = frozenset(name for name in self._codecs if name in welcome.codecs or ":" in name)
        if welcome.source_differs:
            log.warning("the server's app is other source code than this device's; results may differ")
        log.info("connected to %s:%d", *self._address)
        self.found.set()

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        if session is not self._session:
            self._books.delivered_earlier += sum(items for _, items in acked)
            return
        now = self._clock()
        for entry, items in acked:
            self._meters.acked(
                entry.payload.size_bytes if entry.payload else 0,
                now - entry.sent_at if entry.sent_at else None,
                now - (entry.last_captured_at or entry.captured_at),
                items,
                entry.ending is not Ending.DROPPED,
            )
        self._meters.finished(self._books.learn(totals))

    def cost(self, session: DeviceSession, costs: Costs) -> None:
        if session is self._session:  # a tag of another process stands for another codec
            self._meters.cost(costs)

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        self._meters.sent(size_bytes, cpu_s)


class Observer:
    """Says, once in an interval, what happened since the last time.

    Arguments:
        source_rate, cores: as `Observation` has them.
        delays: None where the system's count of them says nothing.
        cpu_s: CPU seconds of this process.

    Attributes:
        observed_at: when the interval began that runs.
    """

    def __init__(
        self,
        books: Books,
        meters: DeviceMeters,
        link: Link,
        cloud: CloudView,
        source_rate: float | None,
        cores: int,
        delays: DelayMeter | None = None,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._books = books
        self._meters = meters
        self._link = link
        self._cloud = cloud
        self._source_rate = source_rate
        self._cores = cores
        self._delays = delays
        self._link_busy_s = _Growth(link.busy_s)
        self._window_full_s = _Growth(link.full_s)
        self._cpu_s = _Growth(cpu_s)
        self.observed_at = 0.0

    def begin(self, now: float) -> None:
        """The first interval begins. What the process did before is none of it."""
        self.observed_at = now
        self._cpu_s.take()
        if self._delays is not None:
            self._delays.measure()

    def observe(self, now: float) -> Observation:
        """What happened since the last call."""
        interval_s, self.observed_at = now - self.observed_at, now
        return self._meters.observe(
            now,
            interval_s,
            backlog=self._meters.captured - self._books.ended,
            link_busy_s=self._link_busy_s.take(),
            source_rate=self._source_rate,
            cores=self._cores,
            window=self._cloud.window,
            away=not self._link.takes_live,
            cpu_s=self._cpu_s.take(),
            window_full_s=self._window_full_s.take(),
            delays=self._delays.measure() if self._delays is not None else None,
            codecs=self._cloud.codecs,
        )


class _Growth:
    """By how much a total has grown since it was looked at before."""

    def __init__(self, total: Callable[[], float]) -> None:
        self._total = total
        self._before = total()

    def take(self) -> float:
        before, self._before = self._before, self._total()
        return self._before - before
