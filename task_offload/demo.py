"""`--demo`: both sides on one machine, an emulated weak device and link, automatic mode. In: nothing. Out: N moving."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from task_offload.command import end
from task_offload.config import CloudConfig, DeviceConfig, EmulatedLink, usable_cores
from task_offload.errors import OffloadError
from task_offload.output import complain, say
from task_offload.run import open_source
from task_offload.runner import Kind, Runner, States
from task_offload.scheduling.table import figure
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import Encoder

CPU_FACTOR = 10.0
LINK = EmulatedLink(bytes_per_s=100e6 / 8, delay_s=0.005)
DEMAND = 1.2  # times what the emulated device can do at the last split, so that the split has to move
MEASURE_S = 2.0
MEASURE_ITEMS = 40
LIVE_ITEMS = 10  # of a live source, which does not give them again
END_S = 10.0  # for the server, once its device has left


def run_demo(config: DeviceConfig) -> int:
    """Starts a server on a free port, runs a device against it, and ends both. Returns the device's exit status.

    Raises:
        OffloadError: the app, its source or the server does not work.
    """
    from task_offload.device import run_device

    chain = load_app(config.app)
    rate = open_source(chain, config.source)
    factor, link = config.emulate_cpu or CPU_FACTOR, config.emulate_link or LINK
    split = chain.splits[-1]
    live = chain.open_source is not None and rate is None
    here = _measure(config, chain, split, LIVE_ITEMS if live else MEASURE_ITEMS)
    fps = here.fps / factor
    target_fps = float(f"{min(DEMAND * fps, here.source_fps if live else math.inf):.2g}")
    read = say(
        f"demo: an emulated device {factor:g} times slower than this machine, which manages {figure(fps, 2)} FPS at "
        f"split {split}; an emulated link of {link.bytes_per_s * 8 / 1e6:g} Mbit/s with {link.delay_s * 1000:g} ms "
        f"delay; {target_fps:g} FPS wanted"
    )
    if not read:
        return 0
    port_end, server_end = os.pipe()  # its stdout is for what the app prints
    server = subprocess.Popen(
        [sys.executable, "-m", "task_offload.demo", config.app, str(server_end), "tls" if config.use_tls else "no-tls"],
        stdin=subprocess.PIPE,  # its end, however it comes, ends the server
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        pass_fds=[server_end],
        start_new_session=True,  # Ctrl-C is the device's; the server ends when the device has left
    )
    assert server.stdin is not None
    os.close(server_end)
    try:
        with os.fdopen(port_end) as told:
            port = told.read()
        if not port:
            raise OffloadError("the demo's server did not start; its message stands above")
        return run_device(
            replace(
                config,
                host="127.0.0.1",
                port=int(port),
                split=split,
                target_fps=target_fps,
                emulate_cpu=factor,
                emulate_link=link,
                spool=None,  # what waits in one is for the real server, and this one forgets all that it gets
            ),
            # A camera cannot be opened twice; a file begins anew, and so does what has ended.
            replace(chain, open_source=lambda source: None) if live and not here.ended else None,
        )
    finally:
        server.stdin.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                server.wait(END_S)
        finally:  # a second Ctrl-C, too, leaves no server behind
            server.kill()
            server.wait()


class _Measured(NamedTuple):
    """What the first items told.

    Attributes:
        fps: items a second that one core of this machine can take, payloads encoded.
        source_fps: items a second that came.
        ended: the stream has.
    """

    fps: float
    source_fps: float
    ended: bool


def _measure(config: DeviceConfig, chain: Chain, split: int, most: int) -> _Measured:
    """Takes some items to this split."""
    runner, states = Runner(chain), States()
    encoder = Encoder(chain.payload_types, config.picture_quality)
    cpu_began, began = time.thread_time(), time.monotonic()
    items, ended = 0, False
    while items < most and time.monotonic() < began + MEASURE_S:  # a sensor may be slow where its chain is not
        item = Item(config.device_name, "0" * 32, items, 0.0, split)
        outcome = runner.run(item, states, (), 0, split)
        ended = outcome.task == 0 and outcome.kind is Kind.FILTERED
        if ended:
            break
        items += 1
        if outcome.kind is Kind.CONTINUED:
            encoder.encode(outcome.value)
        if outcome.kind is Kind.FAILED:
            break
    if not items:
        raise OffloadError("the source yielded no item; give another --source")
    cpu_s, took_s = time.thread_time() - cpu_began, time.monotonic() - began
    return _Measured(items / max(cpu_s, 1e-6), items / max(took_s, 1e-6), ended)


def _serve(app: str, told: int, use_tls: bool) -> None:
    """The demo's server: it writes its port into a descriptor, and ends with its stdin."""
    from task_offload.observe.log import log_to_stderr
    from task_offload.serve import run_cloud

    def end_with_stdin() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def started(port: int) -> None:
        threading.Thread(target=end_with_stdin, daemon=True).start()
        with suppress(BrokenPipeError), os.fdopen(told, "w") as file:  # the user may have stopped the demo meanwhile
            file.write(str(port))

    log_to_stderr()
    with tempfile.TemporaryDirectory(prefix="task-offload-demo-") as folder:
        run_cloud(
            CloudConfig(
                host="127.0.0.1",
                port=0,
                app=app,
                workers=usable_cores(),
                results=(f"sqlite:{Path(folder) / 'results.sqlite'}",),
                state_dir=Path(folder) / "state",
                use_tls=use_tls,
            ),
            started,
        )


if __name__ == "__main__":
    try:
        _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tls")
        end(0)
    except OffloadError as error:
        complain("demo server", error)
        sys.exit(1)
