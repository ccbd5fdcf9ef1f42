"""The headline: one cloud for many devices. Its cost, its order and its fairness as their number grows.

    python3 -m benchmarks.fleet            all of these; --plot FILE.png draws the last one
    python3 -m benchmarks.fleet bar        what one core carries: small items, and raw frames, from 100 devices
    python3 -m benchmarks.fleet flat       cost of an item from 10 to 500 devices, at equal items a second
    python3 -m benchmarks.fleet fair       500 devices at 17 items a second: each one's share, and the ack's latency
    python3 -m benchmarks.fleet greedy     one camera that sends all it can beside 50 small devices
    python3 -m benchmarks.fleet grid       splits 1 to 6, engines, numbers of devices, and the forerunner; with a plot

The cloud is the real coordinator as a process of its own, held on one core where it says so, with every result in
SQLite before it is acknowledged, and no TLS. The devices are emulated (`fleet_devices`) by another process on another
core. CPU is that of the cloud's processes, its workers' included, for an item that was acknowledged; on a machine that
has other work too, items a second by CPU second say what a core to itself would carry.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import psutil

from benchmarks import fleet_chain, forerunner
from benchmarks.fleet_devices import Found, Load, devices
from benchmarks.harness import Peer, calls, in_turn, print_table, verdict

ROOT = Path(__file__).resolve().parents[1]
LEAST_RATE = 10.0  # items a second of all devices: with fewer an item has no cost to draw
COORDINATOR = ROOT / "cloud_server_coordinator.py"
CORES = tuple(sorted(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
        cpu_us: CPU of the cloud for one item.
        p50_ms, p99_ms: from when an item was due to its ack; 0 where there is none.
        jain: fairness index over what each device got of what it offered.
        least: the smallest such part.
        device_kb: memory of the cloud for each device, idle and with items on their way.
    """

    rate: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    jain: float
    least: float
    device_kb: tuple[float, float]

    @property
    def by_cpu(self) -> float:
        """Items that one CPU second carries."""
        return 1e6 / self.cpu_us


class Cloud:
    """A real coordinator."""

    def __init__(self, folder: Path, *words: str, cores: Sequence[int] = CORES) -> None:
        self.store = folder / "results.sqlite"
        argv = [sys.executable, str(COORDINATOR), "--app", fleet_chain.APP, "--host", "127.0.0.1", "--port", "0"]
        argv += ["--no-tls", "--results", f"sqlite:{self.store}", *words]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("OFFLOAD_")}
        self._process = subprocess.Popen(argv, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.match(r"listening on [^:]+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit("the cloud did not start")
        # A server that cannot write its log stands still, so somebody must read it.
        self._reader = threading.Thread(target=deque, args=(self._process.stderr, 0), daemon=True)
        self._reader.start()
        self.pid = self._process.pid
        self._all = psutil.Process(self.pid)
        for each in self._processes():
            each.cpu_affinity(list(cores))
            for thread in each.threads():
                os.sched_setaffinity(thread.id, set(cores))

    def _processes(self) -> list[psutil.Process]:
        return [self._all, *self._all.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self._processes())

    def memory_bytes(self) -> int:
        return int(self._all.memory_info().rss)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()


class Carrier(Protocol):
    """What `carry` asks of a server."""

    port: int

    def cpu_s(self) -> float:
        """CPU seconds that its processes have used."""

    def memory_bytes(self) -> int:
        """What it has in memory."""


def carry(cloud: Carrier, loads: Sequence[Load], seconds: float, warm_up_s: float = 1.0) -> tuple[Result, Found]:
    """One run: connects the devices, lets them send, and lets them leave."""
    count = sum(load.devices for load in loads)
    before_bytes = cloud.memory_bytes()
    generator = Peer(devices)
    generator.ask("pin", CORES[-1])
    generator.ask("connect", loads, cloud.port, 0)
    generator.ask("idle", 0.5)
    idle_bytes = cloud.memory_bytes() - before_bytes
    generator.ask("run", 0.0, warm_up_s)
    cpu_s = cloud.cpu_s()
    found: Found = generator.ask("run", 0.0, seconds)
    cpu_s = cloud.cpu_s() - cpu_s
    busy_bytes = cloud.memory_bytes() - before_bytes
    refused = generator.ask("leave")
    generator.close()
    assert not refused, refused
    items = max(1, sum(found.acked))
    parts = [acked / max(1, offered) for acked, offered in zip(found.acked, found.offered, strict=True)]
    paced = all(load.rate for load in loads)
    shares = parts if paced else [float(each) for each in found.acked]
    latencies = sorted(found.latencies_ms) or [0.0]
    mean = sum(shares) / len(shares)
    result = Result(
        items / found.seconds,
        cpu_s / items * 1e6,
        latencies[len(latencies) // 2],
        latencies[int(len(latencies) * 0.99)],
        sum(shares) ** 2 / (len(shares) * sum(each**2 for each in shares) or 1),
        min(shares) / (1.0 if paced else mean or 1.0),
        (idle_bytes / count / 1024, busy_bytes / count / 1024),
    )
    return result, found


def check_books(store: Path) -> int:
    """Every session's items are recorded from 0 on, each once and in order. Returns how many there are."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    expected: dict[tuple[str, str], int] = {}
    count = 0
    for device, session, sequence, ending in connection.execute(
        "SELECT device, session, sequence, ending FROM items ORDER BY rowid"
    ):
        key = device, session
        assert sequence == expected.get(key, 0), f"{key}: item {sequence} where {expected.get(key, 0)} was due"
        assert ending == "completed", ending
        expected[key] = sequence + 1
        count += 1
    connection.close()
    return count


@contextmanager
def fresh_cloud(*words: str, cores: Sequence[int] = CORES) -> Iterator[Cloud]:
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Path(folder), *words, cores=cores)
        try:
            yield cloud
        finally:
            cloud.close()
        check_books(cloud.store)


HEAD = ("", "items/s", "CPU µs an item", "items a CPU second", "p50 ms", "p99 ms", "Jain", "least part", "kB a device")


def row(name: str, runs: Sequence[Result]) -> tuple[Any, ...]:
    def middle(column: str) -> float:
        return median(getattr(each, column) for each in runs)

    if not middle("p50_ms"):  # the forerunner acknowledges nothing
        return name, middle("rate"), middle("cpu_us"), middle("by_cpu"), *["-"] * 5
    idle, busy = (median(each.device_kb[i] for each in runs) for i in (0, 1))
    return (
        name, middle("rate"), middle("cpu_us"), middle("by_cpu"), f"{middle('p50_ms'):.1f}",
        f"{middle('p99_ms'):.1f}", f"{middle('jain'):.3f}", f"{middle('least'):.2f}", f"{idle:.0f} / {busy:.0f}",
    )  # fmt: skip


def bar(options: argparse.Namespace) -> None:
    """One core of the cloud, 100 devices."""
    one_core = CORES[:1]
    for name, load, least in (
        ("small items", Load(100, 6, None, window=8), 8000),
        ("raw frames", Load(100, 6, 0, window=4), 2500),
    ):
        runs = []
        for _ in range(options.rounds):
            with fresh_cloud("--workers", "1", cores=one_core) as cloud:
                runs.append(carry(cloud, [load], options.seconds)[0])
        print_table(HEAD, [row(name, runs)])
        rate = median(each.rate for each in runs)
        print(f"{name}: {rate:,.0f} a second on one core, {verdict(rate / least, at_least=1.0)} of {least:,}\n")


def flat(options: argparse.Namespace) -> None:
    """The cost of an item while the number of devices grows and the items a second do not."""
    numbers = (10, 50, 100, 500)
    found: dict[int, list[Result]] = {number: [] for number in numbers}
    for number in in_turn(numbers, options.rounds):
        with fresh_cloud() as cloud:
            load = Load(number, 6, None, rate=options.rate / number, window=1000)
            found[number].append(carry(cloud, [load], options.seconds)[0])
    print_table(HEAD, [row(f"{number} devices", runs) for number, runs in found.items()])
    costs = [median(each.cpu_us for each in runs) for runs in found.values()]
    print(f"highest by lowest cost: {verdict(max(costs) / min(costs), at_most=1.2)}\n")


def fair(options: argparse.Namespace) -> None:
    """Small items of many devices at a camera's pace."""
    runs = []
    for _ in range(options.rounds):
        with fresh_cloud() as cloud:
            runs.append(carry(cloud, [Load(options.devices, 6, None, rate=options.fps, window=64)], options.seconds)[0])
    print_table(HEAD, [row(f"{options.devices} x {options.fps:g}", runs)])
    offered = options.devices * options.fps
    rate = median(each.rate for each in runs)
    least = median(each.least for each in runs)
    print(f"carried of {offered:,.0f} items/s: {rate / offered:.2f}")
    print(f"least share by the fair one: {verdict(least / min(1.0, rate / offered), at_least=0.95)}")
    print(f"ack latency: p50 {median(r.p50_ms for r in runs):.1f} ms, p99 {median(r.p99_ms for r in runs):.1f} ms\n")


def greedy(options: argparse.Namespace) -> None:
    """What 50 small devices get alone, and beside one that sends raw frames at split 1 as fast as it may."""
    small = Load(50, 6, None, rate=options.fps, window=64)
    found: dict[str, list[Result]] = {"alone": [], "beside": []}
    for name in in_turn(list(found), options.rounds):
        with fresh_cloud() as cloud:
            loads = [small] if name == "alone" else [small, Load(1, 1, 0, window=32)]
            result, seen = carry(cloud, loads, options.seconds)
            parts = [a / max(1, o) for a, o in zip(seen.acked[:50], seen.offered[:50], strict=True)]
            found[name].append(
                Result(
                    sum(seen.acked[:50]) / seen.seconds, result.cpu_us, result.p50_ms, result.p99_ms,
                    sum(parts) ** 2 / (50 * sum(each**2 for each in parts)), min(parts), result.device_kb,
                )
            )  # fmt: skip
    print_table(HEAD, [row(name, runs) for name, runs in found.items()])
    print(f"least part beside a greedy camera: {verdict(median(r.least for r in found['beside']), at_least=0.95)}\n")


# --- the forerunner ---------------------------------------------------------------------------------------------


def forerunner_server(pipe: Any) -> None:
    """Its server; says how much CPU it used and how many items it ended."""
    server = forerunner.Server(fleet_chain.tasks)
    pipe.send(server.port)
    for _ in calls(pipe):
        pipe.send((time.process_time(), fleet_chain.ended))


def forerunner_message(split: int, args: tuple[Any, ...]) -> bytes:
    import pickle

    from task_offload.picture import Picture

    number = struct.Struct("<Q")
    pickled = [pickle.dumps(arg.image if isinstance(arg, Picture) else arg) for arg in args]
    return b"".join([number.pack(split), number.pack(len(args)), *(number.pack(len(each)) + each for each in pickled)])


def forerunner_devices(pipe: Any) -> None:
    """Sends messages from many connections, at a rate or as fast as they are taken."""
    import heapq
    import selectors
    import socket

    for number, port, messages, rate, seconds in calls(pipe):
        selector = selectors.DefaultSelector()
        due: list[tuple[float, int]] = []
        socks = []
        left: list[memoryview] = [memoryview(b"")] * number
        began_s = time.monotonic()
        for index in range(number):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, index)
            socks.append(sock)
            due.append((began_s + index * 0.618034 % 1.0 / rate if rate else began_s, index))
        heapq.heapify(due)
        next_due = {index: at for at, index in due}
        sent = 0
        while (now := time.monotonic()) < began_s + seconds:
            for key, _ in selector.select(0.05):
                index = key.data
                if not left[index]:
                    if next_due[index] > now:
                        selector.unregister(key.fileobj)
                        heapq.heappush(due, (next_due[index], index))
                        continue
                    next_due[index] += 1 / rate if rate else 0.0
                    left[index] = memoryview(messages[sent % len(messages)])
                    sent += 1
                try:
                    left[index] = left[index][key.fileobj.send(left[index]) :]
                except BlockingIOError:
                    pass
            while due and due[0][0] <= time.monotonic():
                _, index = heapq.heappop(due)
                if socks[index] not in selector.get_map():
                    selector.register(socks[index], selectors.EVENT_WRITE, index)
        for sock in socks:
            sock.close()
        pipe.send(sent)


def carry_forerunner(split: int, number: int, rate: float, seconds: float) -> Result:
    server, generator = Peer(forerunner_server), Peer(forerunner_devices)
    port = server.answer()
    messages = [forerunner_message(split, args) for args in fleet_chain.arguments(split, picture=True)]
    cpu_s, ended = server.ask("before")
    began_s = time.monotonic()
    generator.ask(number, port, messages, rate, seconds)
    took_s = time.monotonic() - began_s
    after_s, after = server.ask("after")
    generator.close()
    server.close()
    items = max(1, after - ended)
    return Result(items / took_s, (after_s - cpu_s) / items * 1e6, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0))


def grid(options: argparse.Namespace) -> None:
    """Frames as JPEG at every split (raw at split 1), each engine, and the forerunner; then the cost as D grows."""
    for split in options.split or range(1, 7):
        rows = []
        for engine in options.engine:
            with fresh_cloud("--engine", engine) as cloud:
                rows.append(row(engine, [carry(cloud, [Load(20, split, 90, window=4)], options.seconds)[0]]))
        rows.append(row("forerunner", [carry_forerunner(split, 20, 0.0, options.seconds)]))
        print(f"split {split}, 20 devices, as many items as they can\n")
        print_table(HEAD, rows)
    costs: dict[str, list[tuple[int, Result]]] = {name: [] for name in (*options.engine, "forerunner")}
    for number in options.number:
        for name in costs:
            rate = options.rate / number
            if name == "forerunner":
                result = carry_forerunner(options.plot_split, number, rate, options.seconds)
            else:
                with fresh_cloud("--engine", name) as cloud:
                    load = Load(number, options.plot_split, 90, rate=rate, window=64)
                    result = carry(cloud, [load], options.seconds)[0]
            costs[name].append((number, result))
    print(f"split {options.plot_split}, {options.rate:g} items a second in all\n")
    print_table(HEAD, [row(f"{name}, {number} devices", [r]) for name, runs in costs.items() for number, r in runs])
    if options.plot is not None:
        plot(costs, options.plot, f"split {options.plot_split}, {options.rate:g} items a second in all")


def plot(costs: dict[str, list[tuple[int, Result]]], file: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, runs in costs.items():
        some = [(number, result) for number, result in runs if result.rate >= LEAST_RATE]
        axes.plot([number for number, _ in some], [result.cpu_us / 1e3 for _, result in some], "o-", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("devices")
    axes.set_ylabel("cloud CPU for an item, ms")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    print(f"the plot is {file}\n")


PARTS = {"bar": bar, "flat": flat, "fair": fair, "greedy": greedy, "grid": grid}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run")
    parser.add_argument("--rate", type=float, default=1000.0, help="flat and grid: items a second of all devices")
    parser.add_argument("--devices", type=int, default=500, help="fair")
    parser.add_argument("--fps", type=float, default=17.0, help="fair and greedy: items a second of one device")
    parser.add_argument("--split", type=int, action="append", help="grid, repeatable (default: 1 to 6)")
    parser.add_argument("--plot-split", type=int, default=3)
    parser.add_argument("--engine", action="append", help="grid, repeatable (default: threads, processes and dask)")
    parser.add_argument("--number", type=int, action="append", help="grid: devices, repeatable (default: 1 to 500)")
    parser.add_argument("--plot", type=Path, help="grid: a PNG or SVG of the cost as the number of devices grows")
    options = parser.parse_args(argv)
    if unknown := set(options.what) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.engine = options.engine or ["threads", "processes", "dask"]
    options.number = options.number or [1, 10, 50, 100, 200, 500]
    for what in options.what or PARTS:
        PARTS[what](options)


if __name__ == "__main__":
    main()
