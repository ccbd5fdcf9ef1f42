"""The questions of `docs/results.md` are asked of a real store, word by word."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from task_offload.results.recorder import Recorder
from task_offload.results.sqlite import SqliteStore
from tests.results.records import record

TEXT = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
QUESTIONS = re.findall(r"^([^\n]+):\n\n```sql\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recorder = Recorder(SqliteStore(tmp_path / "results.sqlite"), on_recorded=lambda *_: None)
    for sequence in range(120):
        recorder.add([record(sequence, result={"x": sequence, "y": 2, "radius": sequence / 10})])
    recorder.add([record(120, "filtered", "find_contours")])
    recorder.add([record(121, "dropped", "overload", items=5, split=2)])
    recorder.add([record(126, result=object())])
    recorder.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(folder: Path, title: str) -> list[Any]:
    (query,) = [query for each, query in QUESTIONS if each.startswith(title)]
    with contextlib.closing(sqlite3.connect(folder / "results.sqlite")) as connection:
        return connection.execute(query).fetchall()


def test_every_question_has_an_answer(folder: Path) -> None:
    assert len(QUESTIONS) == 8
    for title, _ in QUESTIONS:
        assert answers(folder, title), title


def test_what_the_answers_say(folder: Path) -> None:
    assert [row[1] for row in answers(folder, "What came in last")][:2] == [126, 125]
    assert answers(folder, "How did each device do") == [
        ("pi-1", "completed", 121, 500.0), ("pi-1", "dropped", 5, 500.0), ("pi-1", "filtered", 1, 500.0),
    ]  # fmt: skip
    assert [row[:3] for row in answers(folder, "What was dropped")] == [("pi-1", "overload", 5)]
    assert [fps for _, fps in answers(folder, "Throughput")] == [pytest.approx(20 / 60), 1.0, pytest.approx(42 / 60)]
    assert answers(folder, "Where the work") == [("pi-1", 2, 5), ("pi-1", 3, 122)]
    assert [row[0] for row in answers(folder, "Inside a result")] == list(range(101, 120))
    assert [row[2] for row in answers(folder, "Results that could not")] == [1]
    assert [row[2:5] for row in answers(folder, "A session's books")] == [(121, 1, '{"overload":5}')]


def test_the_python_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "docs/results.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[1] == "1 {'x': 1, 'y': 2, 'radius': 0.1}"
