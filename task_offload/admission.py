"""The way in. In: how the link and the outbox are, decisions. Out: when an item may come in, its route, its room."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from task_offload.observe.books import Books
from task_offload.observe.meters import DeviceMeters
from task_offload.observer import CloudView
from task_offload.scheduling.mix import Mixer
from task_offload.scheduling.observation import Route
from task_offload.transport.link import Link

ROOM_ENTRIES = 2  # that wait for the window: one goes as soon as it opens, one follows


class Admission:
    """Lets an item in when it can be in time, and on to the outbox when there is room for it.

    Arguments:
        outage_route: of an item that is captured while the cloud is away.
        newest: where a full outbox would hold an item up, the oldest that waits is dropped.

    Attributes:
        most_inside: an item is let in while fewer than these are captured and not ended.
    """

    def __init__(
        self,
        link: Link,
        cloud: CloudView,
        mixer: Mixer,
        outage_route: Route,
        books: Books,
        meters: DeviceMeters,
        newest: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._outbox = link.live.outbox
        self._cloud = cloud
        self._mixer = mixer
        self._outage_route = outage_route
        self._books = books
        self._meters = meters
        self._newest = newest
        self._clock = clock
        self._backlog = 0.0  # after an outage: entries that waited when the last item got its room
        self._closed = False
        self.most_inside = math.inf

    def next_route(self, stopping: Callable[[], bool]) -> Route:
        """The route of the next item. Waits until that can be in time, or nobody wants it any more: `stopping()`."""
        if not (self._in_time() or stopping()):
            started = self._clock()
            self._link.wait_until(lambda: self._in_time() or stopping())
            self._meters.held(self._clock() - started)
        # While the cloud is away, as many tasks here as the pins allow.
        route = self._outage_route if self._link.away else self._mixer.next_route()
        return route if route.codec in self._cloud.codecs else Route(route.split, "none")

    def wait_for_room(self) -> bool:
        """Waits until the link can take another item; False if it will not any more.

        While the cloud takes none of this run, its spool is the room.
        """
        self._link.wait_until(self._has_room)
        return not (self._closed or self._link.ended)

    def close(self) -> None:
        """Nothing more has room; who waits waits no longer."""
        with self._link.condition:
            self._closed = True
            self._link.condition.notify_all()

    def _in_time(self) -> bool:
        """Whether an item that is captured now will end in time, as far as those before it are concerned."""
        if self.most_inside == math.inf:
            return True
        inside = self._meters.captured - self._books.ended
        return inside < self.most_inside or not self._link.takes_live or self._closed

    def _has_room(self) -> bool:
        outbox = self._outbox
        waiting = outbox.waiting_entries
        taken = self._link.takes_live
        if self._closed or (waiting < ROOM_ENTRIES and taken):
            self._backlog = 0.0
            return True
        if not taken:
            self._backlog = math.inf
        elif waiting < self._backlog:
            self._backlog = waiting
        else:
            return False  # an outage's backlog goes first; it takes one more whenever it has become shorter
        if not outbox.full:
            return True
        if not self._newest:
            return False
        # Not one for one: the next can be much larger than the oldest, which went at another split.
        while outbox.full and (dropped := outbox.drop_oldest_waiting("spool_full")):
            self._meters.dropped(dropped)
        return True
