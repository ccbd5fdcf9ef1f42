"""Run reports are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from task_offload.errors import StoreError
from task_offload.observe.load import LoadMeter
from task_offload.observe.report import load_report, write_report
from task_offload.wire.messages import Load


def test_a_report_is_json(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    write_report(file, {"schema": 1, "é": [1, None]})
    assert json.loads(file.read_text()) == {"schema": 1, "é": [1, None]}
    assert list(tmp_path.iterdir()) == [file]


def test_a_report_that_is_none_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_report(file, {"fps": math.nan})
    assert file.read_text() == "old"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    (tmp_path / "report.json").write_text("a longer report of an earlier run")
    link.symlink_to("report.json")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in (pipe, link):
        write_report(target, {"schema": 1})
    assert json.loads(os.read(reader, 1000)) == {"schema": 1}
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert json.loads(link.read_text()) == {"schema": 1}


def test_a_report_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written: No such file or directory; give another file"):
        write_report(tmp_path / "nowhere" / "report.json", {})


def test_a_load_without_a_sensor() -> None:
    report = load_report(Load(0.12345, 0.5, 0.25, math.nan, 1000))
    assert report == {
        "process_cpu": 0.123, "machine_cpu": 0.5, "memory": 0.25, "temperature_c": None, "resident_bytes": 1000,
    }  # fmt: skip
    assert load_report(Load(0, 0, 0, 61.23, 0))["temperature_c"] == 61.2


def test_this_machine_has_a_load() -> None:
    load = LoadMeter().measure()
    assert 0 <= load.machine_cpu <= 1
    assert 0 < load.memory <= 1
    assert load.resident_bytes > 1_000_000
    assert math.isnan(load.temperature_c) or -50 < load.temperature_c < 200
    json.dumps(load_report(load), allow_nan=False)
