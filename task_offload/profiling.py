"""`--profile`: measures the chain, and tells what every split would give. In: a config. Out: tables and JSON.

Without HOST every task runs here on some items, and each split's payload is encoded and decoded here, so the cloud is
taken to be as fast as this machine, and the link as `--emulate-link` says. With HOST a short session visits every split
and codec, and what the real link and the real cloud cost is measured too. A split where the payload of some item
cannot travel is not possible, and the reason is told.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import replace
from time import monotonic, perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

from task_offload.config import DeviceConfig, usable_cores
from task_offload.device import OffloadRun, check_split, named_by_token
from task_offload.errors import OffloadError, PayloadError, ProtocolError
from task_offload.observe.report import write_report
from task_offload.output import deliver, say
from task_offload.run import device_cores, open_source
from task_offload.runner import Kind, Outcome, Runner, States
from task_offload.scheduling import table
from task_offload.scheduling.cost_model import Costs, Payload, compute_threads
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.mix import PROBE_SPACING
from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.task import Chain, Item, load_app
from task_offload.transport.tokens import check_device_name
from task_offload.wire.codec import Decoder, Encoder, padded_body
from task_offload.wire.compression import available_codecs

LOCAL_ITEMS = 100
RATE_ITEMS = 10  # that tell how fast a source is
VISITS = 4  # of each split and codec, with HOST


class Measured(NamedTuple):
    """What a profile rests on.

    Attributes:
        costs: of tasks and payloads; splits that are not possible have none.
        how: where they come from, for people.
        impossible: by split, why some item's payload cannot travel there.
    """

    costs: Costs
    how: str
    impossible: dict[int, str]


def run_profile(config: DeviceConfig) -> int:
    """Measures, prints, and writes `--report`. Returns the exit status.

    Raises:
        OffloadError: the app or its source cannot be used.
    """
    # What a spool keeps is for the real results.
    config = replace(config, device_name=check_device_name(config.device_name), spool=None)
    chain = load_app(config.app)
    if config.split is not None:
        check_split(config.split, chain)
    if config.host is not None:
        config = named_by_token(config)
    codecs = available_codecs() if config.codec == "auto" else (config.codec,)
    try:
        measured = (_measure_with_cloud if config.host else measure_here)(config, chain, codecs)
    except KeyboardInterrupt:
        print("stopped before every split was measured, so there is no profile", file=sys.stderr, flush=True)
        return 0
    if measured is None:
        return 1
    costs, how, impossible = measured
    names, target_fps, max_latency_s = chain.names, config.target_fps, config.max_latency_s
    deliver(f"{how}\n\n{table.render(names, costs, target_fps, max_latency_s, impossible)}")
    if config.report is not None:
        profile = {
            "schema": 1,
            "mode": "profile",
            "measured": how,
            "target_fps": target_fps,
            "link_bytes_per_s": costs.link_bytes_per_s if math.isfinite(costs.link_bytes_per_s) else None,
            "tasks": table.task_rows(names, costs),
            "splits": table.split_rows(costs, target_fps, max_latency_s),
            "impossible": [{"split": split, "reason": reason} for split, reason in sorted(impossible.items())],
            "choice": table.choice_row(costs, target_fps, max_latency_s),
        }
        write_report(config.report, profile)
    return 0


class _Time:
    """Time that one thing took, summed over items."""

    def __init__(self) -> None:
        self.count = self.busy_ns = self.cpu_ns = 0

    def add(self, busy_ns: int, cpu_ns: int) -> None:
        self.count += 1
        self.busy_ns += busy_ns
        self.cpu_ns += cpu_ns

    def mean_s(self, factor: float = 1.0) -> float:
        """On a processor so many times slower: its CPU time is longer, what it waits for is not."""
        return (self.busy_ns + (factor - 1.0) * self.cpu_ns) / max(1, self.count) / 1e9


class _PayloadSums:
    """Of the payloads of one split and codec."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.encode, self.decode = _Time(), _Time()

    def costs(self, factor: float) -> Payload:
        count = self.encode.count
        return Payload(self.size_bytes / count, self.encode.mean_s(factor), self.decode.mean_s())


class _Here:
    """The chain on this machine, one item after the other."""

    def __init__(self, config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> None:
        self._chain = chain
        self._codecs = codecs
        self._device = config.device_name
        self._runner, self._states = Runner(chain), States()
        self._encoder = Encoder(chain.payload_types, config.picture_quality)
        self._decoder = Decoder(chain.payload_types)
        rate = open_source(chain, config.source)
        # As in a run: where the first task waits for a sensor, only its CPU time counts, and the sensor has a rate.
        has_pace = chain.open_source is not None and (rate is None or config.realtime)
        self._without_waiting = has_pace or config.emulate_cpu is not None
        self._said_rate = rate if has_pace or rate is None else math.inf
        self._waits_ns: deque[int] = deque(maxlen=RATE_ITEMS)
        self._captured = 0
        self.ended = False  # the stream
        self.times = [_Time() for _ in chain.tasks]
        self.survived = [0] * len(chain.tasks)
        self.payloads = {(split, codec): _PayloadSums() for split in chain.splits for codec in codecs}
        self.impossible: dict[int, str] = {}

    def measure_item(self) -> None:
        item, outcome = self._capture()
        if self.ended:
            return
        self._count(outcome)
        for index in range(1, len(self._chain.tasks)):
            if outcome.kind is not Kind.CONTINUED:
                break
            args = outcome.value
            if index in self._chain.splits:
                for codec in self._codecs:
                    self._measure_payload(args, index, codec)
            outcome = self._runner.run(item, self._states, args, index, index + 1, measure_cpu=True)
            self._count(outcome)

    def source_rate(self) -> float:
        """Items a second that the source yields. It says so, or it is asked for more while nothing else is done."""
        if not self._without_waiting:
            return math.inf
        if self._said_rate is not None:
            return self._said_rate
        for _ in range(min(2 * RATE_ITEMS, self.times[0].count)):  # the first of them may have waited in a buffer
            if self.ended:
                break
            self._capture()
        return 1e9 * len(self._waits_ns) / max(1, sum(self._waits_ns))

    def _capture(self) -> tuple[Item, Outcome]:
        item = Item(self._device, "0" * 32, self._captured, 0.0, len(self._chain.tasks))
        self._captured += 1
        outcome = self._runner.run(item, self._states, (), 0, 1, measure_cpu=True)
        self.ended = outcome.kind is Kind.FILTERED
        if outcome.kind is Kind.CONTINUED:
            self._waits_ns.append(outcome.busy_ns[0])
        if self._without_waiting:
            outcome.busy_ns[0] = outcome.cpu_ns[0]
        return item, outcome

    def _count(self, outcome: Outcome) -> None:
        task = outcome.task
        if outcome.kind is Kind.FAILED:
            name = self._chain.names[task]
            raise OffloadError(f"task {name} failed on item {self._captured - 1}: {outcome.value!r}")
        self.times[task].add(outcome.busy_ns[0], outcome.cpu_ns[0])
        self.survived[task] += outcome.kind is not Kind.FILTERED

    def _measure_payload(self, args: tuple[Any, ...], split: int, codec: str) -> None:
        sums = self.payloads[split, codec]
        started_ns, cpu_started_ns = perf_counter_ns(), thread_time_ns()
        try:
            payload = self._encoder.encode(args, codec)
            encoded_ns, cpu_encoded_ns = perf_counter_ns(), thread_time_ns()
            body = memoryview(bytearray().join(padded_body(payload)))
            decoding_ns = perf_counter_ns()
            self._decoder.decode(payload.head, body)
        except (PayloadError, ProtocolError) as error:
            self.impossible.setdefault(split, " ".join(str(error).split()))
            return
        sums.decode.add(perf_counter_ns() - decoding_ns, 0)
        sums.encode.add(encoded_ns - started_ns, cpu_encoded_ns - cpu_started_ns)
        sums.size_bytes += payload.size_bytes


def measure_here(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> Measured:
    """Runs every task here, and takes the cloud to be as fast as this machine."""
    here = _Here(config, chain, codecs)
    times, items = here.times, config.items or LOCAL_ITEMS
    say(f"measuring every task and every split's payload on {items} items here; Ctrl-C ends it without a profile")
    while not here.ended and times[0].count < items:
        here.measure_item()
    if not times[0].count:
        raise OffloadError("the source yielded no item to measure; give another --source")
    link, factor, cores = config.emulate_link, config.emulate_cpu or 1.0, device_cores(config)
    costs = Costs(
        device_s=[each.mean_s(factor) for each in times],
        cloud_s=[each.mean_s() for each in times],
        survival=[count / each.count if each.count else 1.0 for count, each in zip(here.survived, times, strict=True)],
        stateful=chain.stateful,
        payloads={
            (split, codec): sums.costs(factor)
            for (split, codec), sums in here.payloads.items()
            if sums.encode.count and split not in here.impossible
        },
        link_bytes_per_s=link.bytes_per_s if link else math.inf,
        threads=compute_threads(chain.stateful, chain.splits, cores),
        cores=cores,
        workers=usable_cores(),
        round_trip_s=2 * link.delay_s if link else 0.0,
        source_rate=here.source_rate(),
    )
    rate = f"{link.bytes_per_s * 8 / 1e6:g} Mbit/s" if link else "no limit"
    how = f"measured on {times[0].count} items here; cloud taken as fast as this machine; link {rate}"
    return Measured(costs, how, here.impossible)


class _Visitor:
    """A policy that only looks: it visits every split with every codec."""

    def __init__(self, chain: Chain, codecs: tuple[str, ...], start: int) -> None:
        self.estimates = Estimates(chain.splits, chain.stateful, codecs)
        self._decision = Decision(
            {start: 1.0}, "measuring every split", codecs[0],
            tuple(Route(*route) for route in self.estimates.routes) * VISITS,
        )  # fmt: skip

    def start(self) -> Decision:
        return self._decision

    def decide(self, observation: Observation) -> Decision | None:
        self.estimates.add(observation)
        return None


def _measure_with_cloud(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> Measured | None:
    """None if the session failed, which it has said itself."""
    split = config.split or chain.splits[-1]
    visitor = _Visitor(chain, codecs, split)
    items = config.items or len(visitor.estimates.routes) * VISITS * PROBE_SPACING
    run = OffloadRun(replace(config, split=split, target_fps=math.inf, items=items, report=None), chain, visitor)
    if run.run():
        return None
    if not (run.books.finished or run.meters.impossible) or run.signals.count:
        raise OffloadError("the session ended before every split was measured, so there is no profile; run it again")
    visitor.decide(run.observer.observe(monotonic()))  # its last items
    # With the codecs that the cloud has.
    routes = [route for route in visitor.estimates.routes if route[0] not in run.meters.impossible]
    how = f"measured on {items} items with {config.host}:{config.port}"
    return Measured(visitor.estimates.known(routes).costs, how, run.meters.impossible)
