"""Records items on its own thread. In: records, from any thread. Out: commits, and a call after each for the acks.

add -> waiting -> one commit of all that waits -> on_recorded -> the sinks, each on a thread of its own
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from task_offload.errors import StoreError
from task_offload.results.base import (
    COMPLETED,
    RESULT_BYTES,
    Record,
    Row,
    SessionBooks,
    SessionKey,
    Sink,
    Store,
    rows_of,
)

log = logging.getLogger(__name__)

MAX_COMMIT_ROWS: Final = 2048  # some 25 ms of work; longer commits make acks late, and cost as much a row
COMMITS_APART_S: Final = 0.01  # from one's begin to the next one's: a commit costs as much as the rows of some items
MAX_CACHED_BOOKS: Final = 4096  # sessions; the books of others are read from the store again
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
TIDY_EVERY_S: Final = 60.0
TIDY_AGAIN_S: Final = 0.05
SINK_ROWS: Final = 20_000  # rows that wait for a slow sink, 10 MB with results of 300 bytes
SINK_BATCH_ROWS: Final = 1000

OnRecorded = Callable[[Sequence[Record], Mapping[SessionKey, SessionBooks]], object]


class Recorder:
    """Groups records into commits, and says when they are recorded. It owns the store and the sinks.

    While the store fails, the records wait here and the commit is tried again, with growing waits; nothing of them
    is reported as recorded. What waits is bounded by the devices' windows.

    Arguments:
        store: the book of record; None if there is none, and then `add` reports its record at once.
        sinks: fed after the commit. A slow or dead one stalls nothing; what it misses is counted.
        on_recorded: called with the records that were recorded just now, without those that were before, and with the
            books of every session that had any of either kind: what a cumulative ack needs. It is called on the
            recorder's thread, or on that of `add` where there is no store, and should return soon.
        pause: waits some seconds before something is tried again; by default until the recorder closes at most.

    Attributes:
        recorded: how many records the store has taken so far.
    """

    def __init__(
        self,
        store: Store | None,
        sinks: Sequence[Sink] = (),
        *,
        on_recorded: OnRecorded,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._store = store
        self._on_recorded = on_recorded
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self._feeders = [SinkFeeder(sink, pause) for sink in sinks]
        self._books: OrderedDict[SessionKey, SessionBooks] = OrderedDict()
        self._changed = threading.Condition()
        self._waiting: deque[Record] = deque()
        self._in_commit = 0
        self.recorded = 0
        self._next_commit_at = 0.0
        self._without_results: set[str] = set()  # devices whose results cannot be recorded, and of which that was said
        self._failure: str | None = None  # why nothing can be recorded now
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        if store is not None:
            self._thread.start()

    @property
    def waiting(self) -> int:
        """How many records are not recorded yet."""
        return len(self._waiting) + self._in_commit

    def books(self, device: str, session: str) -> SessionBooks:
        """What is recorded of a session. Any thread may ask.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._store is not None:
            return self._store.books(device, session)
        with self._changed:
            return self._books.get((device, session), SessionBooks())

    def add(self, records: Sequence[Record]) -> None:
        """Takes records. A session's records come in the order of their sequences; one that was recorded before may
        come again, and is reported and not written.

        Raises:
            ValueError: a field is out of its range; nothing is taken.
        """
        for record in records:
            record.check()
        if self._store is not None:
            with self._changed:
                self._waiting.extend(records)
                self._changed.notify()
            return
        with self._changed:
            new, books = self._enter(records)
            self._remember(books)
            if self._feeders:
                self._feed([row for each in new for row in rows_of(each)])
        self._on_recorded(new, books)

    def close(self, timeout_s: float = 5.0) -> int:
        """Records what waits, and closes the store and the sinks. A store that fails now is not tried again.

        Arguments:
            timeout_s: how long the store may take, and then each sink.

        Returns:
            how many records are not recorded; their devices hold the items still.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._store is not None:
            self._thread.join(timeout_s)
            if not self._thread.is_alive():
                self._store.close()
        for feeder in self._feeders:
            feeder.close(timeout_s)
        if self.waiting:
            log.warning("%d records could not be made; their devices keep the items and send them again", self.waiting)
        return self.waiting

    def _run(self) -> None:
        assert self._store is not None
        while batch := self._take(self._store):
            if not self._record(self._store, batch):
                return
            self._in_commit = 0
            self.recorded += len(batch)

    def _take(self, store: Store) -> list[Record]:
        """Waits for records and takes all that are there, up to the bound. Empty if there will be no more."""
        idle_s = TIDY_EVERY_S
        while True:
            with self._changed:
                while not self._waiting and not self._closing.is_set():
                    if not self._changed.wait(idle_s):
                        break
                early_s = self._next_commit_at - time.monotonic() if self._waiting else 0.0
            if early_s > 0.0:
                self._closing.wait(early_s)
            with self._changed:
                if self._waiting:
                    self._next_commit_at = time.monotonic() + COMMITS_APART_S
                    return self._pop()
                if self._closing.is_set():
                    return []
            try:
                idle_s = TIDY_AGAIN_S if store.tidy() else TIDY_EVERY_S
            except StoreError as error:  # old rows can wait; a commit that fails says so itself
                log.debug("%s", error)

    def _pop(self) -> list[Record]:
        batch: list[Record] = []
        room = MAX_COMMIT_ROWS
        while self._waiting and room:
            record = self._waiting.popleft()
            if record.items > room:
                later = record._replace(
                    sequence=record.sequence + room, items=record.items - room, cloud_cpu_s=0.0, bytes_received=0
                )
                self._waiting.appendleft(later)
                record = record._replace(items=room)
            room -= record.items
            batch.append(record)
        self._in_commit = len(batch)
        return batch

    def _record(self, store: Store, batch: list[Record]) -> bool:
        """Commits records, however long it takes. False if the recorder closes and the store still fails."""
        wait_s = FIRST_WAIT_S
        while True:
            closing = self._closing.is_set()
            try:
                new, books = self._enter(batch)
                rows = [row for record in new for row in rows_of(record)]
                store.write(rows, books)
                break
            except StoreError as error:
                self._failed(str(error))
            except Exception as error:  # an error of ours must not end all recording without a word
                if self._failure is None:
                    log.exception("recording failed")
                self._failed(f"{type(error).__name__}: {error}")
            if closing:
                return False
            self._pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        if self._failure is not None:
            self._failure = None
            log.info("recording goes on")
        self._remember(books)
        try:
            self._on_recorded(new, books)
        except Exception:
            log.exception("what was recorded could not be reported")
        self._feed(rows)
        return True

    def _failed(self, reason: str) -> None:
        if reason != self._failure:
            log.error("%s; nothing is acknowledged until it can be recorded", reason)
        self._failure = reason

    def _enter(self, batch: Sequence[Record]) -> tuple[list[Record], dict[SessionKey, SessionBooks]]:
        """The records that are not recorded yet, and the books that they lead to for every session in the batch."""
        new: list[Record] = []
        of_session: dict[SessionKey, list[Record]] = {}
        before: dict[SessionKey, SessionBooks] = {}
        watermarks: dict[SessionKey, int] = {}
        for record in batch:
            key = record.device, record.session
            watermark = watermarks.get(key)
            if watermark is None:
                before[key] = self._books.get(key) or self._recorded_books(key)
                watermark = before[key].watermark
                of_session[key] = []
            end = record.sequence + record.items
            watermarks[key] = max(watermark, end)
            if record.sequence < watermark:
                if end <= watermark:
                    continue
                record = record._replace(sequence=watermark, items=end - watermark)
            new.append(record)
            of_session[key].append(record)
        return new, {key: before[key].extended(records) for key, records in of_session.items()}

    def _recorded_books(self, key: SessionKey) -> SessionBooks:
        return SessionBooks() if self._store is None else self._store.books(*key)

    def _remember(self, books: Mapping[SessionKey, SessionBooks]) -> None:
        for key, each in books.items():
            self._books[key] = each
            self._books.move_to_end(key)
        while len(self._books) > MAX_CACHED_BOOKS:
            self._books.popitem(last=False)

    def _feed(self, rows: Sequence[Row]) -> None:
        self._say_without_result(rows)
        for feeder in self._feeders:
            feeder.put(rows)

    def _say_without_result(self, rows: Sequence[Row]) -> None:
        """Logs, once for each device, that what the last task gave cannot be recorded. Each such row says why."""
        for row in rows:
            if row.detail is not None and row.ending == COMPLETED and row.device not in self._without_results:
                self._without_results.add(row.device)
                log.warning(
                    "device %s, item %d: %s; a result is numbers, text, lists and dicts of them, up to %d KiB as "
                    "JSON. The item is completed (further ones of this device only have it in their rows)",
                    row.device, row.sequence, row.detail, RESULT_BYTES // 1024,
                )  # fmt: skip


class SinkFeeder:
    """Feeds one sink on a thread of its own, through a bounded queue: the newest rows stay, the oldest are missed."""

    def __init__(self, sink: Sink, pause: Callable[[float], object] | None = None) -> None:
        self.missed = 0
        self._sink = sink
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._sink.name

    def put(self, rows: Sequence[Row]) -> None:
        """Takes rows; never waits."""
        with self._changed:
            self._waiting.extend(rows)
            while len(self._waiting) > SINK_ROWS:
                self._waiting.popleft()
                self.missed += 1
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Writes what waits, and closes the sink. A sink that fails now is not tried again."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self.missed += len(self._waiting)
            self._waiting.clear()
        if self.missed:
            log.warning("%s missed %d rows", self.name, self.missed)

    def _run(self) -> None:
        try:
            while rows := self._take():
                self._write(rows)
        finally:
            self._sink.close()

    def _take(self) -> list[Row]:
        with self._changed:
            while not self._waiting and not self._closing.is_set():
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), SINK_BATCH_ROWS))]

    def _write(self, rows: list[Row]) -> None:
        failed = False
        wait_s = FIRST_WAIT_S
        while True:
            closing = self._closing.is_set()
            try:
                self._sink.write(rows)
                if failed:
                    log.info("%s goes on", self.name)
                return
            except Exception as error:
                if not failed:
                    log.warning("%s (results are recorded all the same; what it misses is counted)", error)
                failed = True
            if closing:
                with self._changed:
                    self.missed += len(rows) + len(self._waiting)
                    self._waiting.clear()
                return
            self._pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
