"""The server's command. In: its configuration, and signals. Out: what it prints, and the exit status."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from task_offload.cloud import Cloud
from task_offload.config import CloudConfig
from task_offload.output import deliver, is_journal, say
from task_offload.runner import settle
from task_offload.transport.identity import CloudIdentity, default_state_dir

FIRST_DEVICE = "device-1"  # enrolled at the first start


def run_cloud(config: CloudConfig, started: Callable[[int], None] | None = None) -> int:
    """Runs a server until SIGINT or SIGTERM. Returns the exit status.

    Arguments:
        started: called with the port once it listens.

    Raises:
        OffloadError: it cannot start; the message says why.
    """
    if config.enroll or config.revoke or config.list_devices:
        return _manage(config)
    _allow_descriptors()
    cloud = Cloud(config)
    signals = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(130)
        if started is None:  # a person may have done it; not print, since what was interrupted may be printing
            with suppress(OSError):
                os.write(2, b"stopping: finishing what has come in; Ctrl-C again stops at once\n")
        cloud.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    settle()
    try:
        cloud.start()
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"listening on {host}:{cloud.port}, running {config.app}", file=sys.stderr, flush=True)
        if started is not None:
            started(cloud.port)
        elif not is_journal() and (line := cloud.enroll_first(FIRST_DEVICE)) is not None:  # no secrets in logs
            say(f"paste this on a device, which is named {FIRST_DEVICE} then (--enroll NAME for others):\n{line}")
        cloud.run()
    finally:
        cloud.close()
    return 0


def _allow_descriptors() -> None:
    """Allows this process as many descriptors as it may have: each device takes one, and a shell's limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _manage(config: CloudConfig) -> int:
    """Does what `--enroll`, `--revoke` or `--list-devices` asks."""
    identity = CloudIdentity(config.state_dir or default_state_dir())
    if config.enroll:
        if any(device.name == config.enroll for device in identity.list_devices()):
            print(f"{config.enroll} was enrolled before; its earlier token no longer works", file=sys.stderr)
        deliver(identity.enroll(config.enroll))
    if config.revoke:
        identity.revoke(config.revoke)
        deliver(f"{config.revoke} is shut out; a running server closes its connection within 2 s")
    if config.list_devices:
        devices = identity.list_devices()
        width = max((len(device.name) for device in devices), default=0)
        for device in devices:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(device.enrolled_at))
            deliver(f"{device.name:<{width}}  enrolled {when}")
        if not devices:
            print("no device is enrolled; --enroll NAME lets one in", file=sys.stderr)
    return 0
