#!/usr/bin/env python3
"""Breaks everything at random, and checks the books. In: minutes and a seed. Out: counts, and exit status 1 if wrong.

    python3 -m benchmarks.chaos --minutes 3 --seed 1 --spool
    python3 -m benchmarks.chaos --minutes 10 --devices 12 --rate 20 --engine threads --engine processes --engine dask

Real devices run against a real server, each through a fault proxy of its own. At random times a device or the cloud
is killed with -9 or stopped (where there are several engines, the cloud starts with any of them; their workers are
killed too), links are cut, stalled, throttled, half-closed or refused, and the disks under the store
and the spools are full for a while (where this user may mount a small tmpfs). After each run of a device, and at the
end, it is known what the store must hold:

- every item has exactly one ending, none twice, and each device's items were recorded in their order;
- the ending and the result are what the chain makes of the item;
- a run that ended in good order: every captured item is there, except those that its report says it gave up;
- a run that was killed: every acknowledged item is there, and every item that its spool held; nothing that was never
  captured.

Without TLS (the default) acknowledgements are read off the wire. The faults come from the seed; when they meet which
item depends on the machine. The folder with all logs and the store is kept when a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import chaos_app
from task_offload.spool import DiskSpool
from tests.support.fault_proxy import FaultProxy

ROOT = Path(__file__).resolve().parents[1]
APP = str(ROOT / "benchmarks" / "chaos_app.py")
GIVEN_UP = ("undelivered", "stopped")  # reasons of drops that the cloud never hears of
LOST = "lost_on_device"
POLICY = ("overload", "spool_full", LOST)  # other endings than the chain's own
LAST_SPLIT = len(chaos_app.tasks) - 1
STORE_DISK = "384m"
SPOOL_DISK = "64m"
END_S = 90.0
PROCESS_ENDS_S = 10.0


@dataclass
class Run:
    """One run of a device, from its start to its end, and what is known of it.

    Attributes:
        session: hexadecimal digits; None if it captured nothing.
        captured: how many items its first task began with.
        report: its run report; None if it was killed.
        acked: items that the cloud had acknowledged to it.
        spooled: sequences [first, end) that its spool held when it was killed.
    """

    device: str
    number: int
    session: str | None = None
    captured: int = 0
    report: dict[str, Any] | None = None
    acked: int = 0
    spooled: tuple[int, int] | None = None


class Disk:
    """A folder, on a file system of its own where that can be had, which can then be filled up."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.full = False
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            self.mounted = False

    def fill(self) -> None:
        self.full = True
        with (self.folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            size = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, size.f_bavail * size.f_frsize)
        with (self.folder / "filler-2").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        for name in ("filler", "filler-2"):
            (self.folder / name).unlink(missing_ok=True)
        self.full = False

    def close(self, keep: Path | None) -> None:
        """Unmounts it; its content goes to `keep` before, if that is given."""
        if self.mounted:
            self.empty()
            if keep is not None:
                shutil.copytree(self.folder, keep, dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


class CloudProcess:
    """The server, which continues with its state and results after each end."""

    def __init__(self, lab: Chaos) -> None:
        self._lab = lab
        self.popen: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self.starts = 0
        self._log = lab.folder / "cloud.log"
        self._log_begin = 0  # of what the present server has written
        self.met_full_disk = False  # the store's disk was full at some time since it was started

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def listens(self) -> bool:
        """Whether it has started, its workers included."""
        return b"listening on" in self._log.read_bytes()[self._log_begin :]

    def start(self) -> None:
        self.starts += 1
        lab = self._lab
        self.met_full_disk = lab.disk.full
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        argv = [
            sys.executable, str(ROOT / "cloud_server_coordinator.py"), "--app", APP, "--host", "127.0.0.1",
            "--port", str(self.port), "--state-dir", str(lab.folder / "state"),
            "--engine", lab.random.choice(lab.args.engine), "--results", f"sqlite:{lab.store}",
            *([] if lab.args.tls else ["--no-tls"]),
        ]  # fmt: skip
        self.popen = lab.spawn(argv, self._log, {})

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def workers(self) -> list[psutil.Process]:
        """Processes that run units, where the engine has some."""
        assert self.popen is not None
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it is just ending
            for each in psutil.Process(self.popen.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "spawn_main" in " ".join(each.cmdline()):
                        found.append(each)
        return found

    def stop(self) -> int:
        assert self.popen is not None
        self.popen.terminate()
        return self.popen.wait(END_S)


class DeviceProcess:
    """A device, run after run."""

    def __init__(self, lab: Chaos, number: int) -> None:
        self._lab = lab
        self.name = f"device-{number}"
        self.folder = lab.folder / self.name
        self.folder.mkdir()
        self.disk = Disk(self.folder / "spool", SPOOL_DISK) if lab.args.spool else None
        self.spool = self.disk.folder / "s" if self.disk else None
        self.proxy = FaultProxy(lab.cloud.port, lab.random.randrange(2**32), tap=not lab.args.tls)
        self.token = lab.enroll(self.name) if lab.args.tls else None
        self.popen: subprocess.Popen[bytes] | None = None
        self.run: Run | None = None
        self.runs: list[Run] = []

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def start(self, *options: str) -> None:
        lab = self._lab
        number = len(self.runs)
        self.run = Run(self.name, number)
        self.runs.append(self.run)
        split = [str(lab.random.randint(1, LAST_SPLIT))]
        if lab.random.random() < 0.4:
            split.append(str(lab.random.choice((20, 100, 1000))))  # automatic mode
        argv = [
            sys.executable, str(ROOT / "iot_client_coordinator.py"), *split, "--app", APP, "--device-name", self.name,
            "--source", f"rate:{lab.args.rate:g}", "--realtime", "--report", str(self._file("json")),
            "--overload", lab.random.choice(("block", "newest")), *options,
        ]  # fmt: skip
        if self.spool is not None:
            argv += ["--spool", str(self.spool), "--spool-limit", "32M"]
        if not lab.args.tls:
            argv.append("--no-tls")
        env = {"HOST": "127.0.0.1", "PORT": str(self.proxy.port), "CAPTURED": str(self._file("captured"))}
        if self.token:
            env["OFFLOAD_TOKEN"] = self.token
        self._stopping = False
        self.popen = lab.spawn(argv, self.folder / "device.log", env)

    def _file(self, suffix: str) -> Path:
        assert self.run is not None
        return self.folder / f"run-{self.run.number}.{suffix}"

    def stop(self) -> None:
        """Tells the run to end in good order, once: a second signal would cut that short."""
        assert self.popen is not None
        if self.running and not self._stopping:
            self._stopping = True
            self.popen.terminate()

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()
        self.note()

    def end(self) -> int:
        """Waits until a run that was told to stop, or has ended, is over. Returns its exit status."""
        assert self.popen is not None
        status = self.popen.wait(END_S)
        self.note()
        return status

    def note(self) -> None:
        """Writes down what is known of the run that is over."""
        run = self.run
        assert run is not None
        captured = self._file("captured")
        if captured.exists():
            lines = captured.read_text().splitlines()
            run.captured = len(lines)
            run.session = lines[0].split()[0] if lines else None
        if self._file("json").exists():
            run.report = json.loads(self._file("json").read_text())
        if self.proxy.tap is not None and run.session is not None:
            run.acked = self.proxy.tap.acked.get(run.session, 0)
        if run.report is None and self.spool is not None and self.spool.exists():
            run.spooled = self._held(run.session)
        self.run = None

    def _held(self, session: str | None) -> tuple[int, int] | None:
        """What the spool held of a session when its device was killed, as the next run will find it."""
        assert self.spool is not None
        spool = DiskSpool(self.spool, 1 << 30)
        try:
            for each in spool.sessions():
                if each.session == session:
                    return each.first, each.end
        finally:
            spool.close()
        return None


class Chaos:
    """One experiment."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.random = random.Random(args.seed)
        self.folder = Path(tempfile.mkdtemp(prefix=f"chaos-{args.seed}-"))
        (self.folder / "run").mkdir(mode=0o700)
        self.disk = Disk(self.folder / "store", STORE_DISK)
        self.store = self.disk.folder / "results.sqlite"
        self.faults: Counter[str] = Counter()
        self.problems: list[str] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._log = (self.folder / "faults.log").open("w")
        self._began = time.monotonic()
        self.cloud = CloudProcess(self)
        self.devices = [DeviceProcess(self, number) for number in range(args.devices)]

    def spawn(self, argv: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("OFFLOAD_") and key not in ("HOST", "PORT", "NOTIFY_SOCKET")
        }
        clean |= {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(self.folder / "run"), **env}
        with log.open("ab") as file:
            return subprocess.Popen(
                argv, env=clean, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    def enroll(self, name: str) -> str:
        argv = [
            sys.executable, str(ROOT / "cloud_server_coordinator.py"), "--state-dir", str(self.folder / "state"),
            "--enroll", name,
        ]  # fmt: skip
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split("'")[1]

    def say(self, text: str) -> None:
        self._log.write(f"{time.monotonic() - self._began:8.3f} {text}\n")
        self._log.flush()

    # -- the faults -------------------------------------------------------------------------------------------------

    def break_things(self) -> None:
        self.cloud.start()
        for device in self.devices:
            device.start()
        ends_at = self._began + self.args.minutes * 60
        next_at = self._began + 2.0
        while (now := time.monotonic()) < ends_at:
            for due, action in [each for each in self._later if each[0] <= now]:
                self._later.remove((due, action))
                action()
            self._look_after()
            if now >= next_at:
                self._fault()
                next_at = now + self.random.uniform(0.3, 2 * self.args.every - 0.3)
            time.sleep(0.02)

    def _look_after(self) -> None:
        """Starts what has ended, and takes note if it ended in another way than it should."""
        for device in self.devices:
            if device.popen is not None and device.popen.poll() is not None and device.run is not None:
                run = device.run
                status = device.end()
                if not self._in_good_order(status, run):
                    self.problems.append(f"{device.name} ended by itself with exit status {status}")
                device.start()
        if self.cloud.popen is not None and not self.cloud.running and not self._cloud_is_down:
            # A server that meets a full disk at its start says so and ends; a service manager starts it again. By the
            # time that this is seen the disk may be empty again.
            if self.cloud.met_full_disk and self.cloud.popen.returncode == 1:
                self._cloud_is_down = True
                self._in(1.0, self._start_cloud)
                return
            self.problems.append(f"the cloud ended by itself with exit status {self.cloud.popen.returncode}")
            self._start_cloud()

    _cloud_is_down = False

    def _start_cloud(self) -> None:
        self._cloud_is_down = False
        self.cloud.start()

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def _fault(self) -> None:
        kinds: dict[str, float] = {
            "cut": 6, "cut all": 1, "stall": 2, "long stall": 0.4, "throttle": 1, "delay": 1, "half-close": 1,
            "refuse": 2, "cut within messages": 1.5, "kill device": 3, "stop device": 2, "kill cloud": 3,
            "stop cloud": 0.7, "kill worker": 2 if self.args.engine != ["threads"] else 0,
            "store full": 1 if self.disk.mounted else 0,
            "spool full": 1 if self.args.spool and self.devices[0].disk and self.devices[0].disk.mounted else 0,
        }  # fmt: skip
        [kind] = self.random.choices(list(kinds), list(kinds.values()))
        device = self.random.choice(self.devices)
        seconds = self.random.uniform(0.2, 3.0)
        self.say(f"{kind}, {device.name}, {seconds:.1f} s")
        self.faults[kind] += 1
        proxy = device.proxy
        if kind == "cut":
            proxy.cut()
        elif kind == "cut all":
            for each in self.devices:
                each.proxy.cut()
        elif kind in ("stall", "long stall"):
            proxy.stall()
            self._in(seconds * (5 if kind == "long stall" else 1), lambda: proxy.stall(False))
        elif kind == "throttle":
            proxy.throttle(self.random.uniform(20e3, 500e3))
            self._in(seconds, lambda: proxy.throttle(None))
        elif kind == "delay":
            proxy.delay(self.random.uniform(0.01, 0.3))
            self._in(seconds, lambda: proxy.delay(0))
        elif kind == "half-close":
            proxy.half_close()
        elif kind == "refuse":
            proxy.refuse()
            proxy.cut()
            self._in(seconds, lambda: proxy.refuse(False))
        elif kind == "cut within messages":
            proxy.cut_each_after(100, 60_000)
            proxy.cut()
            self._in(seconds, lambda: proxy.cut_each_after(0, 0))
        elif kind == "kill device":
            device.kill()
            device.start()
        elif kind == "stop device":
            device.stop()  # `_look_after` starts it again
        elif kind in ("kill cloud", "stop cloud") and self.cloud.running:
            self._cloud_is_down = True
            if kind == "kill cloud" or not self.cloud.listens:  # a starting one does not mind signals yet
                self.cloud.kill()
            elif (status := self.cloud.stop()) != 0:
                self.problems.append(f"the cloud was stopped, and ended with exit status {status}")
            self._in(seconds, self._start_cloud)
        elif kind == "kill worker" and self.cloud.running and self.cloud.listens and (found := self.cloud.workers()):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(found).kill()
        elif kind == "store full":
            self.disk.fill()
            self.cloud.met_full_disk = True
            self._in(seconds, self.disk.empty)
        elif kind == "spool full" and device.disk is not None:
            device.disk.fill()
            self._in(seconds, device.disk.empty)
            if self.random.random() < 0.7:  # a spool is of use while the cloud is away
                proxy.refuse()
                proxy.cut()
                self._in(seconds, lambda: proxy.refuse(False))

    # -- the end ----------------------------------------------------------------------------------------------------

    def bring_to_an_end(self) -> None:
        """Lifts all faults, lets every device end in good order, and deliver what its spool holds."""
        self.say("the end")
        for _, action in self._later:
            action()
        self.disk.empty()
        for device in self.devices:
            device.proxy.stall(False)
            device.proxy.refuse(False)
            device.proxy.throttle(None)
            device.proxy.delay(0)
            device.proxy.cut_each_after(0, 0)
            if device.disk is not None:
                device.disk.empty()
        if not self.cloud.running:
            self._start_cloud()
        for device in self.devices:
            device.stop()
            self._ends_well(device)
        for device in self.devices:  # what the spool still holds, and a sign of life
            device.start("--items", "20", "--drain", "60")
            self._ends_well(device)
            report = device.runs[-1].report
            if report is None or report["items"]["left"] or report["items"]["captured"] != 20:
                self.problems.append(f"{device.name}: its last run is not whole: {report and report['items']}")
        if (status := self.cloud.stop()) != 0:
            self.problems.append(f"the cloud did not end in good order: exit status {status}")

    def _ends_well(self, device: DeviceProcess) -> None:
        if device.run is None:
            return
        try:
            run = device.run
            status = device.end()
        except subprocess.TimeoutExpired:
            self.problems.append(f"{device.name} does not end")
            device.kill()
            return
        if not self._in_good_order(status, run):
            self.problems.append(f"{device.name} did not end in good order: exit status {status}")

    @staticmethod
    def _in_good_order(status: int, run: Run) -> bool:
        """Status 0, or stopped while its interpreter was still starting."""
        return status == 0 or (status == -signal.SIGTERM and not run.captured)

    # -- the books --------------------------------------------------------------------------------------------------

    def check(self) -> int:
        """Compares the store with what is known. Returns how many items were checked."""
        connection = sqlite3.connect(self.store)
        of_session: dict[tuple[str, str], list[tuple[int, str, str | None, Any]]] = {}
        for device, session, sequence, ending, detail, result in connection.execute(
            "SELECT device, session, sequence, ending, detail, result FROM items ORDER BY rowid"
        ):
            of_session.setdefault((device, session), []).append(
                (sequence, ending, detail, result and json.loads(result))
            )
        books = {
            (device, session): (watermark, completed + filtered + sum(json.loads(dropped).values()))
            for device, session, watermark, completed, filtered, dropped in connection.execute(
                "SELECT device, session, watermark, completed, filtered, dropped FROM sessions"
            )
        }
        connection.close()
        known = {(run.device, run.session): run for device in self.devices for run in device.runs if run.session}
        for key in of_session.keys() - known.keys():
            self.problems.append(f"{key}: a session that never was")
        for key, run in known.items():
            rows = of_session.get(key, [])
            self._check_session(run, rows)
            watermark, ended = books.get(key, (0, 0))
            if not len(rows) == watermark == ended:
                self.problems.append(
                    f"{self._name(run)}: {len(rows)} rows, watermark {watermark}, {ended} in its books"
                )
        self._check_logs()
        self._check_processes()
        return sum(map(len, of_session.values()))

    def _check_session(self, run: Run, rows: list[tuple[int, str, str | None, Any]]) -> None:
        sequences = [row[0] for row in rows]
        if sequences != list(range(len(rows))):
            wrong = next(i for i, sequence in enumerate(sequences) if sequence != i)
            self.problems.append(f"{self._name(run)}: item {sequences[wrong]} where {wrong} was due")
            return
        if len(rows) > run.captured:
            self.problems.append(f"{self._name(run)}: {len(rows)} items, only {run.captured} were captured")
        least = run.acked
        if run.report is not None:
            items = run.report["items"]
            if not any(reason in items["dropped"] for reason in GIVEN_UP):
                least = items["captured"]
        elif run.spooled is not None:
            least = max(least, run.spooled[1])
        if len(rows) < least:
            self.problems.append(f"{self._name(run)}: {len(rows)} items recorded, {least} are due")
        for sequence, ending, detail, result in rows:
            reason = (detail or "").partition(":")[0]
            if ending == "dropped" and reason in POLICY:
                spooled = run.spooled is not None and run.spooled[0] <= sequence < run.spooled[1]
                if reason == LOST and (spooled or sequence < run.acked or run.report is not None):
                    self.problems.append(f"{self._name(run)}: item {sequence} was safe, and is told to be lost")
                continue
            if (ending, detail, result) != chaos_app.expected(sequence):
                self.problems.append(f"{self._name(run)}: item {sequence} ended as {ending}, {detail}, {result}")

    @staticmethod
    def _name(run: Run) -> str:
        how = "killed" if run.report is None else "ended"
        spooled = f", spooled {run.spooled[0]} to {run.spooled[1] - 1}" if run.spooled else ""
        return f"{run.device} run {run.number} ({run.session}, {how}, {run.acked} acknowledged{spooled})"

    def _check_logs(self) -> None:
        """No traceback but that of the task that is meant to fail."""
        for log in (self.folder / "cloud.log", *(device.folder / "device.log" for device in self.devices)):
            text = log.read_text(errors="replace")
            unexpected = text.count("Traceback") - text.count("ValueError: meant to fail")
            if unexpected > 0:
                self.problems.append(f"{log}: {unexpected} tracebacks")

    def _check_processes(self) -> None:
        """Whoever was killed has left no workers behind."""
        mine = [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(self.folder)]
        _, alive = psutil.wait_procs(mine, timeout=PROCESS_ENDS_S)
        self.problems += [f"a process was left behind: {' '.join(each.cmdline())}" for each in alive]

    def close(self) -> None:
        for device in self.devices:
            if device.running:
                assert device.popen is not None
                device.popen.kill()
                device.popen.wait()
            device.proxy.close()
        if self.cloud.running:
            self.cloud.kill()
        keep = bool(self.problems)
        for device in self.devices:
            if device.disk is not None:
                device.disk.close(self.folder / "kept" / device.name if keep else None)
        self.disk.close(self.folder / "kept" / "store" if keep else None)
        self._log.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--engine", action="append", help="of the cloud, repeatable (default: threads)")
    parser.add_argument("--rate", type=float, default=150.0, help="items a second of each device")
    parser.add_argument("--every", type=float, default=0.8, help="seconds between faults, in the mean")
    parser.add_argument("--spool", action="store_true", help="the devices spool to disk")
    parser.add_argument("--tls", action="store_true", help="with TLS; acknowledgements are then not known")
    args = parser.parse_args()
    args.engine = args.engine or ["threads"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chaos = Chaos(args)
    items = 0
    try:
        chaos.break_things()
        chaos.bring_to_an_end()
        items = chaos.check()
    finally:
        chaos.close()
    runs = [run for device in chaos.devices for run in device.runs]
    killed = sum(run.report is None for run in runs)
    print(f"seed {args.seed}: {sum(chaos.faults.values())} faults: " + ", ".join(
        f"{count} {kind}" for kind, count in sorted(chaos.faults.items(), key=lambda each: -each[1])
    ))  # fmt: skip
    if not chaos.disk.mounted:
        print("no disk was full: this user may not mount a tmpfs")
    acked = sum(run.acked for run in runs)
    left = sum(run.spooled[1] - run.spooled[0] for run in runs if run.spooled)
    print(
        f"{items} items in {len(runs)} runs of {args.devices} devices ({killed} killed, {chaos.cloud.starts} starts of "
        f"the cloud); {acked} acknowledgements were checked, and {left} items that waited in spools"
    )
    for problem in chaos.problems[:20]:
        print(f"WRONG: {problem}")
    if chaos.problems:
        print(f"{len(chaos.problems)} problems; logs, store and faults are in {chaos.folder}; the same faults again:")
        print("    python3 -m benchmarks.chaos " + " ".join(sys.argv[1:]))
        return 1
    print("every book is right: none lost, none twice, none out of order")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
