"""`--demo`: both sides on one machine, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from task_offload.spool import DiskSpool
from tests.support.processes import PATIENCE_S, ROOT, Lab, Process


@pytest.fixture
def demo_lab(lab: Lab) -> Lab:
    """Its temporary folders are in a place of their own."""
    (lab.folder / "tmp").mkdir()
    lab.env["TMPDIR"] = str(lab.folder / "tmp")
    return lab


def server_of(process: Process) -> psutil.Process:
    [server] = psutil.Process(process.pid).children()
    return server


def left_behind(lab: Lab) -> list[Path]:
    return list((lab.folder / "tmp").iterdir())


@pytest.mark.parametrize("options", [[], ["--no-tls"]])
def test_it_runs_both_sides_and_leaves_nothing(demo_lab: Lab, options: list[str]) -> None:
    demo = demo_lab.device("ball_tracking_example.taskified", "--demo", "--items", "40", *options)
    report = demo.finish(0)
    assert report["mode"] == "auto"
    assert report["items"]["completed"] == 40
    assert report["emulated"] == {"cpu": 10.0, "link_bytes_per_s": 12_500_000.0, "link_delay_s": 0.005}
    said = re.search(r"which manages (\d+) FPS at split 6; .* ([\d.]+) FPS wanted", demo.out)
    assert said is not None
    assert report["target_fps"] == float(said[2]) > float(said[1])
    assert left_behind(demo_lab) == []


def test_a_live_source_that_ends_while_it_is_measured_begins_anew(demo_lab: Lab) -> None:
    demo = demo_lab.device("counter", "--demo", env={"COUNT": "7"})
    assert demo.finish(0)["items"]["captured"] > 0
    demo = demo_lab.device(str(ROOT / "task_interface_example.py"), "--demo")
    report = demo.finish(0)
    assert 0 < report["items"]["captured"] < 40, "some were measured, and do not come again"
    assert report["target_fps"] <= 20, "the sensor gives no more"


def test_ctrl_c_ends_both_in_good_order(demo_lab: Lab) -> None:
    demo = demo_lab.device("counter", "--demo", env={"LOUD": "1"})
    demo.wait_for("report device 20")
    server = server_of(demo)
    demo.send(signal.SIGINT)
    report = demo.finish(0)
    assert report["items"]["dropped"] == {}
    assert not server.is_running()
    assert left_behind(demo_lab) == []


def test_a_second_ctrl_c_while_the_server_starts_leaves_none_behind(demo_lab: Lab) -> None:
    (demo_lab.folder / "app.py").write_text(
        "import os, sys, time\n\n"
        "if sys.argv[0].endswith('demo.py'):\n"
        "    os.write(1, b'starting\\n')\n"
        "    os.read(0, 1)\n"
        "    os.write(1, b'to end\\n')\n"
        "    time.sleep(1000)\n\n\n"
        "def first():\n    return True, 1\n\n\ndef last(number):\n    return True, number\n\n\ntasks = [first, last]\n"
    )
    demo = demo_lab.device("app.py", "--demo")
    demo.wait_for("starting")
    server = server_of(demo)
    demo.send(signal.SIGINT)
    demo.wait_for("to end")
    demo.send(signal.SIGINT)
    demo.wait(0)
    assert not server.is_running()
    assert demo.err == "stopped before it began"


def test_the_server_ends_where_the_device_is_killed(demo_lab: Lab) -> None:
    demo = demo_lab.device("counter", "--demo", env={"LOUD": "1"})
    demo.wait_for("report device 3")
    server = server_of(demo)
    demo.popen.kill()
    psutil.wait_procs([server], PATIENCE_S)
    assert not server.is_running()
    assert left_behind(demo_lab) == []


def test_a_server_that_dies_is_waited_for_and_what_is_lost_is_counted(demo_lab: Lab) -> None:
    demo = demo_lab.device("counter", "--demo", "--drain", "0", env={"LOUD": "1"})
    demo.wait_for("report device 3")
    server_of(demo).kill()
    demo.wait_for("trying again until there is one")
    demo.send(signal.SIGINT)
    report = demo.finish(0)
    assert sum(report["items"]["dropped"].values()) > 0
    assert json.dumps(report, allow_nan=False)


def test_what_is_for_the_real_server_stays_for_it(demo_lab: Lab) -> None:
    """A token and a spool in the environment are not the demo's: its server forgets all that it is given."""
    folder = demo_lab.folder / "spool"
    spooling = {"OFFLOAD_SPOOL": str(folder), "OFFLOAD_TOKEN": demo_lab.enroll("device"), "COUNT": "50"}
    left = demo_lab.device("counter", "4", "--drain", "0", port=1, env=spooling).finish()["items"]["left"]
    assert left["spooled"] > 0
    demo = demo_lab.device("counter", "--demo", env=spooling).finish(0)
    assert demo["items"]["completed"] > 0
    assert demo["items"]["delivered_earlier"] == 0
    with DiskSpool(folder, 1 << 30) as spool:
        assert sum(each.items for each in spool.sessions()) == left["spooled"]


def test_a_camera_is_opened_once(demo_lab: Lab) -> None:
    demo = demo_lab.device("source", "--demo", "--source", "slow")
    demo.finish(0)
    assert demo.out.count("opening") == 1, demo.out


def test_a_server_whose_demo_was_stopped_while_it_started_ends_without_a_word(demo_lab: Lab) -> None:
    reader, told = os.pipe()
    os.close(reader)
    server = subprocess.run(
        [sys.executable, "-m", "task_offload.demo", demo_lab.app("counter"), str(told), "no-tls"],
        stdin=subprocess.DEVNULL, pass_fds=[told], env=demo_lab.env, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    os.close(told)
    assert server.returncode == 0, server.stderr
    assert re.fullmatch(r"listening on .*\n", server.stderr)
