"""Shared memory of processes. In: a process. Out: the files under /dev/shm that it and its children have mapped.

Other programs on the machine make and delete such files too, so that looking at the folder alone proves nothing.
"""

from __future__ import annotations

from pathlib import Path

import psutil


def mapped_by(process: psutil.Process) -> set[Path]:
    found: set[Path] = set()
    for each in [process, *process.children(recursive=True)]:
        for line in Path(f"/proc/{each.pid}/maps").read_text().splitlines():
            path = line.partition("/dev/shm/")[2]
            if path.startswith("psm_") and not path.endswith("(deleted)"):
                found.add(Path("/dev/shm") / path)
    return found


def left_of(mapped: set[Path]) -> set[Path]:
    """Those that still exist."""
    return {path for path in mapped if path.exists()}
