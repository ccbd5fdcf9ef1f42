"""The cloud's side, wired: reception -> engine -> finisher, on the main thread -> recorder -> reception, which acks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from task_offload.capacity import Queue
from task_offload.cloud_session import Endings, summary
from task_offload.config import CloudConfig
from task_offload.engines import make_engine
from task_offload.engines.base import Done, Lane, Unit
from task_offload.errors import LinkError
from task_offload.finishing import Finisher
from task_offload.observe.report import write_report
from task_offload.observe.watchdog import Watchdog
from task_offload.reception import Reception
from task_offload.results.base import Record, SessionBooks, SessionKey
from task_offload.results.recorder import Recorder
from task_offload.results.specs import open_results
from task_offload.runner import Kind
from task_offload.task import load_app
from task_offload.transport.identity import CloudIdentity, default_state_dir
from task_offload.transport.listener import ListenerLimits
from task_offload.transport.loopback import check_no_tls_addresses

log = logging.getLogger(__name__)


class Cloud:
    """One server. `start` opens the port, `run` works on the calling thread until `stop`.

    Raises:
        ConfigError: something of the config cannot work.
        StoreError: the results cannot be recorded.
        OffloadError: the port is taken, or the engine cannot start. Nothing is left open, whichever it is.
    """

    def __init__(
        self,
        config: CloudConfig,
        limits: ListenerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        chain = load_app(config.app)
        if not config.use_tls:
            check_no_tls_addresses(config.host)
        self._stopping = False
        self._began_at = clock()
        self._identity = CloudIdentity(config.state_dir or default_state_dir()) if config.use_tls else None
        self._watchdog = Watchdog()
        with ExitStack() as started:  # is closed again if a later part cannot start
            results = open_results(config.results, config.keep_days)
            self._recorder = Recorder(results.store, results.sinks, on_recorded=self._recorded)
            started.callback(self._recorder.close)
            self._finisher = Finisher(chain, self._recorder.add, config.task_timeout_s, clock, unix_clock)
            self.reception = Reception(
                config, chain, self._identity, self, limits or ListenerLimits(), clock, unix_clock
            )
            started.callback(self.reception.close)
            if self._identity:
                self._identity.open_loopback(self.port)
                started.callback(self._identity.close)
            # The last, since its processes take longest to start, and to end.
            self._engine = make_engine(config.engine, chain, config.workers, self._outcomes, config.task_timeout_s)
            started.pop_all()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.reception.port

    def enroll_first(self, name: str) -> str | None:
        """The line to paste on a device, at the first start; None where a device was ever enrolled."""
        if self._identity is None or not self._identity.untouched:
            return None
        return self._identity.enroll(name)

    def start(self) -> None:
        """Lets devices in."""
        if self._identity is not None:
            self._say_who_is_not_enrolled(self._identity)
        self.reception.start()
        self._watchdog.ready()

    def _say_who_is_not_enrolled(self, identity: CloudIdentity) -> None:
        """A weight under a name that no device has changes nothing, and says so nowhere else."""
        enrolled = {device.name for device in identity.list_devices()}
        if missing := sorted(self._config.weights.keys() - enrolled):
            log.warning(
                "--weight: no device is enrolled as %s; check the names or enroll them (none needs it on this machine)",
                " or ".join(missing),
            )

    def stop(self) -> None:
        """Makes `run` finish what has come in, and return. Safe in a signal handler."""
        self._stopping = True
        self._finisher.wake()

    def run(self) -> None:
        """Runs the last task for all devices until `stop` is called, then ends in good order.

        Raises:
            LinkError: the listener died of a bug, which it has logged.
        """
        while not self._stopping:
            self._work(0.5)
            if not self.reception.alive:
                raise LinkError("the listener failed; the error stands above")
        self._watchdog.stopping()
        self.reception.take_no_more()
        deadline = self._clock() + self._config.drain_s
        while self.reception.in_work and self._clock() < deadline:
            self._work(0.05)

    def _work(self, timeout_s: float) -> None:
        self._watchdog.beat()
        self._finisher.work(timeout_s)

    def close(self) -> None:
        """Ends everything: records what is finished, tells the devices, closes the port, writes the report."""
        self._engine.close()
        unrecorded = self._recorder.close(self._config.drain_s)
        self.reception.close()
        if self._identity:
            self._identity.close()
        if unrecorded:
            log.warning("%d items are not recorded; their devices hold them and will send them again", unrecorded)
        staying = [each.report() for each in self.reception.sessions.values()]
        for each in staying:
            log.info("device %s: %s; it had not left", each["device"], summary(each["items"]))
        if self._config.report is not None:
            all_sent_s = self.reception.cpu_if_all_were_sent_s()
            write_report(
                self._config.report,
                {
                    "schema": 1,
                    "sessions": self.reception.over + staying,
                    "duration_s": round(self._clock() - self._began_at, 3),
                    "cpu_s": round(time.process_time(), 3),
                    "cpu_if_all_were_sent_s": None if all_sent_s is None else round(all_sent_s, 6),
                    "rejected": dict(self.reception.rejected),
                },
            )

    # -- what the reception has behind it ---------------------------------------------------------------------------

    def submit(self, units: Sequence[Unit]) -> None:
        """Items to work on."""
        self._engine.submit(units)

    def put_endings(self, endings: Endings) -> None:
        """Items that ended on the device."""
        self._finisher.put_endings(endings)

    def forget(self, lane: Lane) -> None:
        """A session is over."""
        self._engine.forget(lane)

    def books(self, device: str, session: str) -> SessionBooks:
        """What is recorded of a session. Raises StoreError."""
        return self._recorder.books(device, session)

    def queues(self) -> Sequence[Queue]:
        """What waits for a worker, for the last task, and for the disk."""
        return (
            Queue(self._engine.waiting, self._engine.taken),
            Queue(self._finisher.waiting, self._finisher.taken),
            Queue(self._recorder.waiting, self._recorder.recorded),
        )

    def watch(self, now: float) -> None:
        """Warns of a last task that hangs."""
        self._finisher.watch(now)

    # -- what the engine and the recorder tell ----------------------------------------------------------------------

    def _outcomes(self, dones: Sequence[Done]) -> None:
        for done in dones:
            if done.outcome.kind is Kind.FAILED and (error := done.forbidden) is not None:
                self.reception.offended(done.unit.owner, error)
        self._finisher.put(dones)

    def _recorded(self, records: Sequence[Record], books: Mapping[SessionKey, SessionBooks]) -> None:
        self.reception.recorded(books)
