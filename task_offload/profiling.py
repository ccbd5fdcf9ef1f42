"""`--profile`: measures the chain, and tells what every split would give. In: a config. Out: tables and JSON.

Without HOST every task runs here on some items, and each split's payload is encoded and decoded here, so the cloud is
taken to be as fast as this machine, and the link as `--emulate-link` says. With HOST a short session visits every split
and codec, and what the real link and the real cloud cost is measured too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from task_offload.config import DeviceConfig
from task_offload.device import OffloadRun
from task_offload.errors import OffloadError, PayloadError
from task_offload.observe.report import write_report
from task_offload.runner import Kind, Runner, States
from task_offload.scheduling.cost_model import Choice, Costs, Option, Payload, cheapest, fastest, options
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.observation import Decision, Observation, Route
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import BODY_ALIGNMENT, Decoder, Encoder
from task_offload.wire.codec import Payload as WirePayload
from task_offload.wire.compression import available_codecs

LOCAL_ITEMS = 100
VISITS = 4  # of each split and codec, with HOST
ITEMS_PER_VISIT = 4  # the mixer spaces probes so


def run_profile(config: DeviceConfig) -> int:
    """Measures, prints, and writes `--report`. Returns the exit status.

    Raises:
        OffloadError: the app or its source cannot be used.
    """
    chain = load_app(config.app)
    codecs = available_codecs() if config.codec == "auto" else (config.codec,)
    if config.host is None:
        costs, assumed = _measure_here(config, chain, codecs)
    else:
        costs, assumed = _measure_with_cloud(config, chain, codecs)
    found = options(costs)
    target = config.target_fps
    choice = (cheapest(found, target) if target is not None else None) or fastest(found)
    names = chain.names
    for line in _tables(names, costs, found, choice, target, assumed):
        print(line)
    if config.report is not None:
        write_report(config.report, _as_json(names, costs, found, choice, target, assumed))
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


def _measure_here(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> tuple[Costs, str]:
    if chain.open_source is not None:
        chain.open_source(config.source)
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
    body = _body(payload)
    decoding = perf_counter()
    decoder.decode(payload.head, body)
    for each, value in zip(sums, (payload.size_bytes, encoded - started, perf_counter() - decoding), strict=True):
        each.add(value)


def _body(payload: WirePayload) -> memoryview:
    body = bytearray()
    for buffer in payload.buffers:
        body += buffer
        body += bytes(-len(buffer) % BODY_ALIGNMENT)
    return memoryview(body)


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


def _measure_with_cloud(config: DeviceConfig, chain: Chain, codecs: tuple[str, ...]) -> tuple[Costs, str]:
    split = config.split if config.split in chain.splits else chain.splits[-1]
    visitor = _Visitor(chain, codecs, split)
    routes = visitor.estimates.routes
    items = config.items or len(routes) * VISITS * ITEMS_PER_VISIT
    run = OffloadRun(replace(config, split=split, target_fps=math.inf, items=items, report=None), chain, visitor)
    status = run.run()
    if status:
        raise OffloadError("the session did not end well, so there is no profile")
    return visitor.estimates.known(routes).costs, f"measured on {items} items with {config.host}:{config.port}"


def _tables(
    names: tuple[str, ...], costs: Costs, found: list[Option], choice: Choice, target: float | None, assumed: str
) -> list[str]:
    width = max(len(name) for name in names)
    lines = [assumed, "", f"   {'task':{width}}  device ms  cloud ms  survive"]
    for number, name in enumerate(names, 1):
        i = number - 1
        lines.append(
            f"{number:2} {name:{width}}  {costs.device_s[i] * 1e3:9.3f} {costs.cloud_s[i] * 1e3:9.3f}"
            f"  {costs.survival[i]:6.1%}"
        )
    lines += ["", "split  codec     payload kB  encode ms  decode ms |    FPS  latency ms  cloud ms  the limit is"]
    taken = choice.shares
    for option in found:
        payload = costs.payloads[option.split, option.codec]
        mark = "*" if option.split in taken and option.codec == choice.codec else " "
        lines.append(
            f"{option.split:4} {mark} {option.codec:8} {payload.size_bytes / 1e3:11.1f} {payload.encode_s * 1e3:10.3f}"
            f" {payload.decode_s * 1e3:10.3f} | {_fps(option, costs):6.1f} {option.latency_s * 1e3:11.1f}"
            f" {option.cloud_s * 1e3:9.3f}  {_limit(option, costs)}"
        )
    return [*lines, "", _in_words(choice, costs, target)]


def _fps(option: Option | Choice, costs: Costs) -> float:
    return min(option.capacity_fps, costs.source_rate)


def _limit(option: Option, costs: Costs) -> str:
    choice = Choice(option, option, 1.0, option.cloud_s, option.capacity_fps)
    return "source" if option.capacity_fps > costs.source_rate else choice.limit


def _in_words(choice: Choice, costs: Costs, target: float | None) -> str:
    splits = " + ".join(f"split {split} ({share:.0%})" for split, share in sorted(choice.shares.items()))
    what = f"{splits} with codec {choice.codec}: {_fps(choice, costs):.1f} FPS, {choice.cloud_s * 1e3:.2f} ms of cloud"
    if target is None:
        return f"* the fastest: {what} time an item; give a TARGET to see the cheapest"
    if _fps(choice, costs) < target:
        return f"* no split reaches {target:g} FPS; the fastest: {what} time an item; the limit is the {choice.limit}"
    return f"* the cheapest that meets {target:g} FPS: {what} time an item"


def _as_json(
    names: tuple[str, ...], costs: Costs, found: list[Option], choice: Choice, target: float | None, assumed: str
) -> Mapping[str, Any]:
    link = costs.link_bytes_per_s
    return {
        "schema": 1,
        "mode": "profile",
        "measured": assumed,
        "target_fps": target,
        "link_bytes_per_s": None if math.isinf(link) else link,
        "tasks": [
            {
                "name": name,
                "device_ms": costs.device_s[i] * 1e3,
                "cloud_ms": costs.cloud_s[i] * 1e3,
                "survival": costs.survival[i],
            }
            for i, name in enumerate(names)
        ],
        "splits": [
            {
                "split": option.split,
                "codec": option.codec,
                "payload_bytes": costs.payloads[option.split, option.codec].size_bytes,
                "encode_ms": costs.payloads[option.split, option.codec].encode_s * 1e3,
                "decode_ms": costs.payloads[option.split, option.codec].decode_s * 1e3,
                "fps": _fps(option, costs),
                "latency_ms": option.latency_s * 1e3,
                "cloud_ms": option.cloud_s * 1e3,
                "limit": _limit(option, costs),
            }
            for option in found
        ],
        "choice": {
            "shares": {str(split): share for split, share in sorted(choice.shares.items())},
            "codec": choice.codec,
            "fps": _fps(choice, costs),
            "cloud_ms": choice.cloud_s * 1e3,
            "limit": choice.limit,
        },
    }
