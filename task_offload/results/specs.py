"""What `--results` means. In: the user's words. Out: the store and the sinks, open."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from task_offload.errors import ConfigError
from task_offload.results.base import Sink, Store
from task_offload.results.jsonl import JsonlSink
from task_offload.results.mqtt import MqttSink, parse_broker
from task_offload.results.sqlite import SqliteStore


@dataclass(frozen=True)
class Results:
    """Where results go.

    Attributes:
        store: the book of record; None if there is none, and then an ack means processed, not recorded.
        sinks: what is fed from it.
    """

    store: Store | None
    sinks: tuple[Sink, ...] = ()


def check_results(specs: Sequence[str], keep_days: float | None = None) -> None:
    """Checks what `--results` and `--keep` say, without opening anything.

    Raises:
        ConfigError: a word is not understood, or they contradict each other.
    """
    kinds = []
    for spec in specs:
        kind, _, place = spec.partition(":")
        if spec != "none" and (kind not in ("sqlite", "jsonl", "mqtt", "mqtts") or not place):
            raise ConfigError(f"--results {spec}: give sqlite:FILE, jsonl:FILE, mqtt://HOST or none")
        if kind.startswith("mqtt"):
            parse_broker(spec)
        kinds.append(kind)
    if "none" in kinds and len(kinds) > 1:
        raise ConfigError("--results none: it stands alone; leave out either none or the others")
    if kinds.count("sqlite") > 1:
        raise ConfigError("--results: only one SQLite file can be the book of record; leave out the others")
    if keep_days is not None and not 0 < keep_days < float("inf"):
        raise ConfigError(f"--keep {keep_days:g}: give a number of days above 0, such as 30")
    if keep_days is not None and "sqlite" not in kinds:
        raise ConfigError("--keep: it bounds the SQLite file, but there is none; add --results sqlite:FILE")


def open_results(specs: Sequence[str], keep_days: float | None = None) -> Results:
    """Opens every place that `--results` names.

    Arguments:
        specs: any of `sqlite:FILE`, `jsonl:FILE`, `mqtt://HOST` as `mqtt.Broker` says, or `none` alone.
        keep_days: for the SQLite file, as `SqliteStore` says.

    Raises:
        ConfigError: a spec is not understood.
        StoreError: a place cannot be used. Nothing is left open.
    """
    check_results(specs, keep_days)
    store: Store | None = None
    sinks: list[Sink] = []
    with contextlib.ExitStack() as opened:
        for spec in specs:
            kind, _, place = spec.partition(":")
            if kind == "sqlite":
                store = SqliteStore(Path(place), keep_days)
                opened.callback(store.close)
            elif kind == "jsonl":
                sinks.append(JsonlSink(Path(place)))
                opened.callback(sinks[-1].close)
            elif kind.startswith("mqtt"):
                sinks.append(MqttSink(parse_broker(spec)))
                opened.callback(sinks[-1].close)
        opened.pop_all()
    return Results(store, tuple(sinks))
