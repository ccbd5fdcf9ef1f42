"""Does a cloud stay the same while devices come and go for long? One cloud for each engine, all at once.

    python3 -m benchmarks.soak --minutes 10 --devices 100 --engine threads --engine processes --engine dask

Each cloud is a real coordinator with its own emulated devices (`fleet_devices`), which send the ball chain's items at
splits 1 to 6, with pictures and without. All the time some device leaves in good order, some vanishes, some connection
is cut and its session resumed a while later, somebody new joins under a new name or under one that was here before,
and a worker of `processes` and `dask` is killed with -9. Exit status 1 if

- a session's items are not recorded from 0 on, each once, in order and completed; or fewer than were acknowledged, or
  than were sent by a device that left in good order; or with another result than the same payload gave before;
- a device was refused, unless the cloud was full for a while (it comes back), or cut off;
- the second half of the run has more of the coordinator's memory than the first half had at most, by more than 5 %; or
  when the last device has left there are more descriptors or threads than when the first devices were there.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from benchmarks import fleet_chain
from benchmarks.fleet import Cloud
from benchmarks.fleet_devices import PATIENCE_S, Device, Fleet, Load
from benchmarks.harness import print_table

GROWTH = 1.05
SETTLED = 0.2  # the first part of the run, which is not looked at
SLICE_S = 0.25  # between two looks at who comes and goes
AWAY_S = (0.1, 8.0)
COME_BACK_S = 5.0
KILL_EVERY_S = 20.0
LAST_SPLIT = len(fleet_chain.tasks) - 1  # without a picture only this one works: the others compute with it
ENGINES = ("threads", "processes", "dask")


class Side:
    """One cloud, and those that are its devices, or were."""

    def __init__(self, engine: str, folder: Path, options: argparse.Namespace, fleet: Fleet) -> None:
        folder.mkdir()
        self.engine = engine
        self.problems: list[str] = []
        self.events: Counter[str] = Counter()
        self.looks: list[tuple[int, int]] = []
        self.cloud = Cloud(folder, "--engine", engine, "--workers", str(options.workers))
        self.process = psutil.Process(self.cloud.pid)
        self._fleet = fleet
        self._options = options
        self._random = random.Random(f"{options.seed} {engine}")
        self._names: list[str] = []  # of devices that were here
        self._number = 0
        self.here: list[Device] = []
        self.away: list[tuple[float, Device]] = []
        self.gone: list[Device] = []
        self._kill_at = time.monotonic() + KILL_EVERY_S
        for _ in range(options.devices):
            self._join()

    def _join(self) -> None:
        if self._names and self._random.random() < 0.5:
            name = self._names.pop(self._random.randrange(len(self._names)))
        else:
            name = f"{self.engine}-{self._number}"
            self._number += 1
        split = self._random.randint(1, LAST_SPLIT)
        quality = self._random.choice((None, 90)) if split == LAST_SPLIT else 90
        load = Load(1, split, quality, rate=self._options.rate, window=64)
        self.here.append(self._fleet.join(name, load, self.cloud.port))
        self.events["joined"] += 1

    def _look_after(self, now: float) -> None:
        """Notices who is disconnected, and lets those come back for whom it is time."""
        for device in [each for each in self.here if each.closed]:
            self.here.remove(device)
            if device.refusal == "busy":  # a cloud that has just lost a worker may be full for a while
                self.events["told to come back"] += 1
                device.refusal = None
                self.away.append((now + COME_BACK_S, device))
                continue
            if not device.farewell:
                self.problems.append(f"{device.name} was disconnected: {device.refusal or 'nobody said why'}")
            self._over(device)
        for due_s, device in self.away[:]:
            if due_s <= now:
                self.away.remove((due_s, device))
                self._fleet.resume(device)
                self.here.append(device)

    def churn(self) -> None:
        """One look: whom to let come and go now."""
        now = time.monotonic()
        self._look_after(now)
        staying = [each for each in self.here if each.open and not each.leaving]
        for what in ("leaves", "vanishes", "cut"):
            if staying and self._random.random() < self._options.churn * SLICE_S:
                device = staying.pop(self._random.randrange(len(staying)))
                self.events[what] += 1
                if what == "leaves":
                    self._fleet.say_goodbye(device)
                    continue
                self.here.remove(device)
                self._fleet.cut(device)
                if what == "cut":
                    self.away.append((now + self._random.uniform(*AWAY_S), device))
                else:
                    self._over(device)
        while len(self.here) + len(self.away) < self._options.devices:
            self._join()
        if now >= self._kill_at:
            self._kill_at = now + KILL_EVERY_S
            self._kill_worker()
        self.looks.append((self.process.memory_info().rss, sum(each[2] for each in self._children())))

    def _over(self, device: Device) -> None:
        self.gone.append(device)
        self._names.append(device.name)
        self._fleet.devices.remove(device)

    def _children(self) -> list[tuple[psutil.Process, str, int]]:
        """The coordinator's processes, with their command and memory; without those that are just ending."""
        found = []
        for each in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((each, " ".join(each.cmdline()), each.memory_info().rss))
        return found

    def _kill_worker(self) -> None:
        if workers := [each for each, command, _ in self._children() if "spawn_main" in command]:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._random.choice(workers).kill()
                self.events["workers killed"] += 1

    def call_back(self) -> None:
        """Lets all come back at once, to leave with the others."""
        self.away = [(0.0, device) for _, device in self.away]

    def all_are_here(self) -> bool:
        """Whether nobody is to come back any more. A full cloud lets them in when it has done what it has."""
        self._look_after(time.monotonic())
        return not self.away and all(each.open for each in self.here)

    def check(self) -> int:
        """Compares the store with what the devices know. Returns how many items were checked."""
        sessions = {device.session.hex(): device for device in self.gone}
        found: Counter[str] = Counter()
        results: dict[tuple[int, int], str | None] = {}
        connection = sqlite3.connect(f"file:{self.cloud.store}?mode=ro", uri=True)
        for name, session, sequence, split, ending, detail, result in connection.execute(
            "SELECT device, session, sequence, split, ending, detail, result FROM items ORDER BY rowid"
        ):
            device = sessions.get(session)
            if device is None or device.name != name or device.load.split != split:
                self.problems.append(f"{name}, {session}: nobody sent item {sequence} at split {split}")
            if sequence != found[session]:
                self.problems.append(f"{name}, {session}: item {sequence} where {found[session]} was due")
            found[session] += 1
            if ending != "completed":
                self.problems.append(f"{name}, {session}: item {sequence} was {ending}: {detail}")
            elif results.setdefault((split, sequence % fleet_chain.FRAMES), result) != result:
                self.problems.append(f"{name}, {session}: item {sequence} has the result {result}")
        connection.close()
        for session, device in sessions.items():
            least = device.sequence if device.farewell else device.acked
            most = device.sequence + len(device.due_s) + len(device.waiting)
            if not least <= found[session] <= most:
                self.problems.append(f"{device.name}: {found[session]} items are recorded, {least} are due")
        return found.total()

    def grown(self) -> tuple[int, int]:
        """The coordinator's memory at most, in the first half of the run and in the second."""
        settled = [each[0] for each in self.looks[int(len(self.looks) * SETTLED) :]]
        half = len(settled) // 2
        return max(settled[:half]), max(settled[half:])

    def tenths(self) -> str:
        """The coordinator's memory as the run went on, in words."""
        apart = max(1, len(self.looks) // 10)
        most = [max(each[0] for each in self.looks[at : at + apart]) for at in range(0, len(self.looks), apart)]
        return ", ".join(f"{each / 1e6:.0f}" for each in most)


def soak(options: argparse.Namespace, folder: Path) -> int:
    fleet = Fleet()
    sides = [Side(engine, folder / engine, options, fleet) for engine in options.engine]
    try:
        fleet.run(0.0, 2.0)
        before = [(side.process.num_fds(), side.process.num_threads()) for side in sides]
        ends_at = time.monotonic() + options.minutes * 60
        while time.monotonic() < ends_at:
            fleet.run(0.0, SLICE_S)
            for side in sides:
                side.churn()
        for side in sides:
            side.call_back()
        ends_at = time.monotonic() + PATIENCE_S
        while sum(side.all_are_here() for side in sides) < len(sides) and time.monotonic() < ends_at:
            fleet.idle(SLICE_S)
        fleet.run(0.0, 5.0)
        last = [(side, each) for side in sides for each in side.here]
        fleet.leave()
        for side, device in last:
            side.gone.append(device)
            if not device.farewell:
                side.problems.append(f"{device.name} could not leave, {len(device.due_s)} items not acknowledged")
        time.sleep(1.0)
        after = [(side.process.num_fds(), side.process.num_threads()) for side in sides]
    finally:
        for side in sides:
            side.cloud.close()
    rows = []
    for side, (fds, threads), (fds_after, threads_after) in zip(sides, before, after, strict=True):
        items = side.check()
        first, second = side.grown()
        if second > first * GROWTH:
            side.problems.append(f"the coordinator's memory has grown from {first:,} to {second:,} bytes")
        if fds_after > fds or threads_after > threads:
            side.problems.append(f"{fds} descriptors became {fds_after}, {threads} threads {threads_after}")
        workers = max((each[1] for each in side.looks), default=0)
        rows.append(
            (
                side.engine, items, len(side.gone), f"{first / 1e6:.1f}, {second / 1e6:.1f}", f"{workers / 1e6:.0f}",
                f"{fds}, {fds_after}", f"{threads}, {threads_after}", len(side.problems),
            )
        )  # fmt: skip
        print(f"{side.engine}: " + ", ".join(f"{count} {what}" for what, count in side.events.items()))
        print(f"{side.engine}: MB of the coordinator in each tenth of the run at most: {side.tenths()}")
        for problem in side.problems[:20]:
            print(f"WRONG: {problem}")
    print_table(
        (
            "", "items", "sessions", "MB, 1st and 2nd half", "MB of children", "descriptors, at the end", "threads",
            "problems",
        ),
        rows,
    )  # fmt: skip
    if any(side.problems for side in sides):
        return 1
    print("every book is right: none lost, none twice, none out of order; memory, descriptors and threads are flat")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--devices", type=int, default=100, help="of each cloud at a time")
    parser.add_argument("--rate", type=float, default=3.0, help="items a second of each device")
    parser.add_argument("--churn", type=float, default=0.5, help="leaves a second; and so many vanish, and are cut")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="repeatable (default: all)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    options.engine = options.engine or list(ENGINES)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return soak(options, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
