"""The engine `dask` beside a bare pool of Dask actors: the same cluster, payloads and tasks.

    python3 -m benchmarks.dask_pool [--workers 2] [--rounds 5] [--seconds 3] [--split N ...]

A unit of the ball chain goes to a worker of a local cluster, tasks N+1 to 6 run there, and the last task's arguments
come back. The bare pool passes the same arrays to actors as they are, and keeps one or two calls in flight for each.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections import deque
from statistics import median
from typing import Any

from benchmarks import fleet_chain
from benchmarks.harness import in_turn, median_ratio, print_table, verdict

IN_FLIGHT = 8  # units that the engine has for each worker


class BareActor:
    """What a user of Dask would write."""

    def __init__(self) -> None:
        from benchmarks import fleet_chain
        from task_offload.task import Item, set_current_item

        self._tasks = fleet_chain.tasks
        self._item = Item("bare", "", 0, 0.0, 1)
        self._set = set_current_item

    def run(self, split: int, *args: Any) -> tuple[Any, ...]:
        from task_offload.picture import Picture

        self._set(self._item)
        for task in self._tasks[split:-1]:
            args = task(*(arg.image if isinstance(arg, Picture) else arg for arg in args))[1]
        return tuple(arg.image if isinstance(arg, Picture) else arg for arg in args)


def bare(client: Any, actors: list[Any], split: int, in_flight: int, seconds: float) -> float:
    from task_offload.picture import Picture

    recorded = [
        tuple(arg.image if isinstance(arg, Picture) else arg for arg in args)
        for args in fleet_chain.arguments(split, True)
    ]
    done = [0] * len(actors)
    began_s = time.monotonic()

    def drive(number: int, actor: Any) -> None:
        waiting: deque[Any] = deque()
        args = itertools.cycle(recorded)
        while time.monotonic() - began_s < seconds:
            while len(waiting) < in_flight:
                waiting.append(actor.run(split, *next(args)))
            waiting.popleft().result()
            done[number] += 1
        for each in waiting:
            each.result()
            done[number] += 1

    threads = [threading.Thread(target=drive, args=each) for each in enumerate(actors)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(done) / (time.monotonic() - began_s)


class Engine:
    """The engine, fed as the listener feeds it."""

    def __init__(self, address: str, workers: int) -> None:
        from task_offload.engines import make_engine
        from task_offload.engines.base import Lane
        from task_offload.task import load_app

        self._room = threading.Semaphore(IN_FLIGHT * workers)
        self._chain = load_app(fleet_chain.APP)
        self._engine = make_engine(f"dask:{address}", self._chain, workers, self._finished, 60.0)
        self._lanes = [Lane() for _ in range(4 * workers)]
        self._done = 0
        self._all = IN_FLIGHT * workers

    def _finished(self, dones: Any) -> None:
        for done in dones:
            assert done.outcome.kind.value == "continued", done.outcome
            self._done += 1
            self._room.release()

    def run(self, split: int, seconds: float) -> float:
        from task_offload.engines.base import Unit
        from task_offload.task import Item
        from task_offload.wire.codec import padded_body

        payloads = [
            (payload.head, bytearray(b"".join(padded_body(payload))))
            for payload in fleet_chain.payloads(split, picture_quality=0)
        ]
        self._done = 0
        began_s = time.monotonic()
        for number in itertools.count():
            if time.monotonic() - began_s > seconds:
                break
            self._room.acquire()
            head, body = payloads[number % len(payloads)]
            item = Item("bench", "", number, 0.0, split)
            lane = self._lanes[number % len(self._lanes)]
            self._engine.submit([Unit(lane, item, head, memoryview(body), 0, None, len(body))])
        for _ in range(self._all):
            self._room.acquire()
        took_s = time.monotonic() - began_s
        for _ in range(self._all):
            self._room.release()
        return self._done / took_s

    def close(self) -> None:
        self._engine.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.dask_pool", description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one run")
    parser.add_argument("--split", type=int, action="append", help="repeatable (default: 1, 2, 3 and 5)")
    options = parser.parse_args(argv)
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster, direct_to_workers=True)
    futures = [client.submit(BareActor, actor=True, pure=False) for _ in range(options.workers)]
    actors = [future.result() for future in futures]
    engine = Engine(cluster.scheduler_address, options.workers)
    for split in options.split or (1, 2, 3, 5):
        found: dict[str, list[float]] = {"bare, 1 call in flight": [], "bare, 2 in flight": [], "engine": []}
        for name in in_turn(list(found), options.rounds):
            if name == "engine":
                found[name].append(engine.run(split, options.seconds))
            else:
                found[name].append(bare(client, actors, split, 1 if "1" in name else 2, options.seconds))
        print(f"split {split}\n")
        print_table(("", "items/s"), [(name, median(each)) for name, each in found.items()])
        print_table(
            ("median ratio", "items/s"),
            [
                (f"engine by {name}", verdict(median_ratio(found["engine"], each), at_least=0.8))
                for name, each in found.items()
                if name != "engine"
            ],
        )
    engine.close()
    client.close()
    cluster.close()


if __name__ == "__main__":
    main()
