"""`--profile`: measures the chain, and tells what every split would give. In: a config. Out: tables and JSON.

Without HOST every task runs here on some items, and each split's payload is encoded and decoded here, so the cloud is
taken to be as fast as this machine, and the link as `--emulate-link` says. With HOST a short session visits every split
and codec, and what the real link and the real cloud cost is measured too.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

from task_offload.config import DeviceConfig
from task_offload.device import OffloadRun, check_split
from task_offload.errors import OffloadError, PayloadError
from task_offload.observe.report import write_report
from task_offload.output import deliver
from task_offload.run import open_source
from task_offload.runner import Kind, Runner, States
from task_offload.scheduling import table
from task_offload.scheduling.cost_model import Costs, Payload
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.mix import PROBE_SPACING
from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import Decoder, Encoder, padded_body
from task_offload.wire.compression import available_codecs

LOCAL_ITEMS = 100
VISITS = 4  # of each split and codec, with HOST


def run_profile(config: DeviceConfig) -> int:
    """Measures, prints, and writes `--report`. Returns the exit status.

    Raises:
        OffloadError: the app or its source cannot be used.
    """
    chain = load_app(config.app)
    if config.split is not None:
        check_split(config.split, chain)
    codecs = available_codecs() if config.codec == "auto" else (config.codec,)
    measured = (_measure_with_cloud if config.host else measure_here)(config, chain, codecs)
    if measured is None:
        return 1
    costs, assumed = measured
    names, target_fps = chain.names, config.target_fps
    deliver(f"{assumed}\n\n{table.render(names, costs, target_fps)}")
    if config.report is not None:
        profile = {
            "schema": 1,
            "mode": "profile",
            "measured": assumed,
            "target_fps": target_fps,
            "link_bytes_per_s": costs.link_bytes_per_s if math.isfinite(costs.link_bytes_per_s) else None,
            "tasks": table.task_rows(names, costs),
            "splits": table.split_rows(costs, target_fps),
            "choice": table.choice_row(costs, target_fps),
        }
        write_report(config.report, profile)
    return 0


class _Sums:
    """Sum and count."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.sum += value
        self.count += 1

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


def measure_here(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> tuple[Costs, str]:
    open_source(chain, config.source)
    runner, states = Runner(chain), States()
    encoder, decoder = Encoder(chain.payload_types, config.picture_quality), Decoder(chain.payload_types)
    tasks = len(chain.tasks)
    factor = config.emulate_cpu or 1.0
    times = [_Sums() for _ in range(tasks)]
    survived = [0] * tasks
    sizes = {(split, codec): (_Sums(), _Sums(), _Sums()) for split in chain.splits for codec in codecs}
    for sequence in range(config.items or LOCAL_ITEMS):
        item = Item(config.device_name, "0" * 32, sequence, 0.0, tasks)
        args: tuple[Any, ...] = ()
        for index in range(tasks):
            if index in chain.splits:
                for codec in codecs:
                    _measure_payload(encoder, decoder, args, codec, sizes[index, codec])
            outcome = runner.run(item, states, args, index, index + 1)
            if index == 0 and outcome.kind is Kind.FILTERED:
                break
            if outcome.kind is Kind.FAILED:
                raise OffloadError(f"task {chain.names[index]} failed on item {sequence}: {outcome.value!r}")
            times[index].add(outcome.busy_ns[0] / 1e9)
            survived[index] += outcome.kind is not Kind.FILTERED
            if outcome.kind is not Kind.CONTINUED:
                break
            args = outcome.value
        else:
            continue
        if not times[0].count or (index == 0 and outcome.kind is Kind.FILTERED):
            break
    if not times[0].count:
        raise OffloadError("the source yielded no item to measure; give another --source")
    link = config.emulate_link
    costs = Costs(
        device_s=[each.mean * factor for each in times],
        cloud_s=[each.mean for each in times],
        survival=[count / each.count if each.count else 1.0 for count, each in zip(survived, times, strict=True)],
        stateful=[task.contract.stateful for task in chain.tasks],
        payloads={
            route: Payload(size.mean, encode.mean * factor, decode.mean)
            for route, (size, encode, decode) in sizes.items()
            if size.count
        },
        link_bytes_per_s=link.bytes_per_s if link else math.inf,
        cores=1 if config.emulate_cpu else os.cpu_count() or 1,
        workers=os.cpu_count() or 1,
        round_trip_s=2 * link.delay_s if link else 0.0,
    )
    rate = f"{link.bytes_per_s * 8 / 1e6:g} Mbit/s" if link else "no limit"
    return costs, f"measured on {times[0].count} items here; the cloud taken as fast as this machine; link: {rate}"


def _measure_payload(
    encoder: Encoder, decoder: Decoder, args: tuple[Any, ...], codec: str, sums: tuple[_Sums, _Sums, _Sums]
) -> None:
    started = perf_counter()
    try:
        payload = encoder.encode(args, codec)
    except PayloadError:
        return  # this split is not possible for this item; a run would drop it
    encoded = perf_counter()
    body = memoryview(bytearray().join(padded_body(payload)))
    decoding = perf_counter()
    decoder.decode(payload.head, body)
    for each, value in zip(sums, (payload.size_bytes, encoded - started, perf_counter() - decoding), strict=True):
        each.add(value)


class _Visitor:
    """A policy that only looks: it visits every split with every codec."""

    def __init__(self, chain: Chain, codecs: tuple[str, ...], start: int) -> None:
        self.estimates = Estimates(chain.splits, [task.contract.stateful for task in chain.tasks], codecs)
        self._decision = Decision(
            {start: 1.0}, "measuring every split", codecs[0],
            tuple(Route(*route) for route in self.estimates.routes) * VISITS,
        )  # fmt: skip

    def start(self) -> Decision:
        return self._decision

    def decide(self, observation: Observation) -> Decision | None:
        self.estimates.add(observation)
        return None


def _measure_with_cloud(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> tuple[Costs, str] | None:
    """None if the session failed, which it has said itself."""
    split = config.split or chain.splits[-1]
    visitor = _Visitor(chain, codecs, split)
    items = config.items or len(visitor.estimates.routes) * VISITS * PROBE_SPACING
    run = OffloadRun(replace(config, split=split, target_fps=math.inf, items=items, report=None), chain, visitor)
    if run.run():
        return None
    if not run.books.finished or run.signals.count:
        raise OffloadError("the session ended before every split was measured, so there is no profile; run it again")
    visitor.decide(run.observe(monotonic()))  # its last items
    routes = visitor.estimates.routes  # with the codecs that the cloud has
    return visitor.estimates.known(routes).costs, f"measured on {items} items with {config.host}:{config.port}"
