"""A device and a cloud under two interpreters, with different NumPy and OpenCV, talk to each other.

OTHER_PYTHON names the other interpreter; without it, one on PATH that has the packages, in another version, serves.
Where there is none, the golden bytes of tests/wire are what proves the format.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support.processes import APPS, ROOT, Device, Lab, Server, check_order

_ASK = "import cv2, numpy, psutil, cryptography; print(numpy.__version__)"


def _other_interpreter() -> str | None:
    for name in filter(None, [os.environ.get("OTHER_PYTHON"), *(f"python3.{minor}" for minor in range(10, 14))]):
        path = shutil.which(name)
        if path is None:
            continue
        found = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() != np.__version__:
            return path
    return None


@pytest.fixture(scope="module")
def other() -> str:
    found = _other_interpreter()
    if found is None:
        pytest.skip("no other interpreter with OpenCV, psutil, cryptography and another NumPy (OTHER_PYTHON names one)")
    return found


def _run(lab: Lab, cloud_python: str, device_python: str, split: int) -> list[object]:
    """One run of the typed app. Returns the results in order."""
    store = lab.folder / f"results-{split}-{len(list(lab.folder.glob('*.sqlite')))}.sqlite"
    common = ["--app", str(APPS / "typed.py")]
    server = Server(
        [cloud_python, str(ROOT / "cloud_server_coordinator.py"), *common, "--host", "127.0.0.1", "--port", "0",
         "--state-dir", str(lab.folder / "state"), "--results", f"sqlite:{store}"],
        lab.env, lab.folder,
    )  # fmt: skip
    server.store = store
    try:
        port = server.wait_for(r"listening on \S+:(\d+)")[1]
        device = Device(
            [device_python, str(ROOT / "iot_client_coordinator.py"), str(split), *common],
            {**lab.env, "HOST": "127.0.0.1", "PORT": port}, lab.folder,
        )  # fmt: skip
        device.wait(0)
    finally:
        server.kill()
    rows = server.rows()
    check_order(rows)
    assert {row["ending"] for row in rows} == {"completed"}
    return [row["result"] for row in rows]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_both_directions_give_the_same_results(lab: Lab, other: str, split: int) -> None:
    there = _run(lab, cloud_python=sys.executable, device_python=other, split=split)
    back = _run(lab, cloud_python=other, device_python=sys.executable, split=split)
    assert len(there) == 12
    assert there == back
