"""What the user asked for, checked. In: command line and environment. Out: one frozen config for each side.

Every option that a service would set has an environment variable, named in its help; the command line wins.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from task_offload.errors import ConfigError
from task_offload.transport.tokens import check_device_name

DEFAULT_APP = "ball_tracking_example.taskified"
DEFAULT_PORT = 8089
DRAIN_S = 5.0
WEIGHTS = (0.01, 100.0)  # the least and the most: nobody is to be shut out by another's
MOST_BYTES = 2**60  # no disk is larger
MOST_NUMBER = 1e9  # of what has no other limit: a few times more seconds than this, and Python's waits fail
MOST_WORKERS = 1024  # more than one a core only helps tasks that wait for something

NO_TLS = "no encryption; between loopback addresses only, for measurements"

IDLE_WITHOUT_SPLIT = (
    "--host", "--port", "--overload", "--codec", "--picture-quality", "--max-latency", "--spool", "--spool-limit",
    "--emulate-link", "--no-tls",
)  # fmt: skip
IDLE_IN_DEMO = ("--host", "--port", "--spool")
IDLE_IN_PROFILE = ("--spool",)


@dataclass(frozen=True)
class EmulatedLink:
    """A slower link than the real one. `bytes_per_s` of it go up, each `delay_s` later, both ways."""

    bytes_per_s: float
    delay_s: float = 0.0


@dataclass(frozen=True)
class DeviceConfig:
    """What one run of a device does. `split` None is local-only mode; `target_fps` None is manual mode."""

    split: int | None = None
    target_fps: float | None = None
    host: str | None = None
    port: int = DEFAULT_PORT
    app: str = DEFAULT_APP
    source: str | None = None
    device_name: str = "device"
    use_tls: bool = True
    items: int | None = None
    duration_s: float | None = None
    realtime: bool = False
    overload: Literal["block", "newest"] | None = None
    codec: str = "auto"
    picture_quality: int = 90
    max_latency_s: float | None = None
    spool: Path | None = None
    spool_limit_bytes: int | None = None
    emulate_cpu: float | None = None
    emulate_link: EmulatedLink | None = None
    drain_s: float = DRAIN_S
    report: Path | None = None
    demo: bool = False
    profile: bool = False
    note: str = ""  # what to tell of the options

    @property
    def mode(self) -> Literal["local", "manual", "auto"]:
        if self.split is None:
            return "local"
        return "manual" if self.target_fps is None else "auto"


@dataclass(frozen=True)
class CloudConfig:
    """How one server works."""

    host: str = "0.0.0.0"
    port: int = DEFAULT_PORT
    app: str = DEFAULT_APP
    engine: str = "threads"
    workers: int = 0
    task_timeout_s: float = 30.0
    weights: Mapping[str, float] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    keep_days: float | None = None
    state_dir: Path | None = None
    use_tls: bool = True
    enroll: str | None = None
    revoke: str | None = None
    list_devices: bool = False
    drain_s: float = DRAIN_S
    report: Path | None = None


class _Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        # No abbreviations: an option that is added later would make them ambiguous.
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


class _Options:
    """Adds options to a parser, each for a field of the config, which has its default.

    Arguments:
        config: the class of the config.
        environ: where variables also set options.
    """

    def __init__(self, parser: argparse.ArgumentParser, config: type, environ: Mapping[str, str]) -> None:
        self._parser = parser
        self._environ = environ
        self._defaults = {each.name: each.default for each in fields(config)}
        self._actions: list[argparse.Action] = []

    def add(
        self, usage: str, convert: Callable[[str], Any], text: str, env: str | None = None, name: str = "", **more: Any
    ) -> None:
        """Adds an option that has a value.

        Arguments:
            usage: the flag and what its value is called, as in `--app MODULE`.
            convert: makes the field's value of a text.
            text: the help.
            env: the variable that also sets it.
            name: of the field, where it is not the flag's.
        """

        def given(text: str) -> Any:
            if not text:  # as "$FOLDER" is where nobody set it
                raise argparse.ArgumentTypeError(f"the {metavar} after it is empty")
            return convert(text)

        flag, metavar = usage.split(" ")
        name = name or _field_name(flag)
        default = more.pop("default", self._defaults[name])
        if env is not None:
            text += f" [${env}]"
            if self._environ.get(env):
                try:
                    default = convert(self._environ[env])
                except (argparse.ArgumentTypeError, ValueError) as error:
                    raise ConfigError(f"environment variable {env}: {error}") from error
        self._actions.append(
            self._parser.add_argument(flag, dest=name, metavar=metavar, type=given, default=default, help=text, **more)
        )

    def flag(self, flag: str, text: str, name: str = "") -> None:
        """Adds an option without a value, which turns the field's default round."""
        name = name or _field_name(flag)
        action = "store_false" if self._defaults[name] else "store_true"
        self._actions.append(self._parser.add_argument(flag, dest=name, action=action, help=text))

    def on(self, argv: Sequence[str] | None) -> list[str]:
        """The options that stand on a command line, without those that only the environment sets."""
        unset = argparse.Namespace(**{action.dest: None for action in self._actions})
        found = vars(self._parser.parse_args(argv, unset))
        return [action.option_strings[0] for action in self._actions if found[action.dest] is not None]


def _field_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def parse_device(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> DeviceConfig:
    """The device's config from its command line.

    Raises:
        ConfigError: an argument cannot work. What depends on the app (the splits) is checked with it later.
    """
    parser = _Parser(
        prog="iot_client_coordinator.py",
        description="Runs the first tasks of an app's chain on this device, and the rest on the server HOST.",
        epilog="Without SPLIT every task runs here and no network is used. $HOST names the server, $OFFLOAD_TOKEN has "
        "this device's token, or $OFFLOAD_TOKEN_FILE the file with it.",
    )
    parser.add_argument("split", nargs="?", type=_integer(1), metavar="SPLIT", help="how many tasks run on this device")
    parser.add_argument(
        "target_fps", nargs="?", type=_number(0), metavar="TARGET",
        help="items a second to meet: SPLIT is where it starts, and it is re-adjusted automatically",
    )  # fmt: skip
    options = _Options(parser, DeviceConfig, os.environ if environ is None else environ)
    add = options.add
    options.flag("--demo", "server and device on this machine, an emulated weak device and link, automatic mode")
    add("--host ADDRESS", _host, "the server's address", "HOST")
    add("--port PORT", _integer(1, 65535), f"the server's port (default {DEFAULT_PORT})", "PORT")
    add("--app MODULE_OR_FILE", str, f"module or file with the tasks (default {DEFAULT_APP})", "OFFLOAD_APP")
    add("--source SOURCE", str, "camera index, picamera2, file or URL (default: the app's own)", "OFFLOAD_SOURCE")
    add(
        "--device-name NAME", str, "this device's name (default: the machine's)", "OFFLOAD_DEVICE_NAME",
        default=_host_name(),
    )  # fmt: skip
    add("--items COUNT", _integer(1), "end after so many items")
    add("--duration SECONDS", _number(0), "end after so many seconds", name="duration_s")
    options.flag("--realtime", "take a file's items at its own rate, as a camera would yield them")
    add(
        "--overload block|newest", _choice("block", "newest"),
        "when items come faster than they can be worked on: block the source, or let the newest item win "
        "(default: block for a file, newest for a live source)", "OFFLOAD_OVERLOAD",
    )  # fmt: skip
    add(
        "--codec CODEC", _codec, "how payloads are encoded: auto, none, lz4, zstd or jpeg:QUALITY (default auto)",
        "OFFLOAD_CODEC",
    )  # fmt: skip
    add(
        "--picture-quality 0-100", _integer(0, 100), "JPEG quality of pictures, which no task computes with; "
        f"0 sends them lossless (default {DeviceConfig.picture_quality})", "OFFLOAD_PICTURE_QUALITY",
    )  # fmt: skip
    add(
        "--max-latency MS", _milliseconds, "how long an item may take: no more are worked on at a time than can keep "
        "to it; automatic mode avoids splits that cannot", "OFFLOAD_MAX_LATENCY", name="max_latency_s",
    )  # fmt: skip
    add("--spool DIR", Path, "folder that keeps items on disk while the server is away", "OFFLOAD_SPOOL")
    add(
        "--spool-limit SIZE", _size, "how much may wait while the server is away "
        "(default 64M in memory, 1G with --spool)", "OFFLOAD_SPOOL_LIMIT", name="spool_limit_bytes",
    )  # fmt: skip
    _add_drain(options)
    add("--emulate-cpu FACTOR", _number(1), "behave like one core that is FACTOR times slower")
    add("--emulate-link RATE[,DELAY]", _link, "behave like a slower link: 20mbit or 20mbit,15ms")
    add("--report FILE.json", _report, "write the run report", "OFFLOAD_REPORT")
    options.flag("--profile", "measure the chain, print what every split would give, and stop")
    options.flag("--no-tls", NO_TLS, name="use_tls")
    config = DeviceConfig(**vars(parser.parse_args(argv)))
    if config.demo and config.split is not None:
        raise ConfigError("--demo takes no SPLIT: it starts its own server and runs in automatic mode")
    if config.demo and config.profile:
        raise ConfigError("--demo and --profile are two runs; give one of them")
    if config.split is not None and not config.host and not config.profile:
        raise ConfigError(
            "a split needs a server: set HOST to its address, as in  export HOST=203.0.113.7  or give --host"
        )
    return replace(config, note=_note(config, options.on(argv)))


def parse_cloud(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> CloudConfig:
    """The server's config from its command line.

    Raises:
        ConfigError: an argument cannot work.
    """
    environ = os.environ if environ is None else environ
    parser = _Parser(
        prog="cloud_server_coordinator.py",
        description="Runs the tasks that devices leave to the cloud, for any number of devices.",
    )
    options = _Options(parser, CloudConfig, environ)
    add = options.add
    add(
        "--host ADDRESS", str, f"address to listen on; :: takes IPv6 and IPv4 (default {CloudConfig.host})",
        "OFFLOAD_LISTEN",
    )  # fmt: skip
    add("--port PORT", _integer(0, 65535), f"port to listen on; 0 takes a free one (default {DEFAULT_PORT})", "PORT")
    add("--app MODULE_OR_FILE", str, f"module or file with the tasks (default {DEFAULT_APP})", "OFFLOAD_APP")
    add("--engine ENGINE", str, "where tasks run: threads (default), processes, dask or dask:ADDRESS", "OFFLOAD_ENGINE")
    add(
        "--workers COUNT", _integer(1, MOST_WORKERS), "how many items are worked on at a time (default: one a core)",
        "OFFLOAD_WORKERS", default=usable_cores(),
    )  # fmt: skip
    add(
        "--task-timeout SECONDS", _number(0), "how long an item's tasks before the last may take here "
        f"(default {CloudConfig.task_timeout_s:g})", "OFFLOAD_TASK_TIMEOUT", name="task_timeout_s",
    )  # fmt: skip
    add(
        "--weight NAME=WEIGHT", _weight, "while devices want more than the workers can do, this one gets WEIGHT times "
        "what another gets (default 1); repeatable, in the variable with spaces between [$OFFLOAD_WEIGHTS]",
        name="weights", default=None, action="append",
    )  # fmt: skip
    add(
        "--results SINK", str, "where endings and results are recorded: sqlite:FILE, jsonl:FILE, "
        "mqtt://HOST, none; repeatable, in the variable with spaces between "
        "(default sqlite:results.sqlite) [$OFFLOAD_RESULTS]", default=None, action="append",
    )  # fmt: skip
    add("--keep DAYS", _number(0), "how many days results are kept (default: for ever)", "OFFLOAD_KEEP", "keep_days")
    add(
        "--state-dir DIR", Path,
        "folder with the server's key and its devices (default: below the user's state folder)", "OFFLOAD_STATE_DIR",
    )  # fmt: skip
    add("--enroll NAME", str, "let a device in: print the line to paste there, and exit")
    add("--revoke NAME", str, "shut a device out, and exit")
    options.flag("--list-devices", "print the devices that may connect, and exit")
    _add_drain(options)
    add("--report FILE.json", _report, "write the run report", "OFFLOAD_REPORT")
    options.flag("--no-tls", NO_TLS, name="use_tls")
    given = parser.parse_args(argv)
    try:
        given.weights = dict(given.weights or map(_weight, environ.get("OFFLOAD_WEIGHTS", "").split()))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"environment variable OFFLOAD_WEIGHTS: {error}") from error
    given.results = tuple(given.results or environ.get("OFFLOAD_RESULTS", "").split() or ["sqlite:results.sqlite"])
    return CloudConfig(**vars(given))


def usable_cores() -> int:
    """How many cores this process may use: fewer than the machine has, under taskset or in a container, say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _add_drain(options: _Options) -> None:
    options.add(
        "--drain SECONDS", _number(0, zero=True), f"at the end, seconds for what is on its way (default {DRAIN_S:g})",
        "OFFLOAD_DRAIN", name="drain_s",
    )  # fmt: skip


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return convert


def _number(above: float, zero: bool = False) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (above < value or (zero and value == 0)):
            raise argparse.ArgumentTypeError(f"{text} is not {'0 or more' if zero else f'greater than {above:g}'}")
        if value > MOST_NUMBER:
            raise argparse.ArgumentTypeError(f"{text} is more than {MOST_NUMBER:,.0f}")
        return value

    return convert


def _milliseconds(text: str) -> float:
    """Seconds of so many milliseconds."""
    return _number(0)(text) / 1000


def _choice(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return convert


def _report(text: str) -> Path:
    """A file that the end of a run can write: told before the run, not after it."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    as_it_is = path.exists() and (path.is_symlink() or not path.is_file())  # /dev/stdout, say: it is not replaced
    if not (os.access(path, os.W_OK) if as_it_is else os.access(path.parent, os.W_OK | os.X_OK)):
        raise argparse.ArgumentTypeError(f"{text} is not in a folder that you can write; name another file")
    return path


def _host(text: str) -> str:
    if re.search(r"[\s/@\[\]]", text) or re.fullmatch(r"[^:]*:\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name or an address alone; --port (or PORT) has the port")
    return text


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    least, most = WEIGHTS
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not name or not least <= weight <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device's name, =, and a weight of {least:g} to {most:g}")
    try:
        return check_device_name(name), weight
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _codec(text: str) -> str:
    if text in ("auto", "none", "lz4", "zstd"):
        return text
    quality = re.fullmatch(r"jpeg:(\d+)", text)
    if quality and 1 <= int(quality[1]) <= 100:
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not one of auto, none, lz4, zstd, jpeg:QUALITY with a quality of 1 to 100"
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(?:i?[bB])?", text)
    size = float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ") if match else 0.0
    if not 0 < size <= MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 2G")
    return int(size)


def _link(text: str) -> EmulatedLink:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit(?:,(\d+(?:\.\d+)?)ms)?", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) <= MOST_NUMBER or float(match[3] or 0) > MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 20mbit, or with a delay 20mbit,15ms")
    bits = float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]
    return EmulatedLink(bits / 8, float(match[3] or 0) / 1000)


def _note(config: DeviceConfig, given: Sequence[str]) -> str:
    """A line that names the options that were given and do nothing; empty if there are none."""
    idle: Sequence[str]
    if config.demo:
        why, idle = "--demo starts its own server", IDLE_IN_DEMO
    elif config.profile:
        why, idle = "--profile measures some items, and keeps none", IDLE_IN_PROFILE
    elif config.split is None:
        why, idle = "without SPLIT every task runs here", IDLE_WITHOUT_SPLIT
    else:
        return ""
    flags = [flag for flag in given if flag in idle]
    if not flags:
        return ""
    names = " and ".join(filter(None, (", ".join(flags[:-1]), flags[-1])))
    return f"{why}, so {names} {'does' if len(flags) == 1 else 'do'} nothing"


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:64] or "device"
