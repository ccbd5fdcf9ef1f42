"""The device's side, wired: pipeline -> link; the scheduler, the prints and the report on the main thread."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from task_offload.admission import Admission
from task_offload.agreement import chain_spec
from task_offload.config import DeviceConfig
from task_offload.device_sessions import open_sessions, open_spool
from task_offload.emulated_cpu import EmulatedCpu
from task_offload.errors import ConfigError, LinkError
from task_offload.local_run import LocalRun
from task_offload.observe.load import DelayMeter
from task_offload.observer import CloudView, Observer
from task_offload.pipeline import Pipeline, Running
from task_offload.run import Run, device_cores, open_source
from task_offload.runner import settle
from task_offload.scheduling.observation import Policy, Route
from task_offload.scheduling.policy import Goal, ModelPolicy
from task_offload.scheduling.table import figure
from task_offload.spooled_outbox import SpooledOutbox
from task_offload.steering import Steering
from task_offload.task import Chain, load_app
from task_offload.transport.emulation import LinkEmulator
from task_offload.transport.link import Link
from task_offload.transport.loopback import check_no_tls_addresses, find_loopback_token, find_token
from task_offload.transport.tokens import Token, check_device_name
from task_offload.wire.codec import Encoder
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import Ending
from task_offload.wire.outbox import Entry

log = logging.getLogger(__name__)

DECISION_S = 0.5  # between looks of the scheduler
LOAD_S = 2.0
HANGS_S = 30.0  # a task after the first that takes so long on one item; the cloud's --task-timeout says the same


def run_device(config: DeviceConfig, chain: Chain | None = None) -> int:
    """Runs a device in the mode that its config asks for. Returns the exit status.

    Arguments:
        chain: the app's, if it is loaded.

    Raises:
        OffloadError: it cannot do its work; the message says why.
    """
    config = replace(config, device_name=check_device_name(config.device_name))
    chain = chain or load_app(config.app)
    if config.split is not None:
        check_split(config.split, chain)
        config = named_by_token(config)
    return LocalRun(config, chain).run() if config.split is None else OffloadRun(config, chain).run()


def named_by_token(config: DeviceConfig) -> DeviceConfig:
    """The token names the device. A missing one is said here, before anything is opened."""
    token = _find_token(config)
    if token is None or token.device is None or token.device == config.device_name:
        return config
    log.info("this device is %s, as its token says", token.device)
    return replace(config, device_name=token.device)


def _find_token(config: DeviceConfig) -> Token | None:
    assert config.host is not None
    if not config.use_tls:
        return None
    if config.demo:  # the user's token, where there is one, is for another server
        return find_loopback_token(config.port)
    return find_token(config.host, config.port)


def check_split(split: int, chain: Chain) -> None:
    """Raises ConfigError if the chain cannot be split so."""
    splits = chain.splits
    if split not in splits:
        most = len(chain.tasks) - 1
        pins = " (others would break the pins of its tasks)" if 1 <= split <= most else ""
        raise ConfigError(
            f"a split of {split} is not possible: {chain.app} has {len(chain.tasks)} tasks, and the last runs in the "
            f"cloud, so choose {splits[0]} to {splits[-1]}{pins}"
        )


class OffloadRun(Run):
    """The first tasks on this device, the rest in the cloud, in manual or automatic mode."""

    def __init__(self, config: DeviceConfig, chain: Chain, policy: Policy | None = None) -> None:
        super().__init__(config, chain)
        assert config.host is not None
        if not config.use_tls:
            check_no_tls_addresses(config.host)
        address = (config.host, config.port)
        codecs = available_codecs() if config.codec == "auto" else (config.codec,)
        cores = device_cores(config)
        self.model: ModelPolicy | None = None
        if policy is None:
            policy = self.model = _model(config, chain, codecs)
        self.steering = Steering(policy)
        self.spool = open_spool(config)
        self.rate = open_source(chain, config.source)
        newest = (config.overload or ("newest" if self.live else "block")) == "newest"
        sessions = open_sessions(config, chain, self.spool, newest)
        self.session = sessions[-1]
        self.cloud = CloudView(address, self.session, codecs, self.books, self.meters)
        self.link = Link(
            address,
            device=config.device_name,
            chain=chain_spec(chain),
            find_token=partial(_find_token, config),
            sessions=sessions,
            events=self.cloud,
            use_tls=config.use_tls,
            connect_to=LinkEmulator(config.emulate_link, address).address if config.emulate_link else None,
        )
        self.observer = Observer(
            self.books,
            self.meters,
            self.link,
            self.cloud,
            source_rate=self._source_rate(),
            cores=cores,
            # An emulated processor's work waits for its turn on it, of which the system knows nothing.
            delays=DelayMeter() if config.emulate_cpu is None else None,
        )
        self.admission = Admission(
            self.link,
            self.cloud,
            self.steering.mixer,
            outage_route=Route(chain.splits[-1], codecs[0]),
            books=self.books,
            meters=self.meters,
            newest=newest,
        )
        self.pipeline = Pipeline(
            chain,
            device=config.device_name,
            session=self.session.session.hex(),
            encoder=Encoder(chain.payload_types, config.picture_quality, codecs[0]),
            codec=codecs[0],
            meters=self.meters,
            next_route=self.admission.next_route,
            wait_for_room=self.admission.wait_for_room,
            put=self._put,
            carry=self.link.carry,
            newest=newest,
            cores=cores,
            pace_s=self.pace_s(),
            live=self.live or self.pace_s() is not None,
            items=config.items,
            detours=chain.splits if config.mode == "auto" and self.model is not None else (),
            cpu=EmulatedCpu(config.emulate_cpu) if config.emulate_cpu else None,
        )
        self._hanging: Running | None = None  # the last that was told
        self._absent: LinkError | None = None  # no server was found in time
        self._failed_here = 0  # task errors of this device's, as far as they went to the outbox

    def _source_rate(self) -> float | None:
        if self.live or self.config.realtime:
            return self.rate
        return math.inf if self.chain.open_source is not None else None

    def describe(self, shares: Mapping[str, float]) -> str:
        """What runs where, and what the model says of it."""
        splits = " + ".join(f"{split} ({share:.0%})" if len(shares) > 1 else split for split, share in shares.items())
        model = self.model
        if model is None or (predicted := model.predict()) is None or self.link.away:
            return f", split {splits or '-'}"
        fps = min(predicted.capacity_fps, model.source_rate)
        limit = "source" if fps < predicted.capacity_fps else predicted.limit
        return f", split {splits or '-'} (the model: {figure(fps, 4)} FPS, limited by the {limit})"

    def run(self) -> int:
        self.signals.listen()
        settle()
        self.link.start()
        self.watchdog.ready()
        self.say(f"{self.steering.decision.reason}; server {self.config.host}:{self.config.port}")
        if self._wait_for_server():
            self.observer.begin(self.begin())
            self.pipeline.start()
            self._work()
            self._drain()
        self.link.abandon()
        self.link.join(2.0)
        return self._end()

    def _wait_for_server(self) -> bool:
        """A device that starts before its server waits for it, unless it has a spool to fill meanwhile.

        False if the user stopped it, it was refused, or its time is over.
        """
        config = self.config
        if self.spool is not None:
            return True
        ends_at = time.monotonic() + (config.duration_s or math.inf)
        while not self.cloud.found.is_set() and not self.link.ended and not self.signals.count:
            if self.link.problem and time.monotonic() >= ends_at:  # a first attempt may take its time
                self._absent = LinkError(
                    f"no server at {config.host}:{config.port} in the {config.duration_s:g} s of --duration "
                    f"({self.link.problem}); with --spool DIR a device begins without one"
                )
                return False
            self.watchdog.beat()
            self.cloud.found.wait(0.1)
        return self.cloud.found.is_set()

    def _work(self) -> None:
        """Until the stream ends, or its time is over, even where a full spool holds it up: prints, decisions, loads."""
        load_at = now = time.monotonic()
        ends_at = now + (self.config.duration_s or math.inf)
        while not (self.pipeline.ended or self.link.ended or self.signals.count) and now < ends_at:
            self.signals.wait(0.05)
            now = time.monotonic()
            self._beat(now)
            if now - self.observer.observed_at >= DECISION_S:
                self._decide(now)
            if self.window_due(now):
                self.end_window(now, self.books.finished)
            if now - load_at >= LOAD_S:
                self.last_load = self.load.measure()
                self.link.tell_load(self.last_load)
                load_at = now

    def _beat(self, now: float) -> None:
        """Tells systemd that this run goes on, unless a task hangs: then another start is all that helps."""
        running = self.pipeline.longest_running()
        if running is None or now - running.since_s < HANGS_S:
            self.watchdog.beat()
        elif running is not self._hanging:
            self._hanging = running
            log.warning(
                "task %s has been running for %g s on item %d; nothing of this stream goes on until it returns",
                self.pipeline.task_of(running.item), HANGS_S, running.item.sequence,
            )  # fmt: skip

    def _decide(self, now: float) -> None:
        told = self.steering.take(self.observer.observe(now), now - self.began_at)
        if self.model is not None:
            self.admission.most_inside = self.model.most_inside()
        if told is not None:
            self.say(told)

    def _drain(self) -> None:
        """What is on its way is finished first; a second signal, or the time, ends that."""
        asked = left = False
        self.pipeline.stop()
        deadline = time.monotonic() + self.config.drain_s
        while not self.link.ended and self.signals.count <= 1:
            self._beat(time.monotonic())
            if self.signals.count and not asked:
                asked = True
                deadline = time.monotonic() + self.config.drain_s
                self.say(
                    f"stopping: finishing what is on its way, for {self.config.drain_s:g} s at most; "
                    "Ctrl-C again stops at once"
                )
            if self.pipeline.ended and not left:
                left = True
                self.link.leave()
            now = time.monotonic()
            if not asked and not self.link.away and not self.pipeline.sensing:
                # The stream ended by itself: only a cloud that is absent, or a sensor that is silent, cuts it short.
                deadline = now + self.config.drain_s
            if now >= deadline:
                break
            if self.window_due(now):
                self.end_window(now, self.books.finished)
            self.link.join(0.02)
        if not self.pipeline.ended:
            self.pipeline.abort()
            self.admission.close()

    def _end(self) -> int:
        self.watchdog.stopping()
        self._close_books()
        if self.spool is not None:
            self.spool.close()
        status = self.finish(
            {
                "decisions": self.steering.log,
                "away_s": round(self.link.away_s(), 3),
                "bytes_sent": self.meters.sent_bytes,
                "cloud_cpu_s": round(self.books.cloud_cpu_s, 6),
                "reconnects": self.link.reconnects,
            },
            self.pipeline.error or self.link.error or self._absent,
        )
        if (there := self.books.dropped["task_error"] - self._failed_here) > 0:
            self.say(f"{there} task_error in the cloud: see the server's log, and the column detail of its results")
        return status

    def _close_books(self) -> None:
        """Enters what became of the items whose end the cloud has not told."""
        books, outbox = self.books, self.session.outbox
        books.captured = self.meters.captured
        with self.link.condition:
            left = outbox.take_all()
            if isinstance(outbox, SpooledOutbox) and outbox.spooled:
                books.left["spooled"] = outbox.spooled
        for entry in left:
            if entry.payload is not None:
                books.dropped["undelivered"] += 1
            elif entry.ending is Ending.FILTERED:
                books.filtered += entry.count
            else:
                books.dropped[entry.detail.partition(":")[0]] += entry.count
        if books.captured > books.ended:
            books.dropped["stopped"] += books.captured - books.ended

    def _put(self, entry: Entry) -> None:
        if entry.ending is Ending.DROPPED and entry.detail.startswith("task_error"):
            self._failed_here += 1
        self.link.put(entry)


def _model(config: DeviceConfig, chain: Chain, codecs: Sequence[str]) -> ModelPolicy:
    """In manual mode the split is the user's; the codec is chosen, and predictions stand beside the measured."""
    assert config.split is not None
    return ModelPolicy(
        Goal(
            tasks=chain.names,
            stateful=chain.stateful,
            splits=chain.splits if config.target_fps is not None else (config.split,),
            start=config.split,
            target_fps=config.target_fps or math.inf,
            codecs=tuple(codecs),
            max_latency_s=config.max_latency_s,
        )
    )
