"""What is installed: requirements.txt and pyproject.toml agree, and the wheel has what the apps need."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Lab

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml with tomllib, which is in Python 3.11")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_requirements_are_the_devices_set_and_the_clouds() -> None:
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.splitlines()]
    assert [line for line in lines if line] == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cloud"]]


def test_every_requirement_has_its_reason() -> None:
    for line in REQUIREMENTS.splitlines():
        assert not line or re.search(r"# \S+ ?\w+", line), line


def test_dev_has_what_the_tests_of_every_part_need() -> None:
    own = next(each for each in PROJECT["optional-dependencies"]["dev"] if each.startswith("task-offload["))
    assert set(re.findall(r"\w+", own.partition("[")[2])) == set(PROJECT["optional-dependencies"]) - {"dev"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel of this source."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("setuptools here is older than what pyproject.toml asks for; pip install -e '.[dev]'")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("this is not a git repository")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", "from setuptools import build_meta as b, sys; b.build_wheel(sys.argv[1])"]
    subprocess.run([*command, str(built)], cwd=source, check=True, capture_output=True)
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_the_wheel_has_every_module_and_the_examples_data(wheel: list[str]) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("task_offload", "ball_tracking_example", "traffic_example", "fleet_example")
        for suffix in ("*.py", "*.mp4", "*.csv", "py.typed")
        for path in (ROOT / folder).rglob(suffix)
    }
    expected |= {f"{name}.py" for name in PROJECT["scripts"]} | {"task_interface_example.py"}
    assert expected - set(wheel) == set()


def test_the_wheel_has_nothing_that_is_not_the_packages(wheel: list[str]) -> None:
    foreign = [name for name in wheel if name.startswith(("tests/", "docs/", "benchmarks/", "deploy/"))]
    assert foreign == []


def test_the_commands_are_the_scripts(wheel: list[str]) -> None:
    assert set(PROJECT["scripts"]) == {"iot_client_coordinator", "cloud_server_coordinator"}
    for name, target in PROJECT["scripts"].items():
        assert target == f"{name}:main"
        assert Path(ROOT / f"{name}.py").exists()


@pytest.mark.parametrize("script", ["iot_client_coordinator", "cloud_server_coordinator"])
def test_a_missing_system_library_of_opencv_is_one_line_with_two_ways_out(script: str, lab: Lab) -> None:
    broken = lab.folder / "cv2"
    broken.mkdir()
    why = "libGL.so.1: cannot open shared object file: No such file or directory"
    (broken / "__init__.py").write_text(f"raise ImportError({why!r})\n", encoding="utf-8")
    first = {"PYTHONPATH": f"{lab.folder}:{ROOT}"}
    process = lab.python(str(ROOT / f"{script}.py"), env=first)
    process.wait(2)
    (line,) = process.err.splitlines()
    for part in ("libGL.so.1", "sudo apt install libgl1", "pip install opencv-python-headless"):
        assert part in line
