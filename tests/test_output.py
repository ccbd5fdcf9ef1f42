"""What stands on stdout: a reader that goes ends a run in good order, a full disk costs only lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from task_offload.output import is_journal
from tests.support.processes import PATIENCE_S, ROOT, Lab, check_report

CLOUD = str(ROOT / "cloud_server_coordinator.py")
FULL = Path("/dev/full")

needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="there is no /dev/full")


class Command:
    """A command whose stdout the test holds."""

    def __init__(self, lab: Lab, argv: list[str], stdout: int | IO[bytes], env: dict[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *argv], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
            env={**lab.env, **(env or {})}, cwd=lab.folder,
        )  # fmt: skip

    def finish(self) -> tuple[int, str]:
        """Its exit status, and its stderr."""
        assert self.popen.stderr is not None
        with self.popen.stderr:
            said = self.popen.stderr.read().decode()
        return self.popen.wait(PATIENCE_S), said


def device(lab: Lab, *options: str) -> list[str]:
    return [
        str(ROOT / "iot_client_coordinator.py"), "--app", lab.app("counter"),
        "--report", str(lab.folder / "run.json"), *options,
    ]  # fmt: skip


def captured(lab: Lab) -> int:
    report = json.loads((lab.folder / "run.json").read_text())
    check_report(report)
    assert report["items"]["dropped"] == {}
    return int(report["items"]["captured"])


@pytest.fixture
def commands(lab: Lab) -> Iterator[list[Command]]:
    made: list[Command] = []
    yield made
    for each in made:
        each.popen.kill()
        each.popen.wait()


@pytest.mark.parametrize("split", [[], ["2", "--no-tls"]], ids=["local", "manual"])
def test_a_run_ends_in_good_order_when_nobody_reads_any_more(
    lab: Lab, commands: list[Command], split: list[str]
) -> None:
    """As with `| head -1`: the stream would never end by itself."""
    at = {"HOST": "127.0.0.1", "PORT": str(lab.server("counter", "--no-tls").port)} if split else {}
    # It notices with the next line, after 3 s; at a sensor's pace, since as fast as it can would be 3 s of two cores.
    command = Command(lab, device(lab, *split), subprocess.PIPE, {**at, "CAPTURE_MS": "20"})
    commands.append(command)
    assert command.popen.stdout is not None
    command.popen.stdout.readline()
    command.popen.stdout.close()
    status, said = command.finish()
    assert status == 0, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    captured(lab)


def test_a_reader_that_ctrl_c_ended_too_does_not_cut_the_draining_short(lab: Lab, commands: list[Command]) -> None:
    """As with `| tee run.log`, where one Ctrl-C goes to both."""
    work = lab.gate("work")
    server = lab.server("counter", "--no-tls", env={"WORK_GATE": str(work.path), "LOUD": "1"})
    at = {"HOST": "127.0.0.1", "PORT": str(server.port), "COUNT": "3"}
    command = Command(lab, device(lab, "2", "--no-tls", "--drain", "1000"), subprocess.PIPE, at)
    commands.append(command)
    server.wait_for("label 0")
    assert command.popen.stdout is not None
    command.popen.stdout.close()
    command.popen.send_signal(signal.SIGINT)
    work.let(3)
    status, said = command.finish()
    assert status == 0, said
    assert captured(lab) == 3


@needs_full
def test_a_full_disk_costs_lines_and_not_the_run(lab: Lab, commands: list[Command]) -> None:
    with FULL.open("wb") as full:
        command = Command(lab, device(lab, "--items", "50"), full)
        commands.append(command)
        status, said = command.finish()
    assert (status, said) == (0, "")
    assert captured(lab) == 50


@needs_full
@pytest.mark.parametrize("argv", [[CLOUD, "--enroll", "garden", "--state-dir", "state"], ["--profile", "--items", "5"]])
def test_what_a_command_was_run_for_must_be_written(lab: Lab, commands: list[Command], argv: list[str]) -> None:
    with FULL.open("wb") as full:
        command = Command(lab, argv if argv[0] == CLOUD else device(lab, *argv), full)
        commands.append(command)
        status, said = command.finish()
    assert status == 1
    assert said.splitlines()[1:] == []
    assert "the output cannot be written (No space left on device); run it again" in said


def test_a_closed_stdout_is_none(lab: Lab) -> None:
    """As a service manager may start it."""
    argv = [sys.executable, *device(lab, "--items", "50")]
    shell = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *argv], env=lab.env, cwd=lab.folder, check=False)
    assert shell.returncode == 0
    assert captured(lab) == 50


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_descriptor(lab: Lab, closed: str) -> None:
    """Else what is said there stands in the results, or in the spool."""
    (lab.folder / "app.py").write_text(
        "import os\n\nwith open('number', 'w') as file:\n"
        "    file.write(f'{file.fileno()} {[os.get_inheritable(n) for n in range(3)]}')\n\n\n"
        "def first():\n    return False\n\n\ntasks = [first, first]\n"
    )
    argv = [sys.executable, str(ROOT / "iot_client_coordinator.py"), "--app", "app.py"]
    shell = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *argv], env=lab.env, cwd=lab.folder, check=False)
    assert shell.returncode == 0
    number, inherited = (lab.folder / "number").read_text().split(" ", 1)
    assert int(number) > 2
    assert inherited == "[True, True, True]"  # a process that this one starts has the same need


def test_a_character_that_the_terminal_lacks_costs_no_item(lab: Lab) -> None:
    (lab.folder / "app.py").write_text(
        'numbers = iter(range(3))\n\n\ndef first():\n    n = next(numbers, None)\n    return n is not None, n\n\n\n'
        'def last(n):\n    print(f"{n} °C")\n    return True, n\n\n\ntasks = [first, last]\n',
        encoding="utf-8",
    )  # fmt: skip
    process = lab.python(str(ROOT / "iot_client_coordinator.py"), "--app", "app.py", env={"PYTHONIOENCODING": "ascii"})
    process.wait(0)
    assert r"2 \xb0C" in process.out
    assert "3 items captured = 3 completed" in process.out


def test_the_report_may_go_to_stdout(lab: Lab) -> None:
    process = lab.python(*device(lab, "--items", "5", "--report", "/dev/stdout"))
    process.wait(0)
    assert json.loads(process.out[process.out.index("{") :])["items"]["completed"] == 4
    assert Path("/dev/stdout").is_symlink()


def test_the_journal_is_known_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that the session's systemd started may have the variable, and is none."""
    found = os.fstat(1)
    for value, expected in ((f"{found.st_dev}:{found.st_ino}", True), (f"{found.st_dev}:1", False), ("", False)):
        monkeypatch.setenv("JOURNAL_STREAM", value)
        assert is_journal() is expected
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not is_journal()
