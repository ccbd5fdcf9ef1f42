"""The Task Interface: what an app may export, and every way in which it is refused."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from task_offload.errors import AppError, OffloadError, SourceError
from task_offload.task import Contract, Item, current_item, load_app, publish_frame, set_current_item, task

Write = Callable[..., str]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undo_imports: None) -> Write:
    """Writes an app and gives its file."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "an_app.py") -> str:
        path = tmp_path / name
        path.write_text("def a(): return True, 1\ndef b(x): return True, x\ndef c(x): return True, x\n" + text)
        return str(path)

    return write


PINS = "from task_offload.task import task\nd = task(runs_on='device')\ne = task(runs_on='cloud')\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "exports no list named 'tasks'; add  tasks = [first_task, ..., last_task]"),
        ("tasks = 7", "exports no list named 'tasks'"),
        ("tasks = 'ab'", "exports no list named 'tasks'"),
        ("tasks = {a, b}", "exports no list named 'tasks'"),
        ("tasks = []", "'tasks' has 0 entries; a chain has 2 to 255 tasks"),
        ("tasks = [a]", "'tasks' has 1 entries"),
        ("tasks = [a] * 256", "'tasks' has 256 entries"),
        ("tasks = [a, 3, b]", "entry 2 of 'tasks' is 3; put a function there"),
        ("tasks = [a, b()]", "its import raised TypeError"),
        ("1/0", "its import raised ZeroDivisionError: division by zero at an_app.py:4"),
        ("import json\njson.loads('')", "Expecting value: line 1 column 1 (char 0) at an_app.py:5"),
        ("from task_offload import task\n@task\ndef d(): return False", "TypeError: write @task(...) with runs_on="),
        ("import sys; sys.exit(3)", "its import raised SystemExit: 3"),
        ("class Panic(BaseException): pass\nraise Panic('x')", "its import raised Panic: x"),
        ("import no_such_module_at_all", "it imports no_such_module_at_all, which is not installed; pip install"),
        ("def (", "its import raised SyntaxError"),
        ("raise ImportError('libGL.so.1: cannot open')", "pip install opencv-python-headless"),
        (PINS + "tasks = [e(a), b]", "a is pinned to the cloud, but the first task runs on the device"),
        (PINS + "tasks = [a, d(b)]", "b is pinned to the device, but the last task runs in the cloud"),
        (PINS + "tasks = [a, e(b), d(c), lambda x: x]", "c is pinned to the device, but comes after b"),
        ("from task_offload.task import task\ntask(runs_on='moon')", "runs_on is 'device' or 'cloud', not 'moon'"),
        ("from task_offload.task import task\ntask(stateful=True)", "a stateful task needs a pin"),
        ("tasks = [a, b]\npayload_types = 3", "'payload_types' must be a tuple of classes"),
        ("tasks = [a, b]\npayload_types = (a,)", "'payload_types' must be a tuple of classes"),
        ("tasks = [a, b]\nclass P: pass\npayload_types = (P, P)", "two classes in 'payload_types' have the same name"),
        ("tasks = [a, b]\nopen_source = 'cam'", "'open_source' must be a function"),
    ],
)
def test_an_app_that_breaks_the_interface_is_refused_in_one_line(app: Write, text: str, says: str) -> None:
    with pytest.raises(AppError) as refused:
        load_app(app(text))
    message = str(refused.value)
    assert says in message
    assert "\n" not in message
    assert message.startswith("app ")


def test_an_error_of_a_helper_module_has_its_place(app: Write) -> None:
    app("raise KeyError('MODEL_PATH')", "its_helper.py")
    with pytest.raises(AppError, match=r"its import raised KeyError: 'MODEL_PATH' at its_helper\.py:4$"):
        load_app(app("import its_helper\ntasks = [a, b]"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_app", "there is no module of this name"),
        ("no_such.app", "there is no module of this name"),
        ("nowhere/app.py", "there is no such file"),
        ("text/", "there is no such file"),
    ],
)
def test_an_app_that_is_not_there(undo_imports: None, name: str, says: str) -> None:
    with pytest.raises(AppError, match=says):
        load_app(name)


def test_a_file_that_is_not_python(app: Write) -> None:
    with pytest.raises(AppError, match=r"its name must end in \.py"):
        load_app(app("tasks = [a, b]", "app.txt"))


def test_a_source_that_the_import_needs(app: Write) -> None:
    """An app may say so itself, in its own words."""
    with pytest.raises(SourceError, match="plug it in"):
        load_app(app("from task_offload.errors import SourceError\nraise SourceError('plug it in')"))


def test_an_app_is_loaded_by_module_and_by_file(app: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = app("tasks = [a, b, c]\n")
    by_file = load_app(file)
    by_module = load_app("an_app")
    assert by_file.names == by_module.names == ("a", "b", "c")
    assert by_file.source_digest == by_module.source_digest
    assert by_file.splits == (1, 2)
    assert by_file.payload_types == ()
    assert by_file.open_source is None


def test_an_app_finds_the_modules_beside_it(app: Write, tmp_path: Path) -> None:
    (tmp_path / "helper_of_an_app.py").write_text("answer = 42\n")
    assert load_app(app("from helper_of_an_app import answer\ntasks = [a, b]")).names == ("a", "b")


def test_other_source_gives_another_digest(app: Write) -> None:
    first = load_app(app("tasks = [a, b]", "first_app.py")).source_digest
    second = load_app(app("# changed\ntasks = [a, b]", "second_app.py")).source_digest
    assert first != second
    assert len(first) == len(second) == 32


def test_each_source_counts_where_packages_have_files_of_the_same_name(app: Write, tmp_path: Path) -> None:
    def digest(first: str, second: str) -> bytes:
        for package, source in (("pack_a", first), ("pack_b", second)):
            (tmp_path / package).mkdir(exist_ok=True)
            (tmp_path / package / "steps.py").write_text(f"def work(*args): return {source}, 1\n")
            sys.modules.pop(f"{package}.steps", None)
        text = "import pack_a.steps, pack_b.steps\ntasks = [pack_a.steps.work, pack_b.steps.work]"
        return load_app(app(text)).source_digest

    digests = [digest("True", "True"), digest("False", "True"), digest("True", "False"), digest("False", "False")]
    assert len(set(digests)) == 4
    assert digest("True", "True") == digests[0]


def test_an_app_s_file_may_have_a_name_that_is_not_utf_8(app: Write) -> None:
    assert load_app(app("tasks = [a, b]", os.fsdecode(b"caf\xe9.py"))).names == ("a", "b")


def test_callables_of_every_kind_have_names(app: Write) -> None:
    text = """
import functools
class Last:
    def __call__(self, x): return True
    def method(self, x): return True, x
tasks = [a, functools.partial(b), Last().method, lambda x: (True, x), Last()]
"""
    assert load_app(app(text)).names == ("a", "b", "method", "<lambda>", "Last")


@pytest.mark.parametrize(
    ("pins", "splits"),
    [
        ([None, None, None, None], (1, 2, 3)),
        (["device", None, None, "cloud"], (1, 2, 3)),
        ([None, "device", None, None], (2, 3)),
        ([None, None, "cloud", None], (1, 2)),
        ([None, "device", "cloud", None], (2,)),
        ([None, "device", "device", None], (3,)),
        ([None, "cloud", "cloud", None], (1,)),
    ],
)
def test_pins_leave_the_splits_that_keep_them(app: Write, pins: list[str | None], splits: tuple[int, ...]) -> None:
    lines = "from task_offload.task import task\n"
    lines += "tasks = [" + ", ".join(f"task(runs_on={pin!r})(lambda *x: x)" for pin in pins) + "]"
    assert load_app(app(lines)).splits == splits


def test_contracts() -> None:
    @task(runs_on="cloud", stateful=True)
    def work() -> bool:
        return False

    assert work() is False
    assert functools.partial(work)() is False
    with pytest.raises(ValueError, match="not 'here'"):
        Contract("here")  # type: ignore[arg-type]


def test_the_current_item_is_only_there_inside_a_task() -> None:
    with pytest.raises(OffloadError, match="call it in the body of a task"):
        current_item()
    with pytest.raises(OffloadError, match="outside a task"):
        publish_frame(None)
    item = Item("device", "0" * 32, 7, 1.5, 2)
    set_current_item(item)
    try:
        assert current_item() is item
        frame: Any = object()
        publish_frame(frame)
        assert item.published is frame
    finally:
        set_current_item(None)
