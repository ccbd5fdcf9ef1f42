"""The ball chain, local-only and at every split: device and cloud as two processes over loopback.

    python3 -m benchmarks.throughput [--source FILE] [--rounds 5] [--seconds 2] [--split N ...]

Beside it in the same run, in turn: for local-only a bare loop over the same functions, for a split the forerunner's
design. Rows of the table (OpenCV takes one thread in all of them):

    forerunner    see `forerunner.py`
    raw           `--codec none --picture-quality 0 --no-tls`, results none
    recorded      the same with every result in SQLite before it is acknowledged
    as usual      the framework's defaults: pictures as JPEG, TLS, recorded

Columns: items a second through the last task, CPU of each side for one item, bytes that left the device for one item,
and the median latency from the end of `get_frame` to the end of `show_frame`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median

from benchmarks.harness import Peer, calls, in_turn, median_ratio, print_table, verdict

APP = "benchmarks.ball_chain"
WARM_UP_SHARE = 0.15  # of a run's items


@dataclass(frozen=True)
class Contender:
    """One way to carry the chain's items. A cloud without results records nothing."""

    name: str
    ours: bool = True
    options: tuple[str, ...] = ()
    results: bool = True

    @property
    def tls(self) -> bool:
        return self.ours and "--no-tls" not in self.options


RAW = ("--codec", "none", "--picture-quality", "0", "--no-tls")
FORERUNNER = Contender("forerunner", ours=False)
CONTENDERS = (
    FORERUNNER,
    Contender("raw", options=RAW, results=False),
    Contender("recorded", options=RAW),
    Contender("as usual"),
)


@dataclass(frozen=True)
class Round:
    """What one run gave. CPU in microseconds an item."""

    fps: float
    device_us: float
    cloud_us: float
    item_bytes: float
    latency_ms: float


# --- the device's process ---------------------------------------------------------------------------------------


def device(pipe: Pipe, source: str | None) -> None:
    from benchmarks import ball_chain, forerunner
    from task_offload.config import parse_device
    from task_offload.device import run_device

    # What a user's environment says is no part of the benchmark.
    os.environ.pop("OFFLOAD_TOKEN", None)
    for split, port, options, seconds in calls(pipe):
        if options is None:
            ball_chain.open_source(source)
            if split is None:
                items, sent_bytes = forerunner.bare_loop(ball_chain.tasks, seconds), 0
            else:
                items, sent_bytes = forerunner.run_device(ball_chain.tasks, split, port, seconds)
        else:
            with tempfile.TemporaryDirectory() as folder:
                report = Path(folder) / "report.json"
                words = ["--app", APP, "--duration", str(seconds), "--report", str(report), "--drain", "30"]
                if source is not None:
                    words += ["--source", source]
                if split is not None:
                    words += [
                        str(split),
                        "--host",
                        "127.0.0.1",
                        "--port",
                        str(port),
                        "--device-name",
                        "bench",
                        *options,
                    ]
                run_device(parse_device(words, {}))
                found = json.loads(report.read_text())
            items, sent_bytes = found["items"]["captured"], found["bytes_sent"]
            assert not any(found["items"]["dropped"].values()), found["items"]
        cpu_s = time.process_time() - ball_chain.cpu_began_s
        pipe.send((items, sent_bytes, cpu_s, list(ball_chain.captured_s), list(ball_chain.ended_s)))
        ball_chain.ended_s.clear()


# --- the cloud's processes --------------------------------------------------------------------------------------


def forerunner_server(pipe: Pipe) -> None:
    from benchmarks import ball_chain, forerunner

    server = forerunner.Server(ball_chain.tasks)
    pipe.send(server.port)
    _tell(pipe, server.wait)


def cloud(pipe: Pipe, folder: Path, results: bool, tls: bool) -> None:
    from task_offload.cloud import Cloud
    from task_offload.config import parse_cloud

    words = ["--host", "127.0.0.1", "--port", "0", "--app", APP, "--state-dir", str(folder / "state")]
    words += ["--results", f"sqlite:{folder / 'results.sqlite'}" if results else "none"]
    server = Cloud(parse_cloud(words if tls else [*words, "--no-tls"], {}))
    server.start()
    pipe.send(server.port)

    def answer() -> None:
        _tell(pipe, lambda: None)
        server.stop()

    threading.Thread(target=answer).start()
    server.run()
    server.close()


def _tell(pipe: Pipe, wait: Callable[[], None]) -> None:
    """For each call: the CPU that this process has used, and when items ended since the call before.

    At the end of a run it waits for the run's last item.
    """
    from benchmarks import ball_chain

    for (word,) in calls(pipe):
        if word == "end":
            wait()
        pipe.send((time.process_time(), list(ball_chain.ended_s)))
        ball_chain.ended_s.clear()


# --- the run ----------------------------------------------------------------------------------------------------


class Bench:
    """All processes of one benchmark. Only one pair of them works at a time.

    Each contender has its own pair: what one leaves behind in the allocator decides what another pays for memory.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._seconds: float = options.seconds
        self._loops = {ours: Peer(device, options.source) for ours in (False, True)}
        self._pairs: dict[str, tuple[Peer, Peer, int]] = {}
        for contender in CONTENDERS:
            place = folder / contender.name
            place.mkdir()
            server = Peer(cloud, place, contender.results, contender.tls) if contender.ours else Peer(forerunner_server)
            self._pairs[contender.name] = Peer(device, options.source), server, server.answer()

    def close(self) -> None:
        for sender, server, _ in self._pairs.values():
            sender.close()
            server.close()
        for peer in self._loops.values():
            peer.close()

    def local(self, ours: bool) -> Round:
        items, _, cpu_s, captured_s, ended_s = self._loops[ours].ask(None, 0, () if ours else None, self._seconds)
        return _round(items, 0, cpu_s, 0.0, captured_s, ended_s)

    def offloaded(self, contender: Contender, split: int) -> Round:
        sender, server, port = self._pairs[contender.name]
        before_s, _ = server.ask("begin")
        options = contender.options if contender.ours else None
        items, sent_bytes, cpu_s, captured_s, _ = sender.ask(split, port, options, self._seconds)
        after_s, ended_s = server.ask("end")
        return _round(items, sent_bytes, cpu_s, after_s - before_s, captured_s, ended_s)


def _round(
    items: int, sent_bytes: int, device_s: float, cloud_s: float, captured_s: list[float], ended_s: list[float]
) -> Round:
    assert len(ended_s) == items <= len(captured_s), (items, len(captured_s), len(ended_s))
    begin = int(items * WARM_UP_SHARE)
    return Round(
        (items - begin - 1) / (ended_s[-1] - ended_s[begin]),
        device_s / items * 1e6,
        cloud_s / items * 1e6,
        sent_bytes / items,
        median(b - a for a, b in zip(captured_s, ended_s, strict=False)) * 1e3,
    )


def compare_local(bench: Bench, rounds: int) -> None:
    found: dict[bool, list[Round]] = {False: [], True: []}
    for ours in in_turn((False, True), rounds):
        found[ours].append(bench.local(ours))
    print("local-only: the framework beside a bare loop over the same functions\n")
    print_table(
        ("", "FPS", "CPU µs"),
        [
            (name, median(r.fps for r in found[ours]), median(r.device_us for r in found[ours]))
            for name, ours in (("bare loop", False), ("local-only", True))
        ],
    )
    ratio = median_ratio([r.fps for r in found[True]], [r.fps for r in found[False]])
    print_table(("FPS", "median ratio"), [("local-only by bare loop", verdict(ratio, at_least=0.98))])


def compare_split(bench: Bench, split: int, rounds: int) -> None:
    found: dict[str, list[Round]] = {contender.name: [] for contender in CONTENDERS}
    for contender in in_turn(CONTENDERS, rounds):
        found[contender.name].append(bench.offloaded(contender, split))
    print(f"split {split}\n")
    print_table(
        ("", "FPS", "device CPU µs", "cloud CPU µs", "bytes an item", "latency ms"),
        [
            (
                name,
                *(
                    median(getattr(r, column) for r in runs)
                    for column in ("fps", "device_us", "cloud_us", "item_bytes")
                ),
                f"{median(r.latency_ms for r in runs):.1f}",
            )
            for name, runs in found.items()
        ],
    )

    def ratio(ours: str, theirs: str, column: str) -> float:
        return median_ratio([getattr(r, column) for r in found[ours]], [getattr(r, column) for r in found[theirs]])

    rows = []
    for name in ("raw", "recorded"):
        rows.append(
            (
                f"{name} by forerunner",
                verdict(ratio(name, "forerunner", "fps"), at_least=1.0),
                verdict(ratio(name, "forerunner", "device_us"), at_most=1.0),
                verdict(ratio(name, "forerunner", "cloud_us"), at_most=1.0),
            )
        )
    rows.append(("recorded by raw", verdict(ratio("recorded", "raw", "fps"), at_least=0.9), "", ""))
    print_table(("median ratio", "FPS", "device CPU", "cloud CPU"), rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.throughput", description=__doc__.partition("\n")[0])
    parser.add_argument("--source", help="a video, or memory: or memory:VIDEO for decoded frames (default: the clip)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run")
    parser.add_argument("--split", type=int, action="append", help="repeatable; 0 is local-only (default: all)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for split in options.split or range(7):
            if split:
                compare_split(bench, split, options.rounds)
            else:
                compare_local(bench, options.rounds)
        bench.close()


if __name__ == "__main__":
    main()
