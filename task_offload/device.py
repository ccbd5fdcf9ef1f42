"""The device's side, wired: pipeline -> link; the scheduler, the prints and the report on the main thread."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from task_offload.agreement import chain_spec
from task_offload.config import DeviceConfig
from task_offload.emulated_cpu import EmulatedCpu
from task_offload.errors import ConfigError, LinkError
from task_offload.local_run import LocalRun
from task_offload.observe.load import DelayMeter
from task_offload.pipeline import Pipeline
from task_offload.run import MOST_WINDOWS, Run, device_cores, in_words, open_source, share_of
from task_offload.runner import settle
from task_offload.scheduling.mix import Mixer
from task_offload.scheduling.observation import Observation, Policy, Route
from task_offload.scheduling.policy import Goal, ModelPolicy
from task_offload.scheduling.table import figure
from task_offload.spool import DiskSpool
from task_offload.spooled_outbox import SpooledOutbox
from task_offload.task import Chain, load_app
from task_offload.transport.emulation import LinkEmulator
from task_offload.transport.exchange import DeviceSession
from task_offload.transport.link import Link
from task_offload.transport.loopback import check_no_tls_addresses, find_loopback_token, find_token
from task_offload.transport.tokens import Token, check_device_name
from task_offload.wire.codec import Encoder
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import Costs, Ending, Totals, Welcome
from task_offload.wire.outbox import Acked, Entry, Outbox

log = logging.getLogger(__name__)

DECISION_S = 0.5  # between looks of the scheduler
LOAD_S = 2.0
MEMORY_SPOOL_BYTES = 64 * 1024 * 1024
DISK_SPOOL_BYTES = 1024 * 1024 * 1024
ROOM_ENTRIES = 2  # that wait for the window: one goes as soon as it opens, one follows


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
        assert config.split is not None
        if not config.use_tls:
            check_no_tls_addresses(config.host)
        self.cores = device_cores(config)
        self._codecs = available_codecs() if config.codec == "auto" else (config.codec,)
        self._cloud_codecs = frozenset(self._codecs)
        self.model: ModelPolicy | None = None
        if policy is not None:
            self.policy = policy
            self.decision = policy.start()
        else:
            # In manual mode the split is the user's; the codec is chosen, and predictions stand beside the measured.
            self.model = ModelPolicy(
                Goal(
                    tasks=chain.names,
                    stateful=chain.stateful,
                    splits=chain.splits if config.target_fps is not None else (config.split,),
                    start=config.split,
                    target_fps=config.target_fps or math.inf,
                    codecs=self._codecs,
                    max_latency_s=config.max_latency_s,
                )
            )
            self.policy = self.model
            self.decision = self.policy.start()
        self.mixer = Mixer(self.decision)
        self.decisions: list[dict[str, Any]] = []
        self.spool = DiskSpool(config.spool, config.spool_limit_bytes or DISK_SPOOL_BYTES) if config.spool else None
        self._local_route = Route(chain.splits[-1], self._codecs[0])
        self._backlog = 0.0  # after an outage: entries that waited when the last item was let in
        self._most_inside = math.inf
        self._draining = False
        self._welcomed = threading.Event()
        self._absent: LinkError | None = None  # no server was found in time
        self._failed_here = 0  # task errors of this device's, as far as they went to the outbox
        self._link_busy_before = self._full_before = 0.0
        self._cpu_before_s = 0.0
        self._window = 1  # items that the cloud lets be unacknowledged
        # An emulated processor's work waits for its turn on it, of which the system knows nothing.
        self._delays = DelayMeter() if config.emulate_cpu is None else None
        self._observed_at = 0.0
        self.rate = open_source(chain, config.source)
        self._newest = (config.overload or ("newest" if self.live else "block")) == "newest"
        earlier, self.session = self._sessions()
        address = (config.host, config.port)
        self.link = Link(
            address,
            device=config.device_name,
            chain=chain_spec(chain),
            find_token=partial(_find_token, config),
            sessions=[*earlier, self.session],
            events=self,
            use_tls=config.use_tls,
            connect_to=LinkEmulator(config.emulate_link, address).address if config.emulate_link else None,
        )

    def _sessions(self) -> tuple[list[DeviceSession], DeviceSession]:
        """What earlier runs left in the spool for this chain, and the session of this run."""
        session = os.urandom(16)
        config, spool = self.config, self.spool
        limit_bytes = config.spool_limit_bytes or (DISK_SPOOL_BYTES if spool else MEMORY_SPOOL_BYTES)
        if spool is None:
            return [], DeviceSession(session, Outbox(limit_bytes))
        meta = json.dumps([config.device_name, *chain_spec(self.chain).identity()]).encode()
        earlier = []
        for held in spool.sessions():
            if held.meta != meta:
                log.warning(
                    "%d items of an earlier run wait in %s for another app or device name: %s",
                    held.items, config.spool, held.meta.decode(errors="replace"),
                )  # fmt: skip
                continue
            outbox = SpooledOutbox(spool, held.session, limit_bytes, (held.first, held.end))
            earlier.append(DeviceSession(bytes.fromhex(held.session), outbox, held.end, sent_to=2**63, leaving=True))
        if earlier:
            log.info(
                "%d items of earlier runs are delivered first", sum(each.outbox.waiting_entries for each in earlier)
            )
        spool.begin(session.hex(), meta)
        outbox = SpooledOutbox(spool, session.hex(), limit_bytes, drop_when_full=self._newest)
        return earlier, DeviceSession(session, outbox)

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
        config = self.config
        codec = self._codecs[0]
        self._pipeline = pipeline = Pipeline(
            self.chain,
            device=config.device_name,
            session=self.session.session.hex(),
            encoder=Encoder(self.chain.payload_types, config.picture_quality, codec),
            codec=codec,
            meters=self.meters,
            next_route=self._next_route,
            wait_for_room=self._wait_for_room,
            put=self._put,
            carry=self.link.carry,
            newest=self._newest,
            cores=self.cores,
            pace_s=self.pace_s(),
            live=self.live or self.pace_s() is not None,
            items=config.items,
            detours=self.chain.splits if config.mode == "auto" and self.model is not None else (),
            cpu=EmulatedCpu(config.emulate_cpu) if config.emulate_cpu else None,
        )
        self.signals.listen()
        settle()
        self.link.start()
        self.watchdog.ready()
        self.say(f"{self.decision.reason}; server {config.host}:{config.port}")
        if self._wait_for_server():
            self.began_at = self._window_at = self._observed_at = time.monotonic()
            self._cpu_before_s = time.process_time()
            if self._delays is not None:
                self._delays.measure()
            pipeline.start()
            self._work(pipeline)
            self._drain(pipeline)
        self.link.abandon()
        self.link.join(2.0)
        return self._end(pipeline)

    def _wait_for_server(self) -> bool:
        """A device that starts before its server waits for it, unless it has a spool to fill meanwhile.

        False if the user stopped it, it was refused, or its time is over.
        """
        config = self.config
        if self.spool is not None:
            return True
        ends_at = time.monotonic() + (config.duration_s or math.inf)
        while not self._welcomed.is_set() and not self.link.ended and not self.signals.count:
            if self.link.problem and time.monotonic() >= ends_at:  # a first attempt may take its time
                self._absent = LinkError(
                    f"no server at {config.host}:{config.port} in the {config.duration_s:g} s of --duration "
                    f"({self.link.problem}); with --spool DIR a device begins without one"
                )
                return False
            self.watchdog.beat()
            self._welcomed.wait(0.1)
        return self._welcomed.is_set()

    def _work(self, pipeline: Pipeline) -> None:
        """Until the stream ends, or its time is over, even where a full spool holds it up: prints, decisions, loads."""
        load_at = now = time.monotonic()
        ends_at = now + (self.config.duration_s or math.inf)
        while not (pipeline.ended or self.link.ended or self.signals.count) and now < ends_at:
            self.signals.wait(0.05)
            now = time.monotonic()
            self.watchdog.beat()
            if now - self._observed_at >= DECISION_S:
                self._decide(now)
            if self.window_due(now):
                self.end_window(now, self.books.finished)
            if now - load_at >= LOAD_S:
                self.last_load = self.load.measure()
                self.link.tell_load(self.last_load)
                load_at = now

    def observe(self, now: float) -> Observation:
        """What happened since the last call."""
        interval_s, self._observed_at = now - self._observed_at, now
        link_busy, full, cpu_s = self.link.busy_s(), self.link.full_s(), time.process_time()
        observation = self.meters.observe(
            now,
            interval_s,
            backlog=self.meters.captured - self.books.ended,
            link_busy_s=link_busy - self._link_busy_before,
            source_rate=self._source_rate(),
            cores=self.cores,
            window=self._window,
            away=not self.link.takes_live,
            cpu_s=cpu_s - self._cpu_before_s,
            window_full_s=full - self._full_before,
            delays=self._delays.measure() if self._delays is not None else None,
            codecs=self._cloud_codecs,
        )
        self._cpu_before_s = cpu_s
        self._link_busy_before, self._full_before = link_busy, full
        return observation

    def _decide(self, now: float) -> None:
        observation = self.observe(now)
        decision = self.policy.decide(observation)
        if self.model is not None:
            self._most_inside = self.model.most_inside()
        if decision is None:
            return
        self.mixer.follow(decision)
        before, self.decision = self.decision, decision
        if decision.routine:
            return
        codec = f", codec {before.codec} -> {decision.codec}" if before.codec != decision.codec else ""
        moved = f" -> {in_words(decision.shares)}" if before.shares != decision.shares else ""
        self.say(f"split {in_words(before.shares)}{moved}{codec}: {decision.reason}")
        self.decisions.append(
            {
                "t": round(now - self.began_at, 3),
                "from": share_of(before.shares),
                "to": share_of(decision.shares),
                "reason": decision.reason,
                "predicted_fps": decision.predicted_fps,
                "observed_fps": round(observation.fps, 3),
            }
        )
        del self.decisions[:-MOST_WINDOWS]

    def _source_rate(self) -> float | None:
        if self.live or self.config.realtime:
            return self.rate
        return float("inf") if self.chain.open_source is not None else None

    def _drain(self, pipeline: Pipeline) -> None:
        """What is on its way is finished first; a second signal, or the time, ends that."""
        asked = left = False
        pipeline.stop()
        deadline = time.monotonic() + self.config.drain_s
        while not self.link.ended and self.signals.count <= 1:
            self.watchdog.beat()
            if self.signals.count and not asked:
                asked = True
                deadline = time.monotonic() + self.config.drain_s
                self.say(
                    f"stopping: finishing what is on its way, for {self.config.drain_s:g} s at most; "
                    "Ctrl-C again stops at once"
                )
            if pipeline.ended and not left:
                left = True
                self.link.leave()
            now = time.monotonic()
            if not asked and not self.link.away and not pipeline.sensing:
                # The stream ended by itself: only a cloud that is absent, or a sensor that is silent, cuts it short.
                deadline = now + self.config.drain_s
            if now >= deadline:
                break
            if self.window_due(now):
                self.end_window(now, self.books.finished)
            self.link.join(0.02)
        if not pipeline.ended:
            pipeline.abort()
            with self.link.condition:
                self._draining = True
                self.link.condition.notify_all()

    def _end(self, pipeline: Pipeline) -> int:
        self.watchdog.stopping()
        books = self.books
        books.captured = self.meters.captured
        with self.link.condition:
            outbox = self.session.outbox
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
        if self.spool is not None:
            self.spool.close()
        status = self.finish(
            {
                "decisions": self.decisions,
                "away_s": round(self.link.away_s(), 3),
                "bytes_sent": self.meters.sent_bytes,
                "cloud_cpu_s": round(books.cloud_cpu_s, 6),
                "reconnects": self.link.reconnects,
            },
            pipeline.error or self.link.error or self._absent,
        )
        if (there := books.dropped["task_error"] - self._failed_here) > 0:
            self.say(f"{there} task_error in the cloud: see the server's log, and the column detail of its results")
        return status

    # -- for the pipeline -------------------------------------------------------------------------------------------

    def _put(self, entry: Entry) -> None:
        if entry.ending is Ending.DROPPED and entry.detail.startswith("task_error"):
            self._failed_here += 1
        self.link.put(entry)

    def _next_route(self) -> Route:
        if not self._in_time():
            started = time.monotonic()
            self.link.wait_until(self._in_time)
            self.meters.held(time.monotonic() - started)
        # While the cloud is away, as many tasks here as the pins allow.
        route = self._local_route if self.link.away else self.mixer.next_route()
        return route if route.codec in self._cloud_codecs else Route(route.split, "none")

    def _in_time(self) -> bool:
        """Whether an item that is captured now will end in time, as far as those before it are concerned."""
        if self._most_inside == math.inf:
            return True
        inside = self.meters.captured - self.books.ended
        return inside < self._most_inside or not self.link.takes_live or self._draining or self._pipeline.stopping

    def _wait_for_room(self) -> bool:
        """Waits until the link can take another item. While the cloud takes none of this run, its spool is the room."""
        self.link.wait_until(self._has_room)
        return not (self._draining or self.link.ended)

    def _has_room(self) -> bool:
        outbox = self.session.outbox
        waiting = outbox.waiting_entries
        taken = self.link.takes_live
        if self._draining or (waiting < ROOM_ENTRIES and taken):
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
            self.meters.dropped(dropped)
        return True

    # -- for the link, one call at a time ---------------------------------------------------------------------------

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        self.meters.workers, self.meters.main_share = welcome.workers, welcome.main_share
        self._window = welcome.unacked_items
        # A JPEG needs no package that the cloud may lack.
        self._cloud_codecs = frozenset(name for name in self._codecs if name in welcome.codecs or ":" in name)
        if welcome.source_differs:
            log.warning("the server's app is other source code than this device's; results may differ")
        log.info("connected to %s:%d", self.config.host, self.config.port)
        self._welcomed.set()

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        if session is not self.session:
            self.books.delivered_earlier += sum(items for _, items in acked)
            return
        now = time.monotonic()
        for entry, items in acked:
            self.meters.acked(
                entry.payload.size_bytes if entry.payload else 0,
                now - entry.sent_at if entry.sent_at else None,
                now - (entry.last_captured_at or entry.captured_at),
                items,
                entry.ending is not Ending.DROPPED,
            )
        self.meters.finished(self.books.learn(totals))

    def cost(self, session: DeviceSession, costs: Costs) -> None:
        if session is self.session:  # a tag of another process stands for another codec
            self.meters.cost(costs)

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        self.meters.sent(size_bytes, cpu_s)
