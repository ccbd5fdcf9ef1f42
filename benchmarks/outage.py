"""A long outage of the cloud. Prints the device's memory over the outage, and whether all of it was delivered after.

    python3 -m benchmarks.outage --minutes 30 --fps 20

A device with `--spool` captures at a steady rate. Its server is killed (SIGKILL) after ten seconds, stays away, and
comes back. Exit status 1 if an item is missing or came twice, or if the device's memory grew by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
BEFORE_S = 10
AFTER_S = 60  # beyond the longest wait between two attempts to connect
GROWTH = 1.10


def start_server(folder: Path, environ: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, or on $PORT, and its port."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "cloud_server_coordinator.py", "--host", "127.0.0.1", "--state-dir", folder / "state",
         "--results", f"sqlite:{folder / 'results.sqlite'}"],
        env=environ, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    line = server.stderr.readline()
    if not line.startswith("listening on"):
        raise SystemExit(f"the server did not start: {line}")
    return server, line.split(":")[1].split(",")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="how long the server is away (default 30)")
    parser.add_argument("--fps", type=float, default=20, help="items a second (default 20)")
    parser.add_argument("--payload-bytes", type=int, default=10_000, help="of an item (default 10000)")
    options = parser.parse_args()
    outage_s = options.minutes * 60
    items = int((BEFORE_S + outage_s + AFTER_S) * options.fps)
    tasks = [{"cost_ms": 1, "payload_bytes": options.payload_bytes}] * 2 + [{"cost_ms": 0.1}]
    with tempfile.TemporaryDirectory(prefix="outage-") as name:
        folder = Path(name)
        environ = dict(os.environ, PORT="0", HOST="127.0.0.1", OFFLOAD_APP=str(ROOT / "benchmarks/synthetic_chain.py"))
        environ["OFFLOAD_SYNTHETIC"] = json.dumps({"rate": options.fps, "items": items, "tasks": tasks})
        server, environ["PORT"] = start_server(folder, environ)
        device = subprocess.Popen(
            [sys.executable, ROOT / "iot_client_coordinator.py", "2", "--realtime", "--spool", folder / "spool",
             "--spool-limit", "8G", "--report", folder / "report.json"],
            env=environ, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        process = psutil.Process(device.pid)
        time.sleep(BEFORE_S)
        server.send_signal(signal.SIGKILL)
        server.wait()
        began = time.monotonic()
        memory_mb: list[float] = []
        while (left_s := began + outage_s - time.monotonic()) > 0:
            time.sleep(min(left_s, outage_s / 10))
            memory_mb.append(process.memory_info().rss / 1e6)
            spooled_mb = sum(file.stat().st_size for file in (folder / "spool").iterdir()) / 1e6
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:6.1f} min away: device {memory_mb[-1]:6.1f} MB, spool {spooled_mb:7.1f} MB", flush=True)
        server, _ = start_server(folder, environ)
        began = time.monotonic()
        status = device.wait(600 + outage_s)
        print(f"the device ended {time.monotonic() - began:.1f} s after the server was back, with status {status}")
        server.send_signal(signal.SIGINT)
        server.wait(30)
        report = json.loads((folder / "report.json").read_text())
        with sqlite3.connect(folder / "results.sqlite") as results:
            rows = results.execute("SELECT sequence, ending FROM items ORDER BY rowid").fetchall()
    in_order = [sequence for sequence, _ in rows] == list(range(items))
    completed = sum(ending == "completed" for _, ending in rows)
    growth = max(memory_mb) / memory_mb[0]
    print(f"{items} items captured, {len(rows)} recorded, {completed} completed, in order: {in_order}")
    print(
        f"cloud away for {report['away_s']:.0f} s; the device's memory at most {growth:.3f} of that at the first look"
    )
    return 0 if status == 0 and in_order and completed == items and growth <= GROWTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
