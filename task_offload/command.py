"""The two commands. In: command line and environment. Out: an exit status, and one clear line where it is not 0."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence

from task_offload import output
from task_offload.config import parse_cloud, parse_device
from task_offload.errors import ConfigError, OffloadError
from task_offload.observe.log import log_to_stderr
from task_offload.runner import TaskThread


def device_command(argv: Sequence[str] | None = None) -> int:
    """`iot_client_coordinator.py`."""
    return _command("iot_client_coordinator.py", _device, argv)


def cloud_command(argv: Sequence[str] | None = None) -> int:
    """`cloud_server_coordinator.py`."""
    return _command("cloud_server_coordinator.py", _cloud, argv)


def end(status: int) -> int:
    """The exit status, to give to the interpreter; where a thread is still at a task, ends the process at once.

    The interpreter's own end would abort if such a thread came back from OpenCV meanwhile.
    """
    if any(isinstance(each, TaskThread) for each in threading.enumerate()):
        os._exit(status)
    return status


def _command(program: str, work: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    output.prepare()
    log_to_stderr()
    try:
        return work(argv)
    except OffloadError as error:
        output.complain(program, error)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        output.finish()


def _device(argv: Sequence[str] | None) -> int:
    config = parse_device(argv)
    if config.note:
        print(f"iot_client_coordinator.py: {config.note}", file=sys.stderr, flush=True)
    if config.demo:
        from task_offload.demo import run_demo

        return run_demo(config)
    if config.profile:
        from task_offload.profiling import run_profile

        return run_profile(config)
    from task_offload.device import run_device

    return run_device(config)


def _cloud(argv: Sequence[str] | None) -> int:
    config = parse_cloud(argv)
    from task_offload.serve import run_cloud

    return run_cloud(config)
