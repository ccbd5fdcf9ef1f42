"""The systemd units and the page that explains them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from task_offload.config import parse_cloud, parse_device

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
EXPOSURE_LIMIT = 20  # in tenths of systemd's points: 2.0 is its "OK", an unhardened service has 9.6


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def systemd_analyze() -> str:
    path = shutil.which("systemd-analyze")
    if path is None:
        pytest.skip("systemd-analyze is not installed")
    return path


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with a program that exists on every machine in place of the one under /opt."""
    for unit in UNITS:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    return sorted(tmp_path.iterdir())


def test_there_is_a_unit_for_each_side() -> None:
    assert [unit.name for unit in UNITS] == ["task-offload-cloud.service", "task-offload-device.service"]


def test_systemd_finds_nothing_wrong(systemd_analyze: str, installed: list[Path]) -> None:
    for unit in installed:
        done = subprocess.run([systemd_analyze, "verify", str(unit)], capture_output=True, text=True, timeout=30)
        about_us = [line for line in done.stderr.splitlines() if "task-offload" in line]
        assert about_us == []
        assert done.returncode == 0, done.stderr


def test_the_units_have_few_rights(systemd_analyze: str, installed: list[Path]) -> None:
    for unit in installed:
        done = subprocess.run(
            [systemd_analyze, "security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", "--no-pager", str(unit)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        if "unrecognized option" in done.stderr or "Unknown" in done.stderr:
            pytest.skip("this systemd-analyze is too old for --offline")
        assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_hang_or_an_end_is_mended_and_state_survives(unit: Path) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert int(found["WatchdogSec"][0]) >= 30
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert found["StateDirectory"] == [unit.stem]
    assert found["StateDirectoryMode"] == ["0700"]
    assert found["WantedBy"] == ["multi-user.target"]


def test_the_page_names_variables_that_the_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DEPLOY / "README.md").read_text() + "".join(unit.read_text() for unit in UNITS)
    for parse in (parse_cloud, parse_device):
        with pytest.raises(SystemExit):
            parse(["--help"], {})
    known = set(re.findall(r"\$(\w+)", capsys.readouterr().out)) | {"OFFLOAD_TOKEN", "OFFLOAD_TOKEN_FILE"}
    named = set(re.findall(r"\b(OFFLOAD_[A-Z_]+)=", page))
    assert named
    assert named <= known


def test_the_page_names_the_files_of_the_units() -> None:
    page = (DEPLOY / "README.md").read_text()
    for unit in UNITS:
        found = settings(unit)
        assert unit.name in page
        assert f"/var/lib/{found['StateDirectory'][0]}" in page
        assert found["EnvironmentFile"][0].lstrip("-") in page
