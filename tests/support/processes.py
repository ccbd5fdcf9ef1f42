"""Coordinators as real processes. In: a command line. Out: their lines as they come, and their exit status.

Nothing here sleeps: a test waits for a line, or for the end of a process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from task_offload.transport.identity import CloudIdentity

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "tests" / "apps"
PATIENCE_S = 30.0  # a test that waits so long has failed; no test needs it


def clean_environment(folder: Path) -> dict[str, str]:
    """The environment without anything that the coordinators look at, and with a private place for loopback tokens."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OFFLOAD_", "STATE_DIRECTORY", "XDG_", "NOTIFY_", "WATCHDOG_", "PYTHON"))
        and key not in ("HOST", "PORT", "DISPLAY", "WAYLAND_DISPLAY", "COUNT", "LOUD")
    }
    runtime = folder / "run"
    runtime.mkdir(exist_ok=True, mode=0o700)
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_STATE_HOME": str(folder / "xdg-state"),
    }


class Process:
    """A started program, whose lines are collected while it runs.

    Attributes:
        may_fail: tracebacks and warnings on stderr are what the test is about.
        patience_s: how long it may take until what is waited for.
    """

    may_fail = False
    patience_s = PATIENCE_S

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {"out": [], "err": []}
        self._open = 2
        self.popen = subprocess.Popen(
            argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="backslashreplace", start_new_session=True,
        )  # fmt: skip
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=("out", self.popen.stdout), daemon=True),
            threading.Thread(target=self._read, args=("err", self.popen.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._lines[name].append(line.rstrip("\n"))
                self._changed.notify_all()
        stream.close()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    @property
    def out(self) -> str:
        with self._changed:
            return "\n".join(self._lines["out"])

    @property
    def err(self) -> str:
        with self._changed:
            return "\n".join(self._lines["err"])

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Waits until so many lines of either stream match. Returns the last match."""
        expression = re.compile(pattern)

        def matches() -> list[re.Match[str]]:
            lines = self._lines["out"] + self._lines["err"]
            return [found for line in lines if (found := expression.search(line))]

        with self._changed:
            self._changed.wait_for(lambda: len(matches()) >= times or not self._open, self.patience_s)
            found = matches()
        assert len(found) >= times, f"no {times} lines like {pattern!r}{self._told()}"
        return found[-1]

    def wait(self, status: int | None = 0) -> int:
        """Waits for the end, and expects this exit status; None takes any."""
        try:
            found = self.popen.wait(self.patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end{self._told()}") from None
        for reader in self._readers:
            reader.join(self.patience_s)
        assert status is None or found == status, f"exit status {found} where {status} was due{self._told()}"
        if status is not None and not self.may_fail:
            for trouble in ("Traceback", "Exception ignored", "Warning:"):
                assert trouble not in self.err, f"{trouble}{self._told()}"
        return found

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and the end of it."""
        self.popen.kill()
        self.wait(None)

    def _told(self) -> str:
        return f"\n--- stdout\n{self.out}\n--- stderr\n{self.err}\n---"


class Gate:
    """The test's end of a named pipe that `tests/apps/gates.py` waits at."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._file = os.open(path, os.O_RDWR)

    def let(self, items: int) -> None:
        """Lets so many items pass."""
        os.write(self._file, b"." * items)

    def close(self) -> None:
        """Nobody passes any more; a first task that waits here ends its stream.

        What was let through before is forgotten if the other side has not opened the gate yet.
        """
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Server(Process):
    """A running cloud_server_coordinator, with what it leaves behind."""

    port: int
    store: Path
    report_file: Path

    def report(self) -> dict[str, Any]:
        """Its run report; after its end."""
        return dict(json.loads(self.report_file.read_text()))

    def stop(self) -> dict[str, Any]:
        """Ends it in good order. Returns its run report."""
        self.send(signal.SIGTERM)
        self.wait(0)
        return self.report()

    def rows(self) -> list[Row]:
        return read_rows(self.store)


class Device(Process):
    """A running iot_client_coordinator."""

    report_file: Path

    def report(self) -> dict[str, Any]:
        """Its run report; after its end."""
        return dict(json.loads(self.report_file.read_text()))

    def finish(self, status: int | None = 0) -> dict[str, Any]:
        """Waits for its end, with any exit status if it is None. Returns its run report, whose books are checked."""
        self.wait(status)
        report = self.report()
        check_report(report)
        return report


class Row(dict[str, Any]):
    """A row of the store's table `items`, its result parsed."""


def read_rows(store: Path) -> list[Row]:
    """Every row of the store, in the order of recording. The server may be running."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        rows = [Row(row) for row in connection.execute("SELECT * FROM items ORDER BY rowid")]
    finally:
        connection.close()
    for row in rows:
        row["result"] = None if row["result"] is None else json.loads(row["result"])
    return rows


def check_report(report: Mapping[str, Any]) -> None:
    """captured = completed + filtered + dropped + left, and the splits account for all of them."""
    items = report["items"]
    ended = items["completed"] + items["filtered"] + sum(items["dropped"].values()) + sum(items["left"].values())
    assert items["captured"] == ended, items


def check_order(rows: Sequence[Row]) -> None:
    """Each session's items were recorded once each, in sequence order."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["device"], row["session"]
        assert row["sequence"] > last.get(key, -1), f"{key}: {row['sequence']} after {last[key]}"
        last[key] = row["sequence"]


def pasted(line: str) -> str:
    """The token that a shell has after this line."""
    found = re.fullmatch(r"export OFFLOAD_TOKEN='([^']+)'", line)
    assert found, line
    return found[1]


class Lab:
    """Starts coordinators in one folder, and ends whatever is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = clean_environment(folder)
        self._processes: list[Process] = []
        self._gates: list[Gate] = []
        self._number = 0

    def app(self, name: str) -> str:
        return str(APPS / f"{name}.py")

    def gate(self, name: str) -> Gate:
        gate = Gate(self.folder / name)
        self._gates.append(gate)
        return gate

    def python(self, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Any Python program, under the tests' own interpreter."""
        process = Process([sys.executable, *argv], {**self.env, **(env or {})}, self.folder)
        self._processes.append(process)
        return process

    def server(
        self,
        app: str,
        *options: str,
        port: int = 0,
        limits: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        results: str | None = None,
        host: str = "127.0.0.1",
    ) -> Server:
        """A server that listens. A second one continues with the state and results of the first.

        Arguments:
            app: name of a file in tests/apps, or a path or module.
            limits: for `ListenerLimits`, where a test must not wait as long as the defaults say.
        """
        self._number += 1
        report = self.folder / f"server-{self._number}.json"
        argv = [
            sys.executable, *(["-m", "tests.support.serve"] if limits else [str(ROOT / "cloud_server_coordinator.py")]),
            "--app", self.app(app) if (APPS / f"{app}.py").exists() else app,
            "--host", host, "--port", str(port), "--state-dir", str(self.folder / "state"),
            "--results", results or f"sqlite:{self.folder / 'results.sqlite'}", "--report", str(report), *options,
        ]  # fmt: skip
        server = Server(argv, {**self.env, **(env or {}), "SERVER_LIMITS": json.dumps(limits or {})}, self.folder)
        self._processes.append(server)
        server.store = self.folder / "results.sqlite"
        server.report_file = report
        server.port = int(server.wait_for(r"listening on \S+:(\d+)")[1])
        return server

    def device(
        self,
        app: str,
        *argv: str,
        port: int | None = None,
        name: str = "device",
        env: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Device:
        """A device that has been started. `port` sets HOST and PORT; without it there is no server."""
        self._number += 1
        report = self.folder / f"{name}-{self._number}.json"
        command = [
            sys.executable, str(ROOT / "iot_client_coordinator.py"),
            "--app", self.app(app) if (APPS / f"{app}.py").exists() else app,
            "--device-name", name, "--report", str(report), *argv,
        ]  # fmt: skip
        at = {} if port is None else {"HOST": "127.0.0.1", "PORT": str(port)}
        device = Device(command, {**self.env, **at, **(env or {})}, self.folder)
        self._processes.append(device)
        device.report_file = report
        device.patience_s = patience_s
        return device

    def lacking(self, package: str) -> dict[str, str]:
        """The environment of a process that finds no such package."""
        folder = self.folder / "lacking"
        folder.mkdir(exist_ok=True)
        (folder / f"{package}.py").write_text("raise ImportError('it is not installed here')\n")
        return {"PYTHONPATH": f"{folder}:{ROOT}"}

    def enroll(self, name: str) -> str:
        """A token for a device: what the server's command does, without a process for it."""
        return pasted(CloudIdentity(self.folder / "state").enroll(name))

    def enroll_by_command(self, name: str) -> str:
        """A token for a device, as the server's command prints it."""
        argv = [str(ROOT / "cloud_server_coordinator.py"), "--state-dir", str(self.folder / "state"), "--enroll", name]
        command = self.python(*argv)
        command.wait(0)
        return pasted(command.out)

    def close(self) -> None:
        for gate in self._gates:
            gate.close()
        for process in self._processes:
            if process.running:
                process.kill()
            else:
                process.wait(None)
