"""`--demo`: both sides on one machine, an emulated weak device and link, automatic mode. In: nothing. Out: N moving."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from task_offload.config import DeviceConfig, EmulatedLink
from task_offload.errors import OffloadError

CPU_FACTOR = 4.0
LINK = EmulatedLink(bytes_per_s=100e6 / 8, delay_s=0.005)
TARGET_FPS = 40.0
START_SPLIT = 6


def run_demo(config: DeviceConfig) -> int:
    """Starts a server on a free port, runs a device against it, and ends both. Returns the device's exit status."""
    from task_offload.device import run_device

    with tempfile.TemporaryDirectory(prefix="task-offload-demo-") as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "task_offload.demo", folder],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OFFLOAD_APP": config.app, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is the device's; the server ends when the device has left
        )
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            if not port:
                raise OffloadError("the demo's server did not start; its message stands above")
            config = replace(
                config,
                host="127.0.0.1",
                port=int(port),
                split=START_SPLIT,
                target_fps=TARGET_FPS,
                emulate_cpu=config.emulate_cpu or CPU_FACTOR,
                emulate_link=config.emulate_link or LINK,
                demo=False,
            )
            link = config.emulate_link
            assert link is not None
            print(
                f"demo: an emulated device {config.emulate_cpu:g} times slower than this machine, an emulated link of "
                f"{link.bytes_per_s * 8 / 1e6:g} Mbit/s with {link.delay_s * 1000:g} ms delay; "
                f"{TARGET_FPS:g} FPS wanted",
                flush=True,
            )
            return run_device(config)
        finally:
            server.terminate()
            assert server.stdout is not None
            server.stdout.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _serve(folder: Path) -> None:
    """The demo's server: it prints its port first."""
    from task_offload.cloud import run_cloud
    from task_offload.config import CloudConfig
    from task_offload.observe.log import log_to_stderr

    log_to_stderr()
    run_cloud(
        CloudConfig(
            host="127.0.0.1",
            port=0,
            app=os.environ["OFFLOAD_APP"],
            workers=os.cpu_count() or 1,
            results=(f"sqlite:{folder / 'results.sqlite'}",),
            state_dir=folder / "state",
        ),
        started=lambda port: print(port, flush=True),
    )


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
