"""Weak devices and their uplink on this machine, for benchmarks. In: jobs and conditions. Out: what the jobs return.

The namespaces, CPU quotas and the shaped link are those of the project's `device-lab` script, whose functions are used
as a module's: so the conditions can change with each job, and the processes stay. A device is a process under a quota
that has imported what it needs before the quota holds, and runs each job in a fork of itself; a quota of 0.1 would
make the imports last longer than a measurement.

    Lab                    the two namespaces; one worker process for each device and one in the cloud, and the server
    Conditions             quotas and rates over the time of a job
    coordinator, ...       jobs: functions that a worker runs in a fork, by their names
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT.parent / "shared" / "lab" / "device-lab"
PORT = 8089
FREE = 2.0  # cores for a device that has no job
START_S = 60.0
GRACE_S = 30.0  # that a job may last longer than it was asked to

Steps = tuple[tuple[float, float], ...]


def load(script: Path) -> ModuleType:
    """The lab's script as a module."""
    loader = importlib.machinery.SourceFileLoader("device_lab_script", str(script))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def why_not(script: Path) -> str | None:
    """Why the lab cannot run here; None if it can."""
    if not script.is_file():
        return f"there is no {script}; --lab PATH names it"
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "it needs Linux and root, for network namespaces and CPU quotas"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"it needs the program {tool!r} (package iproute2)"
    tag = f"try{os.getpid()}"
    try:
        module = load(script)
        with module.link(tag) as (_, device), module.cpu_group(tag, 1.0):
            module.set_rate(device, 100.0, "add")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine does not let it make a namespace, a shaped link or a CPU quota: {error}"
    return None


@dataclass(frozen=True)
class Conditions:
    """What holds while a job runs: (second, value), the first at second 0.

    Attributes:
        cpu: cores that each device may use.
        mbit: the uplink's rate that all devices share; 0 for no limit.
    """

    cpu: Steps
    mbit: Steps


@dataclass(frozen=True)
class Answer:
    """What a job gave: its function's result, and when it began and ended on this machine's steady clock."""

    result: Any
    began_at: float
    ended_at: float


class JobError(Exception):
    """A job failed; its message tells how."""


class Lab:
    """A server and devices, each with its own token. A context manager; `cloud_report` is there after its end.

    Arguments:
        script: the lab's.
        app: for both sides.
        devices: how many there are.
        environment: for all processes, beside this one's.
        source: what the app opens; each worker opens it once before, so that frames in memory are there.
        folder: for what the server writes, and logs.
    """

    def __init__(
        self,
        script: Path,
        app: str,
        folder: Path,
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
        source: str | None = None,
    ) -> None:
        self._module = load(script)
        self._app = app
        self._folder = folder
        self._devices = devices
        self._source = source
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OFFLOAD_") and key != "HOST"},
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self._stack = ExitStack()
        self._groups: list[Path] = []
        self.workers: list[Connection] = []
        self.database = folder / "results.sqlite"
        self.cloud_report = folder / "cloud.json"

    def __enter__(self) -> Lab:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        module, tag = self._module, f"{os.getpid():x}{time.monotonic_ns() % 0xFFFF:04x}"
        self.cloud_host: str = module.CLOUD_IP
        state = self._folder / "state"
        server = [sys.executable, str(ROOT / "cloud_server_coordinator.py"), "--app", self._app]
        server += ["--state-dir", str(state)]
        tokens = [self._token([*server, "--enroll", f"lab-{number}"]) for number in range(self._devices)]
        cloud, device = self._stack.enter_context(module.link(tag))
        self._device_side, self._shaped = device, False
        # A Unix socket, since it reaches across network namespaces.
        listener = self._stack.enter_context(Listener(str(self._folder / "socket"), "AF_UNIX"))
        server += ["--results", f"sqlite:{self.database}", "--report", str(self.cloud_report)]
        log = self._folder / "cloud.log"
        self._begin("cloud", cloud, [*server, "--port", str(PORT)], log)
        program = "import sys; from benchmarks.device_lab import work; work(sys.argv[1])"
        worker = [sys.executable, "-c", program, str(self._folder / "socket")]
        self._cloud_worker = self._worker(listener, "cloud worker", cloud, worker)
        for number, token in enumerate(tokens):
            group = self._stack.enter_context(module.cpu_group(f"{tag}-{number}", FREE))
            self._groups.append(group)
            extra = {"OFFLOAD_TOKEN": token}
            self.workers.append(self._worker(listener, f"device {number}", device, worker, group, extra))
        for each in (self._cloud_worker, *self.workers):
            each.send(("warm", (self._app, self._source)))
        for each in (self._cloud_worker, *self.workers):
            self._answer(each, START_S)
        deadline = time.monotonic() + START_S
        while "listening on" not in log.read_text():
            if time.monotonic() > deadline:
                raise JobError(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)

    def _token(self, command: Sequence[str]) -> str:
        told = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout
        return shlex.split(told.strip().removeprefix("export "))[0].partition("=")[2]

    def _begin(
        self,
        name: str,
        namespace: str,
        command: Sequence[str],
        log: Path,
        group: Path | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        words = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(command)} >>{shlex.quote(str(log))} 2>&1"
        process = self._module.start(name, namespace, words, group, **self._environment, **(extra or {}))
        self._stack.callback(self._module.end, process)

    def _worker(
        self,
        listener: Listener,
        name: str,
        namespace: str,
        command: Sequence[str],
        group: Path | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Connection:
        self._begin(name, namespace, command, self._folder / f"{name.replace(' ', '-')}.log", group, extra)
        connection = listener.accept()
        self._stack.callback(connection.close)
        return connection

    def run(
        self,
        jobs: Sequence[tuple[str, tuple[Any, ...]]],
        conditions: Conditions,
        limit_s: float,
        cloud_job: tuple[str, tuple[Any, ...]] | None = None,
    ) -> tuple[list[Answer], Answer | None]:
        """Runs a job on each device, and perhaps one in the cloud, under conditions that begin with them.

        Arguments:
            jobs: for each device the job's name and arguments.
            limit_s: how long they are expected to last.

        Returns:
            The devices' answers, and the cloud's.

        Raises:
            JobError: one failed, or did not end.
        """
        module, stop = self._module, threading.Event()
        if cloud_job is not None:
            self._cloud_worker.send(cloud_job)
        players = [
            threading.Thread(target=module.play, args=(steps, apply, stop), daemon=True)
            for steps, apply in ((conditions.cpu, self._set_cpu), (conditions.mbit, self._set_mbit))
        ]
        self._set_cpu(conditions.cpu[0][1])
        self._set_mbit(conditions.mbit[0][1])
        for worker, job in zip(self.workers, jobs, strict=True):
            worker.send(job)
        for player in players:
            player.start()
        try:
            answers = [self._answer(worker, limit_s + GRACE_S) for worker in self.workers]
            of_cloud = self._answer(self._cloud_worker, GRACE_S) if cloud_job is not None else None
        finally:
            stop.set()
            for player in players:
                player.join()
            self._set_cpu(FREE)
        return answers, of_cloud

    def _set_cpu(self, cores: float) -> None:
        for group in self._groups:
            self._module.set_quota(group, cores)

    def _set_mbit(self, mbit: float) -> None:
        if mbit:
            self._module.set_rate(self._device_side, mbit, "change" if self._shaped else "add")
        elif self._shaped:
            command = ["ip", "netns", "exec", self._device_side, "tc", "qdisc", "del", "dev", "up0", "root"]
            subprocess.run(command, check=True)
        self._shaped = bool(mbit)

    @staticmethod
    def _answer(worker: Connection, limit_s: float) -> Answer:
        if not wait([worker], limit_s):
            raise JobError(f"a job did not end within {limit_s:.0f} s")
        try:
            answer = worker.recv()
        except EOFError:
            raise JobError("a worker died") from None
        if isinstance(answer, str):
            raise JobError(answer)
        assert isinstance(answer, Answer)
        return answer


# -- the workers' processes ---------------------------------------------------------------------------------------


def coordinator(arguments: Sequence[str], output: str) -> int:
    """The device's command with these arguments. Returns its exit status."""
    from task_offload.command import device_command

    _redirect(output)
    return device_command(arguments)


def profile(arguments: Sequence[str]) -> Any:
    """The names of the chain's tasks, and what they cost here as the cost model takes it."""
    from task_offload.config import parse_device
    from task_offload.profiling import measure_here
    from task_offload.task import load_app
    from task_offload.wire.compression import available_codecs

    config = parse_device(arguments)
    chain = load_app(config.app)
    costs = measure_here(config, chain, available_codecs()).costs
    return list(chain.names), costs


def pause() -> None:
    """Nothing, for a device that has no part in something."""


def forerunner_device(app: str, source: str, split: int, host: str, seconds: float) -> tuple[int, int]:
    """The sequential design's device. Returns items and bytes sent."""
    from benchmarks import forerunner

    tasks = _tasks(app, source)
    return forerunner.run_device(tasks, split, PORT + 1, seconds, host)


def forerunner_cloud(app: str, host: str) -> list[float]:
    """The sequential design's server for one client. Returns when each item ended, on the steady clock."""
    from benchmarks import forerunner

    tasks, ended_at = _tasks(app, None), []

    def last(*args: Any) -> Any:
        returned = tasks[-1](*args)
        ended_at.append(time.monotonic())
        return returned

    server = forerunner.Server([*tasks[:-1], last], host, PORT + 1)
    server.wait()
    return ended_at


def local_results(app: str, source: str, items: int) -> list[Any]:
    """What the last task returns for each item when all tasks run here, one after the other."""
    from task_offload.runner import Runner, States
    from task_offload.task import Item, load_app

    _tasks(app, source)
    runner, states = Runner(load_app(app)), States()
    last = len(load_app(app).tasks)
    return [runner.run(Item("local", "", number, 0.0, last), states, (), 0, last).value for number in range(items)]


def _tasks(app: str, source: str | None) -> list[Any]:
    from task_offload.task import load_app

    chain = load_app(app)
    if source is not None and chain.open_source is not None:
        chain.open_source(source)
    return [each.function for each in chain.tasks]


JOBS = {
    each.__name__: each for each in (coordinator, profile, pause, forerunner_device, forerunner_cloud, local_results)
}


def _redirect(output: str) -> None:
    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(opened, descriptor)
    os.close(opened)


def work(path: str) -> None:
    """A worker: imports, then forks for each job."""
    pipe = Client(path, "AF_UNIX")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            name, arguments = pipe.recv()
            began_at = time.monotonic()
            if name == "warm":
                _warm(*arguments)
                pipe.send(Answer(None, began_at, time.monotonic()))
            else:
                _in_fork(pipe, name, arguments, began_at)


def _warm(app: str, source: str | None) -> None:
    import task_offload.device
    import task_offload.profiling  # noqa: F401
    from task_offload.wire.compression import available_codecs

    available_codecs()
    _tasks(app, source)


def _in_fork(pipe: Connection, name: str, arguments: tuple[Any, ...], began_at: float) -> None:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            pipe.send(f"job {name} ended with status {os.waitstatus_to_exitcode(status)}")
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result = JOBS[name](*arguments)
        pipe.send(Answer(result, began_at, time.monotonic()))
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(1)
