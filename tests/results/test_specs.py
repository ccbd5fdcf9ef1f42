"""`--results`: every place that can be named, and one clear line for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from task_offload.errors import ConfigError, StoreError
from task_offload.results.jsonl import JsonlSink
from task_offload.results.specs import check_results, open_results
from task_offload.results.sqlite import SqliteStore


def test_each_place_is_opened(tmp_path: Path) -> None:
    results = open_results([f"sqlite:{tmp_path}/a.sqlite", f"jsonl:{tmp_path}/a.jsonl", f"jsonl:{tmp_path}/b.jsonl"], 3)
    assert isinstance(results.store, SqliteStore)
    assert [type(sink) for sink in results.sinks] == [JsonlSink, JsonlSink]
    results.store.close()
    for sink in results.sinks:
        sink.close()


def test_none_is_nowhere() -> None:
    results = open_results(["none"])
    assert results.store is None
    assert results.sinks == ()


@pytest.mark.parametrize(
    ("specs", "keep_days", "reason"),
    [
        (["postgres:x"], None, "--results postgres:x: give sqlite:FILE"),
        (["sqlite"], None, "--results sqlite: give"),
        (["jsonl:"], None, "--results jsonl:: give"),
        (["none:"], None, "--results none:: give"),
        ([""], None, "--results : give"),
        (["none", "jsonl:a"], None, "stands alone"),
        (["sqlite:a", "sqlite:b"], None, "only one SQLite file"),
        (["sqlite:a"], 0, "a number of days above 0"),
        (["sqlite:a"], float("nan"), "a number of days above 0"),
        (["jsonl:a"], 3, "there is none"),
    ],
)
def test_anything_else_is_one_clear_line(specs: list[str], keep_days: float | None, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_results(specs, keep_days)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_place_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        open_results([f"sqlite:{tmp_path}/a.sqlite", f"jsonl:{tmp_path}/nowhere/a.jsonl"])
    results = open_results([f"sqlite:{tmp_path}/a.sqlite"])
    assert results.store is not None
    results.store.close()
