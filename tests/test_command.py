"""The two commands: what cannot work is one line on stderr and exit status 2, before anything is started."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from task_offload.command import cloud_command, device_command
from task_offload.config import CloudConfig, DeviceConfig, EmulatedLink, parse_cloud, parse_device
from task_offload.errors import ConfigError
from tests.support.processes import APPS

COUNTER = str(APPS / "counter.py")
SOURCE = str(APPS / "source.py")
AT = ["--host", "127.0.0.1", "--no-tls", "--app", COUNTER]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undo_imports: None) -> None:
    monkeypatch.chdir(tmp_path)


def one_line(capsys: pytest.CaptureFixture[str], program: str) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"{program}: ")
    return line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["3"], "a split needs a server: set HOST to its address"),
        (["0", *AT], "0 is not 1 or more"),
        (["-1", *AT], "-1"),
        (["x", *AT], "'x' is not a whole number"),
        (["2.5", *AT], "'2.5' is not a whole number"),
        (["5", *AT], "a split of 5 is not possible"),
        (["99", *AT], "so choose 1 to 4"),
        (["2", "0", *AT], "0 is not greater than 0"),
        (["2", "-3", *AT], "-3"),
        (["2", "nan", *AT], "nan is not greater than 0"),
        (["2", "inf", *AT], "inf is more than 1,000,000,000"),
        (["2", "fast", *AT], "'fast' is not a number"),
        (["2", "17", "3", *AT], "unrecognized arguments: 3"),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["--dur=5"], "unrecognized arguments: --dur=5"),
        (["--items", "0"], "0 is not 1 or more"),
        (["--duration", "0"], "0 is not greater than 0"),
        (["--drain", "-1"], "-1 is not 0 or more"),
        (["--duration", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--drain", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--emulate-cpu", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--emulate-link", "20mbit,1000000000001ms"], "is not a rate such as"),
        (["--overload", "drop"], "'drop' is not one of block, newest"),
        (["--codec", "zip"], "'zip' is not one of auto, none, lz4, zstd, jpeg:QUALITY"),
        (["--codec", "jpeg:101"], "with a quality of 1 to 100"),
        (["--picture-quality", "101"], "101 is not 0 to 100"),
        (["--spool-limit", "much"], "'much' is not a size such as 500M or 2G"),
        (["--spool-limit", "0"], "is not a size"),
        (["--spool-limit", "9" * 320], "is not a size"),
        (["--emulate-cpu", "1"], "1 is not greater than 1"),
        (["--emulate-link", "fast"], "'fast' is not a rate such as 20mbit, or with a delay 20mbit,15ms"),
        (["--emulate-link", "0mbit"], "is not a rate"),
        (["--port", "65536", *AT], "65536 is not 1 to 65535"),
        (["--port", "0", *AT], "0 is not 1 to 65535"),
        (["--drain", "-1"], "-1"),
        (["--demo", "3"], "--demo takes no SPLIT"),
        (["--demo", "--profile"], "give one of them"),
        (["--report", "/"], "/ is a folder; name a file"),
        (["--report", "nowhere/run.json"], "nowhere/run.json is not in a folder that you can write"),
        (["--app", "."], "app '.': this names no module"),
        (["--app", "no_such_app"], "app no_such_app: there is no module of this name"),
        (["--app", "nowhere/app.py"], "there is no such file"),
        (["--app", "../"], "app ../: this is a folder; give a module or a file to --app"),
        (["--app", COUNTER, "--source", "0"], "it takes no --source"),
        (["--app", SOURCE, "--source", "words"], "open_source returned 'fast'; it returns a rate above 0, or None"),
        (["--app", SOURCE, "--source", "nothing"], "open_source returned 0; it returns a rate above 0, or None"),
        (["--profile", "99", "--app", COUNTER], "a split of 99 is not possible"),
        (["--demo", "--app", "no_such_app"], "there is no module of this name"),
        (["2", "--host", "192.0.2.7:8089"], "'192.0.2.7:8089' is not a name or an address alone; --port (or PORT) has"),
        (["2", "--host", "http://cloud"], "'http://cloud' is not a name or an address alone"),
        (["2", "--host", "[::1]"], "'[::1]' is not a name or an address alone"),
        (["--device-name", "../etc", "--app", COUNTER], "device name"),
        (["2", "--host", "192.0.2.7", "--no-tls", "--app", COUNTER], "192.0.2.7 is not a loopback address"),
        (["2", "--host", "192.0.2.7", "--app", COUNTER], "this device has no token for 192.0.2.7"),
    ],
)
def test_a_device_that_cannot_start(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert device_command(argv) == 2
    assert says in one_line(capsys, "iot_client_coordinator.py")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--port", "x"], "'x' is not a whole number"),
        (["--workers", "0"], "0 is not 1 to 1024"),
        (["--keep", "0"], "0 is not greater than 0"),
        (["--drain", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--task-timeout", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--keep", "1e12"], "1e12 is more than 1,000,000,000"),
        (["--weight", "gar/den=3"], "device name 'gar/den': use letters, digits, dot, dash, underscore and space only"),
        (["--app", "no_such_app"], "there is no module of this name"),
        (["--no-tls"], "0.0.0.0 is not a loopback address"),
        (["--no-tls", "--host", "127.0.0.1", "--results", "oracle:x"], "--results oracle:x: give"),
        (["--no-tls", "--host", "127.0.0.1", "--results", "none", "--results", "sqlite:x"], "it stands alone"),
        (["--no-tls", "--host", "127.0.0.1", "--results", "none", "--keep", "3"], "--keep: it bounds the SQLite file"),
        (["--no-tls", "--host", "192.0.2.1"], "192.0.2.1 is not a loopback address"),
        (["--report", "nowhere/run.json"], "is not in a folder that you can write"),
        (["--no-tls", "--host", "nowhere.invalid"], "is not a loopback address"),
        (["--host", "nowhere.invalid", "--state-dir", "state"], "cannot listen on nowhere.invalid: "),
        (["--enroll", "a/b", "--state-dir", "state"], "device name"),
        (["--revoke", "nobody", "--state-dir", "state"], "no device named 'nobody' is enrolled (enrolled: none)"),
    ],
)
def test_a_server_that_cannot_start(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = argv if "--app" in argv else ["--app", COUNTER, *argv]
    assert cloud_command(argv) == 2
    assert says in one_line(capsys, "cloud_server_coordinator.py")


@pytest.mark.parametrize("command", [device_command, cloud_command])
def test_an_empty_value_is_refused(
    command: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As "$FOLDER" is where nobody set it: the working folder, say, or every address."""
    parse, program = {
        device_command: (parse_device, "iot_client_coordinator.py"),
        cloud_command: (parse_cloud, "cloud_server_coordinator.py"),
    }[command]
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    options = re.findall(r"^  (--[\w-]+) (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert len(options) > 10
    for flag, metavar in options:
        assert command([flag, ""]) == 2
        assert one_line(capsys, program) == f"{program}: argument {flag}: the {metavar} after it is empty; see --help"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("source", ["gone", "raises"])
@pytest.mark.parametrize("more", [[], ["--profile"], ["--demo"]])
def test_a_source_that_does_not_open(source: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    accident = "its open_source raised ZeroDivisionError: by accident at source.py:22"
    says = {"gone": "camera 7 does not open", "raises": accident}
    assert device_command(["--app", SOURCE, "--source", source, *more]) == 1
    assert says[source] in one_line(capsys, "iot_client_coordinator.py")


@pytest.mark.parametrize("command", [device_command, cloud_command])
def test_an_error_of_two_lines_is_told_in_one(
    command: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("app.py").write_text("raise ValueError('no sensor\\nat port 3')\n")
    assert command(["--app", "app.py"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("its import raised ValueError: no sensor at port 3 at app.py:1")


def test_a_server_without_devices_says_how_to_let_one_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert cloud_command(["--list-devices", "--state-dir", "state"]) == 0
    assert capsys.readouterr() == ("", "no device is enrolled; --enroll NAME lets one in\n")
    for name in ("garden", "porch 2"):
        assert cloud_command(["--enroll", name, "--state-dir", "state"]) == 0
    capsys.readouterr()
    assert cloud_command(["--list-devices", "--state-dir", "state"]) == 0
    listed = capsys.readouterr()
    when = r"enrolled \d{4}-\d\d-\d\d \d\d:\d\d\n"
    assert re.fullmatch(f"garden   {when}porch 2  {when}", listed.out)
    assert listed.err == ""


def test_an_address_of_another_machine_is_not_one_to_listen_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cloud_command(["--app", COUNTER, "--host", "192.0.2.1", "--port", "0", "--state-dir", "state"]) == 1
    assert "--host takes an address of this machine" in one_line(capsys, "cloud_server_coordinator.py")


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "No such file or directory"), (".", "Is a directory"), ("bytes", "it is not text")]
)
def test_a_token_file_that_cannot_be_read(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bytes").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("OFFLOAD_TOKEN_FILE", name)
    assert device_command(["2", "--host", "192.0.2.7", "--app", COUNTER]) == 2
    line = one_line(capsys, "iot_client_coordinator.py")
    assert f"OFFLOAD_TOKEN_FILE {name}: {says}; name the file that holds this device's token" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_pipe_takes_a_report_where_a_file_could_not_be_made() -> None:
    os.mkfifo("pipe")
    Path().chmod(0o500)
    assert parse_device(["--report", "pipe"], {}).report == Path("pipe")
    with pytest.raises(ConfigError, match="not in a folder that you can write"):
        parse_device(["--report", "run.json"], {})


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (device_command, cloud_command):
        with pytest.raises(SystemExit) as left:
            command(["--help"])
        assert left.value.code == 0
    assert "SPLIT" in capsys.readouterr().out


# -- the configs --------------------------------------------------------------------------------------------------


def test_what_a_device_does_by_default() -> None:
    config = parse_device([], {})
    assert config.mode == "local"
    assert (config.port, config.app) == (8089, "ball_tracking_example.taskified")
    assert (config.codec, config.picture_quality, config.drain_s, config.use_tls) == ("auto", 90, 5.0, True)
    assert config.overload is None
    assert config.spool is None


def test_the_three_modes() -> None:
    environ = {"HOST": "203.0.113.7"}
    assert parse_device(["3"], environ).mode == "manual"
    auto = parse_device(["6", "17"], environ)
    assert (auto.mode, auto.split, auto.target_fps, auto.host) == ("auto", 6, 17.0, "203.0.113.7")
    assert parse_device([], environ).mode == "local"


def test_a_devices_options() -> None:
    config = parse_device(
        ["2", "--host", "h", "--port", "9", "--app", "x.py", "--source", "0", "--device-name", "pi", "--items", "5",
         "--duration", "1.5", "--realtime", "--overload", "newest", "--codec", "jpeg:80", "--picture-quality", "0",
         "--max-latency", "250", "--spool", "dir", "--spool-limit", "1.5G", "--emulate-cpu", "4", "--emulate-link",
         "20mbit,15ms", "--report", "r.json", "--drain", "0", "--no-tls"], {}
    )  # fmt: skip
    assert config == DeviceConfig(
        split=2, host="h", port=9, app="x.py", source="0", device_name="pi", use_tls=False, items=5, duration_s=1.5,
        realtime=True, overload="newest", codec="jpeg:80", picture_quality=0, max_latency_s=0.25, spool=Path("dir"),
        spool_limit_bytes=3 * 512 * 1024 * 1024, emulate_cpu=4.0, emulate_link=EmulatedLink(2.5e6, 0.015),
        drain_s=0.0, report=Path("r.json"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "note"),
    [
        ([], ""),
        (["--spool", "s"], "without SPLIT every task runs here, so --spool does nothing"),
        (
            ["--no-tls", "--host=h", "--codec", "auto", "--items", "3"],
            "without SPLIT every task runs here, so --host, --codec and --no-tls do nothing",
        ),
        (["2", "--host", "h", "--spool", "s"], ""),
        (["--profile", "--emulate-link", "20mbit"], ""),
        (["--demo", "--emulate-link", "20mbit"], ""),
        (["--profile", "--spool", "s"], "--profile measures some items, and keeps none, so --spool does nothing"),
        (["--demo", "--port", "8089", "--host", "h"], "--demo starts its own server, so --host and --port do nothing"),
    ],
)
def test_options_that_do_nothing_are_named_where_the_user_gave_them(argv: list[str], note: str) -> None:
    """A service's environment is the same for all modes."""
    assert parse_device(argv, {"OFFLOAD_SPOOL": "s", "HOST": "h", "PORT": "5"}).note == note


def test_what_does_nothing_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert device_command(["--port", "5", "--app", SOURCE, "--source", "gone"]) == 1
    said, _ = capsys.readouterr().err.splitlines()
    assert said == "iot_client_coordinator.py: without SPLIT every task runs here, so --port does nothing"


def test_a_devices_environment_and_that_the_command_line_wins() -> None:
    environ = {
        "HOST": "h", "PORT": "77", "OFFLOAD_APP": "an.app", "OFFLOAD_SOURCE": "cam", "OFFLOAD_DEVICE_NAME": "pi",
        "OFFLOAD_OVERLOAD": "block", "OFFLOAD_CODEC": "zstd", "OFFLOAD_PICTURE_QUALITY": "50", "OFFLOAD_SPOOL": "s",
        "OFFLOAD_SPOOL_LIMIT": "10k", "OFFLOAD_DRAIN": "9", "OFFLOAD_REPORT": "r", "OFFLOAD_MAX_LATENCY": "100",
    }  # fmt: skip
    config = parse_device(["1"], environ)
    assert (config.host, config.port, config.app, config.source) == ("h", 77, "an.app", "cam")
    assert (config.device_name, config.overload, config.codec, config.picture_quality) == ("pi", "block", "zstd", 50)
    assert (config.spool, config.spool_limit_bytes, config.drain_s) == (Path("s"), 10240, 9.0)
    assert (config.report, config.max_latency_s) == (Path("r"), 0.1)
    assert parse_device(["1", "--port", "5", "--host", "other"], environ).port == 5
    assert parse_device(["1", "--port", "5", "--host", "other"], environ).host == "other"
    assert parse_device([], {"PORT": ""}).port == 8089


@pytest.mark.parametrize("variable", ["PORT", "OFFLOAD_SPOOL_LIMIT", "OFFLOAD_CODEC", "OFFLOAD_OVERLOAD"])
def test_a_wrong_environment_is_named(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment variable {variable}: 'nonsense' is not"):
        parse_device([], {variable: "nonsense"})


def test_what_a_server_does_by_default() -> None:
    config = parse_cloud([], {})
    assert (config.host, config.port, config.engine) == ("0.0.0.0", 8089, "threads")
    assert config.results == ("sqlite:results.sqlite",)
    assert config.workers >= 1
    assert config.use_tls


def test_a_server_has_a_worker_for_each_core_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under taskset, or in a container, these are not all that the machine has."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 40})
    assert parse_cloud([], {}).workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert parse_cloud([], {}).workers == 64


def test_a_servers_options_and_environment() -> None:
    environ = {
        "PORT": "5", "OFFLOAD_RESULTS": "sqlite:a jsonl:b", "OFFLOAD_KEEP": "30", "OFFLOAD_STATE_DIR": "st",
        "OFFLOAD_LISTEN": "::1", "OFFLOAD_WORKERS": "3", "HOST": "ignored", "OFFLOAD_WEIGHTS": "door=4 a-b=0.5",
    }  # fmt: skip
    config = parse_cloud([], environ)
    assert (config.host, config.port, config.workers) == ("::1", 5, 3)
    assert config.results == ("sqlite:a", "jsonl:b")
    assert (config.keep_days, config.state_dir) == (30.0, Path("st"))
    assert config.weights == {"door": 4.0, "a-b": 0.5}
    given = parse_cloud(["--results", "none", "--host", "127.0.0.1", "--enroll", "pi", "--drain", "0"], environ)
    assert (given.results, given.host, given.enroll, given.drain_s) == (("none",), "127.0.0.1", "pi", 0.0)
    assert isinstance(given, CloudConfig)
    assert parse_cloud(["--weight", "x=2", "--weight", "y=3"], environ).weights == {"x": 2.0, "y": 3.0}
    assert parse_cloud(["--weight", "ku\u0308che=2"], {}).weights == {"k\u00fcche": 2.0}


@pytest.mark.parametrize("text", ["door", "door=", "=2", "door=0", "door=nan", "door=1000"])
def test_a_weight_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a device's name, =, and a weight of 0\.01 to 100"):
        parse_cloud(["--weight", text], {})
    with pytest.raises(ConfigError, match="environment variable OFFLOAD_WEIGHTS"):
        parse_cloud([], {"OFFLOAD_WEIGHTS": text})


def test_the_host_name_becomes_a_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "My Pi (küche)!" + "x" * 100)
    name = parse_device([], {}).device_name
    assert len(name) <= 64
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    monkeypatch.setattr("platform.node", lambda: "")
    assert parse_device([], {}).device_name == "device"
