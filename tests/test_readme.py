"""The README and the guides: links lead somewhere, code runs, tables and figures say what the code says."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from task_offload.config import parse_cloud, parse_device
from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, load_app
from task_offload.wire.codec import Decoder, Encoder
from tests.support.processes import ROOT, Lab

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

README = ROOT / "README.md"
APPS_PAGE = ROOT / "docs" / "apps.md"
SECURITY_PAGE = ROOT / "docs" / "security.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"python3 (?:iot_client_coordinator|cloud_server_coordinator)\.py[^`#\n]*")


def page(path: Path) -> Any:
    return pytest.param(path, id=str(path.relative_to(ROOT)))


def blocks(path: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks in this language."""
    found = _FENCE.findall(path.read_text(encoding="utf-8"))
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, name, text in found if name == language]


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def headings(path: Path, level: int | None = None) -> list[str]:
    return [
        text
        for marks, text in re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)
        if level is None or len(marks) == level
    ]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- form -----------------------------------------------------------------------------------------------------


def test_the_readme_has_the_sections_of_standard_readme_in_their_order() -> None:
    sections = headings(README, 2)
    required = ["Table of Contents", "Background", "Install", "Usage", "API", "Maintainers", "Contributing", "License"]
    assert [each for each in sections if each in required] == required
    own = sections[sections.index("Usage") + 1 : sections.index("API")]
    assert set(sections) == {*required, *own}, "sections of our own stand between Usage and API"
    for name, within in (("Code Structure", "Background"), ("Prerequisites", "Install"), ("CLI", "Usage")):
        every = headings(README)
        following = next(each for each in sections[sections.index(within) + 1 :])
        assert every.index(within) < every.index(name) < every.index(following), f"{name} belongs to {within}"


def test_the_readme_begins_as_standard_readme_says() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line]
    assert lines[0] == "# Peer-to-Peer Task Offload Framework _(task-offload)_"
    assert lines[1].startswith("![")
    assert "standard-readme" in lines[2]
    assert lines[3].startswith("> ")
    assert len(lines[3]) < 120
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'description = "{lines[3][2:]}"' in project


def test_the_table_of_contents_has_every_section() -> None:
    text = README.read_text(encoding="utf-8")
    table = text.partition("## Table of Contents\n")[2].partition("\n## ")[0]
    every = headings(README)
    expected = every[every.index("Table of Contents") + 1 :]
    assert re.findall(r"- \[(.+)\]\(#", table) == expected


@pytest.mark.parametrize("path", [page(each) for each in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    targets = [each for each in _LINK.findall(prose(path)) if not re.match(r"https?://|mailto:", each)]
    for target in targets:
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target} does not exist"
        if fragment:
            assert fragment in [anchor(each) for each in headings(file)], f"{target}: no such heading"


def test_the_code_structure_names_what_is_there() -> None:
    map_of_code = prose(README).partition("### Code Structure\n")[2].partition("\n## ")[0]
    folder = ROOT
    named: dict[Path, set[str]] = {ROOT: set()}
    for indent, text in re.findall(r"^    ( *)(\S.*)$", map_of_code, re.MULTILINE):
        base = folder if indent else ROOT
        for name in text.partition("  ")[0].split():
            assert (base / name).exists(), f"{base / name} does not exist"
            named.setdefault(base, set()).add(name)
            if not indent:
                folder = ROOT / name
    for base, names in named.items():
        modules = {path.name for path in base.glob("[!_]*.py")}
        packages = {f"{path.parent.name}/" for path in base.glob("*/__init__.py")}
        assert modules | packages <= names, f"{base} has more"
    assert len(named) == 2


# --- what the code says ---------------------------------------------------------------------------------------


def test_the_option_tables_equal_the_help() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "option_tables.py"))
    text = README.read_text(encoding="utf-8")
    assert tables["with_tables"](text) == text, "run  python3 docs/option_tables.py"
    assert tables["table"](parse_device).count("\n| `--") > 15
    assert tables["table"](parse_cloud).count("\n| `--") > 10


def _commands() -> list[Any]:
    found = []
    for path in PAGES:
        for command in _COMMAND.findall(path.read_text(encoding="utf-8")):
            found.append(pytest.param(command.strip(), id=f"{path.relative_to(ROOT)}: {command.strip()[8:]}"))
    return found


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_one_that_the_scripts_take(command: str) -> None:
    _, script, *argv = shlex.split(command)
    parse: Any = parse_device if script.startswith("iot") else parse_cloud
    assert parse(argv, {"HOST": "203.0.113.7"})


@pytest.mark.skipif(tomllib is None, reason="reads pyproject.toml with tomllib, which is in Python 3.11")
def test_the_extras_and_files_to_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = README.read_text(encoding="utf-8")
    named = set(",".join(re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", text)).split(","))
    assert named
    assert named <= set(extras)
    for file in re.findall(r"pip install -r (\S+)", text):
        assert (ROOT / file).exists()


_UNITS = {"s": 1.0, "h": 3600.0, "KiB": 1024.0, "MiB": 1024.0**2}
_LIMIT_MODULES = (
    "task_offload.transport.listener",
    "task_offload.wire.framing",
    "task_offload.wire.payload_limits",
    "task_offload.reception",
    "task_offload.results.base",
)


def _default(name: str) -> float:
    first, _, attribute = name.partition(".")
    for module in map(importlib.import_module, _LIMIT_MODULES):
        if hasattr(module, first):
            value = getattr(module, first)
            if attribute:
                value = getattr(value() if isinstance(value, type) else value, attribute)
            return float(value)
    raise AssertionError(f"there is no {name}")


_LIMITS = re.findall(r"^\| (.+) \| ([\d,.]+) ?(\w*) \| `([\w.]+)` \|$", SECURITY_PAGE.read_text("utf-8"), re.MULTILINE)


def test_there_is_a_table_of_limits() -> None:
    assert len(_LIMITS) >= 15


@pytest.mark.parametrize(("number", "unit", "name"), [pytest.param(*each[1:], id=each[3]) for each in _LIMITS])
def test_limits_are_those_of_the_code(number: str, unit: str, name: str) -> None:
    stated = float(number.replace(",", "")) * _UNITS.get(unit, 1.0)
    assert stated == pytest.approx(_default(name), rel=0.01)


def test_payload_sizes_are_as_measured() -> None:
    """Other releases of OpenCV decode and encode a little differently."""
    text = APPS_PAGE.read_text(encoding="utf-8").partition("<!-- payload sizes -->")[2]
    rows = re.findall(r"^\| \d+ \| `(\w+)` \|(.+)\|$", text, re.MULTILINE)
    stated = {task: [float(cell.replace(",", "")) for cell in cells.split("|")] for task, cells in rows}
    measured = runpy.run_path(str(ROOT / "docs" / "payload_sizes.py"))["measure"]()
    assert list(stated) == list(measured)[: len(stated)]
    assert len(stated) == 6
    for task, sizes in stated.items():
        assert sizes == pytest.approx(measured[task], rel=0.15, abs=30), task
    for figure in ("421,589", "24,762"):
        assert figure in README.read_text(encoding="utf-8")
        assert figure in text


# --- code that runs -------------------------------------------------------------------------------------------


def _named_blocks(path: Path) -> dict[str, str]:
    """Python blocks by the file name in their first line."""
    found = {}
    for block in blocks(path, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, f"a block of {path.name} does not begin with its file's name: {block[:60]!r}"
        found[name[1]] = block
    return found


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's modules, forgotten after the test."""
    for name, text in _named_blocks(APPS_PAGE).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def _run(app: str, split: int | None) -> list[tuple[Kind, Any]]:
    """How each item of an app ends, with its arguments on the wire after `split` tasks."""
    chain = load_app(app)
    if chain.open_source is not None:
        chain.open_source(None)
    runner, device, cloud = Runner(chain), States(), States()
    encoder, decoder = Encoder(chain.payload_types), Decoder(chain.payload_types)
    tasks = len(chain.tasks)
    ends = []
    for sequence in range(100):
        item = Item("pi", "0" * 32, sequence, 0.0, split or tasks)
        outcome = runner.run(item, device, (), 0, split or tasks)
        if outcome.kind is Kind.FILTERED and outcome.task == 0:
            return ends
        if outcome.kind is Kind.CONTINUED:
            payload = encoder.encode(outcome.value)
            body = b"".join(bytes(each) + bytes(-len(each) % 64) for each in payload.buffers)
            args = decoder.decode(payload.head, memoryview(bytearray(body)))
            outcome = runner.run(item, cloud, args, split or tasks, tasks)
        assert outcome.kind is not Kind.FAILED, outcome.value
        ends.append((outcome.kind, outcome.value))
    raise AssertionError("the stream does not end")


@pytest.mark.parametrize(("app", "splits", "results"), [("soil.py", (1, 2), 2), ("door.py", (1, 2), 5)])
def test_the_guides_apps_end_alike_at_every_split(
    app: str, splits: tuple[int, ...], results: int, written: Path
) -> None:
    path = str(written / app)
    assert load_app(path).splits == splits
    local = _run(path, None)
    assert len([kind for kind, value in local if kind is Kind.COMPLETED and value]) == results
    for split in splits:
        assert _run(path, split) == local


def test_the_guides_test_passes(written: Path) -> None:
    runpy.run_path(str(written / "test_soil.py"))


def test_the_guides_app_prints_what_the_guide_says(written: Path, lab: Lab) -> None:
    console = next(each for each in blocks(APPS_PAGE, "console") if "soil.py" in each)
    command, *expected = console.splitlines()
    argv = shlex.split(command.removeprefix("$ python3 "))
    process = lab.python(str(ROOT / argv[0]), "--app", str(written / "soil.py"))
    process.wait(0)
    printed = process.out.splitlines()
    assert len(printed) == len(expected)
    assert printed[1:-1] == expected[1:-1]
    assert printed[-1].partition(";")[0] == expected[-1].partition(";")[0]


def test_the_readmes_app_runs(lab: Lab) -> None:
    plain, more = blocks(README, "python")
    app = lab.folder / "heat.py"
    for text in (plain, plain.replace("20.5", "30.5") + more):
        app.write_text(text, encoding="utf-8")
        items = lab.device(str(app), "--items", "3").finish()["items"]
        assert (items["filtered"], items["completed"]) == ((3, 0) if text is plain else (0, 3))


def _shell_lines(path: Path) -> list[str]:
    return [line for block in blocks(path, "sh") for line in block.splitlines() if line]


def _device_commands() -> list[str]:
    """The README's commands for a device, but for the Raspberry Pi's camera, which is not here."""
    commands = [line.rpartition("&& ")[2] for line in _shell_lines(README)]
    return [each for each in commands if each.startswith("python3 iot_client") and "picamera2" not in each]


def test_there_are_device_commands() -> None:
    assert len(_device_commands()) >= 8


@pytest.mark.parametrize("command", sorted(set(_device_commands())))
def test_the_readmes_device_commands_run(command: str, lab: Lab) -> None:
    """Each as it stands but for the number of items and the server's port."""
    argv = shlex.split(command)[2:]
    config = parse_device(argv, {"HOST": "localhost"})
    few = ["--duration", "2"] if config.demo else ["--items", "6"]
    port = lab.server(_where(config.app)).port if config.split is not None else None
    device = lab.device(_where(config.app), *map(_where, argv), *few, port=port)
    device.wait(0)
    report = device.report()
    assert report["splits"] if config.profile else report["items"]["captured"] > 0


def _where(app: str) -> str:
    """An app's file from wherever the test runs."""
    return str(ROOT / app) if app.endswith(".py") else app


def test_the_readmes_server_commands_run(lab: Lab) -> None:
    server_lines = [line for line in _shell_lines(README) if line.startswith("python3 cloud_server")]
    listening = enrolled = 0
    for line in server_lines:
        argv = [_where(each) for each in shlex.split(line)[2:]]
        state = ["--state-dir", str(lab.folder / "state")]
        if "--enroll" in argv:
            process = lab.python(str(ROOT / "cloud_server_coordinator.py"), *argv, *state)
            process.wait(0)
            assert re.fullmatch(r"export OFFLOAD_TOKEN='offload1_[\w-]+'", process.out)
            enrolled += 1
        else:
            lab.server("ball_tracking_example.taskified", *argv).stop()
            listening += 1
    assert enrolled == 1
    assert listening >= 3


def test_the_readmes_query_of_the_results_runs(lab: Lab) -> None:
    server = lab.server("ball_tracking_example.taskified")
    lab.device("ball_tracking_example.taskified", "6", "--items", "12", port=server.port, name="garden").finish()
    server.stop()
    (query,) = [line for line in _shell_lines(README) if "SELECT" in line]
    as_users_have_it = {"PYTHONWARNINGS": "default::UserWarning"}  # Python 3.13 minds a connection that is not closed
    process = lab.python(*shlex.split(query)[1:], env=as_users_have_it)
    process.wait(0)
    assert process.out == "('garden', 'completed', 12)"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    for command in ("pip install -e '.[dev]'", "python3 -m pytest", "ruff check", "ruff format --check", "mypy"):
        assert command in text
        assert command.replace("pip install", "pip install --quiet --disable-pip-version-check") in script or (
            command in script
        )
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_tests_that_are_named_exist() -> None:
    """The page of attacks says which test shows that each fails."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8")))
    assert len(named) > 40
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= there, named - there
