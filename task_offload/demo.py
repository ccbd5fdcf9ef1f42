"""`--demo`: both sides on one machine, an emulated weak device and link, automatic mode. In: nothing. Out: N moving."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from task_offload.config import DeviceConfig, EmulatedLink
from task_offload.errors import OffloadError
from task_offload.run import say
from task_offload.runner import Kind, Runner, States
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import Encoder

CPU_FACTOR = 10.0
LINK = EmulatedLink(bytes_per_s=100e6 / 8, delay_s=0.005)
DEMAND = 1.2  # times what the emulated device can do at the last split, so that the split has to move
MEASURE_S = 2.0
MEASURE_ITEMS = 40


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
            chain = load_app(config.app)
            factor, link = config.emulate_cpu or CPU_FACTOR, config.emulate_link or LINK
            last_split = chain.splits[-1]
            fps = _fps_here(config, chain, last_split) / factor
            target_fps = float(f"{DEMAND * fps:.2g}")
            say(
                f"demo: an emulated device {factor:g} times slower than this machine, which manages {fps:.2g} FPS at "
                f"split {last_split}; an emulated link of {link.bytes_per_s * 8 / 1e6:g} Mbit/s with "
                f"{link.delay_s * 1000:g} ms delay; {target_fps:g} FPS wanted"
            )
            return run_device(
                replace(
                    config,
                    host="127.0.0.1",
                    port=int(port),
                    split=last_split,
                    target_fps=target_fps,
                    emulate_cpu=factor,
                    emulate_link=link,
                    demo=False,
                )
            )
        finally:
            server.terminate()
            assert server.stdout is not None
            server.stdout.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _fps_here(config: DeviceConfig, chain: Chain, split: int) -> float:
    """How many items a second one core of this machine can take to this split, payloads encoded."""
    if chain.open_source is not None:
        chain.open_source(config.source)
    runner, states = Runner(chain), States()
    encoder = Encoder(chain.payload_types, config.picture_quality)
    began = time.thread_time()
    items = 0
    for items in range(1, MEASURE_ITEMS + 1):
        item = Item(config.device_name, "0" * 32, items, 0.0, split)
        outcome = runner.run(item, states, (), 0, split)
        if outcome.kind is Kind.CONTINUED:
            encoder.encode(outcome.value)
        if outcome.kind is Kind.FAILED or time.thread_time() - began > MEASURE_S:
            break
    return items / max(time.thread_time() - began, 1e-6)


def _serve(folder: Path) -> None:
    """The demo's server: it prints its port first."""
    from task_offload.config import CloudConfig
    from task_offload.observe.log import log_to_stderr
    from task_offload.serve import run_cloud

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
    try:
        _serve(Path(sys.argv[1]))
    except OffloadError as error:
        sys.exit(f"demo server: {error}")
