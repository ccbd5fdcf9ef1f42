"""How much memory there is, in groups with limits and without."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from task_offload.observe.memory_limit import memory_limit_bytes

MACHINE = psutil.virtual_memory().total


def found(folder: Path, own: str, limits: dict[str, str]) -> int:
    (folder / "own").write_text(own)
    for name, limit in limits.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(limit)
    return memory_limit_bytes(folder / "own", folder)


@pytest.mark.parametrize(
    ("own", "limits", "limit_bytes"),
    [
        ("0::/system.slice/cloud.service\n", {"system.slice/cloud.service/memory.max": "1000000\n"}, 1_000_000),
        (
            "0::/a/b\n",
            {"a/b/memory.max": "max\n", "a/memory.max": "2000000\n", "memory.max": "9000000\n"},
            2_000_000,
        ),
        ("0::/\n", {"memory.max": "3000000\n"}, 3_000_000),
        (
            "5:cpu,memory:/docker/1f\n4:cpuset:/docker/1f\n",
            {"memory/memory.limit_in_bytes": "4000000\n", "cpuset/memory.limit_in_bytes": "1\n"},
            4_000_000,
        ),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ("0::/../../b\n", {}, MACHINE),
        ("0::/a\n", {"a/memory.max": "\n"}, MACHINE),
        ("what is this", {}, MACHINE),
    ],
    ids=["v2", "v2 around it", "v2 container", "v1 container", "v1 without", "outside", "empty", "other"],
)
def test_the_least_limit_holds(own: str, limits: dict[str, str], limit_bytes: int, tmp_path: Path) -> None:
    assert found(tmp_path, own, limits) == limit_bytes


def test_a_system_without_groups_has_the_machines_memory(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path / "own", tmp_path) == MACHINE
