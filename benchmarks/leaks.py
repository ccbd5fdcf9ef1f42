"""Do descriptors, threads or memory grow? Prints them over many items and reconnects, and fails if they do.

    python3 -m benchmarks.leaks --items 300000 --reconnects 200

One device with TLS, its items recorded, through a proxy that cuts the connection again and again. Exit status 1 if an
item is missing or came twice, if the items were over before all the reconnects were made, or if the second half of the
run has more of anything than the first had at most: descriptors or threads at all, memory by more than 5 %.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.fault_proxy import FaultProxy
from tests.support.processes import APPS, ROOT, Process, clean_environment, read_rows

GROWTH = 1.05
CONNECTED_S = 0.1  # how long a connection lives
SETTLED = 0.2  # the first part of the run, which is not looked at


def look(process: psutil.Process) -> tuple[int, int, int]:
    """Open descriptors, threads, and resident bytes."""
    with process.oneshot():
        return process.num_fds(), process.num_threads(), process.memory_info().rss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--reconnects", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leaks-") as name:
        folder = Path(name)
        env = clean_environment(folder) | {"OFFLOAD_APP": str(APPS / "counter.py"), "COUNT": str(options.items)}
        state = ["--state-dir", str(folder / "state")]
        command = [sys.executable, str(ROOT / "cloud_server_coordinator.py"), *state]
        enrolled = Process([*command, "--enroll", "leaks"], env, folder)
        enrolled.wait()
        env["OFFLOAD_TOKEN"] = enrolled.out.split("'")[1]
        store = folder / "results.sqlite"
        server = Process([*command, "--host", "127.0.0.1", "--port", "0", "--results", f"sqlite:{store}"], env, folder)
        proxy = FaultProxy(int(server.wait_for(r"listening on .*:(\d+)")[1]))
        env |= {"HOST": "127.0.0.1", "PORT": str(proxy.port)}
        device = Process([sys.executable, str(ROOT / "iot_client_coordinator.py"), "2"], env, folder)
        sides = {"device": psutil.Process(device.pid), "cloud": psutil.Process(server.pid)}
        looks: dict[str, list[tuple[int, int, int]]] = {side: [] for side in sides}
        cuts = 0
        while device.running:
            time.sleep(CONNECTED_S)
            if cuts < options.reconnects and proxy.connections > cuts:
                try:
                    for side, process in sides.items():
                        looks[side].append(look(process))
                except psutil.NoSuchProcess:
                    break
                cuts += proxy.cut()
        device.wait()
        server.send(signal.SIGTERM)
        server.wait()
        proxy.close()
        rows = read_rows(store)
    status = 0
    expected = list(range(options.items))
    if cuts < options.reconnects:
        print(f"the items were over after {cuts} reconnects; give more --items")
        status = 1
    right = [row["sequence"] for row in rows] == expected
    status |= not right
    print(f"{options.items} items, {len(rows)} recorded, each once and in order: {right}; {cuts} reconnects")
    for side, seen in looks.items():
        settled = seen[int(len(seen) * SETTLED) :]
        first, second = settled[: len(settled) // 2], settled[len(settled) // 2 :]
        for number, what in enumerate(("descriptors", "threads", "bytes of memory")):
            before, after = max(each[number] for each in first), max(each[number] for each in second)
            grown = after > before * (GROWTH if number == 2 else 1)
            status |= grown
            print(f"{side:6} {what:16} {before:12,} then {after:12,}{'  GROWN' if grown else ''}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
