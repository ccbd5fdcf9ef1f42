"""How much memory this process may have: the machine's, or less where a container or a systemd unit has a limit.

Linux says the latter in a folder of each control group, and the limits of the groups around it hold too.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
"""

from __future__ import annotations

from pathlib import Path

import psutil

OWN_GROUPS = Path("/proc/self/cgroup")
ALL_GROUPS = Path("/sys/fs/cgroup")


def memory_limit_bytes(own_groups: Path = OWN_GROUPS, all_groups: Path = ALL_GROUPS) -> int:
    """The least of the limits that hold now. Where the system tells of none, the machine's memory."""
    limits = [psutil.virtual_memory().total]
    try:
        lines = own_groups.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            tree, name = all_groups, "memory.max"
        elif "memory" in controllers.split(","):
            tree, name = all_groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container may see its own group at the top, and its path from outside.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            limits += _limit(tree.joinpath(*parts[:depth], name))
    return min(limits)


def _limit(file: Path) -> list[int]:
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):  # there is no such group here, or "max"
        return []
