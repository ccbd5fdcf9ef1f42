"""JSON lines: whole lines only, whatever happens to the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from task_offload.errors import StoreError
from task_offload.results.jsonl import JsonlSink, json_line
from tests.results.records import SESSION, row


def lines(path: Path) -> list[int]:
    return [json.loads(line)["sequence"] for line in path.read_text().splitlines()]


def test_a_line_has_the_columns_of_the_table_and_the_result_itself() -> None:
    line = json_line(row(3, result='{"x":1.5}', detail='a "quote"\nand a line end'))
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "device": "pi-1", "session": SESSION, "sequence": 3, "split": 3, "ending": "completed",
        "detail": 'a "quote"\nand a line end', "captured_at": 1_000_003.0, "finished_at": 1_000_003.5,
        "result": {"x": 1.5},
    }  # fmt: skip
    assert json.loads(json_line(row(0)))["result"] is None


def test_rows_are_appended_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for begin in (0, 2):
        sink = JsonlSink(path)
        sink.write([row(begin), row(begin + 1)])
        sink.close()
    assert lines(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("kept", range(1, len(json_line(row(1)))))
def test_a_torn_last_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json_line(row(0)) + json_line(row(1))[:kept])
    sink = JsonlSink(path)
    sink.write([row(2)])
    sink.close()
    assert lines(path) == [0, 2]


def test_a_last_line_of_somebody_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("a comment")
    sink = JsonlSink(path)
    sink.write([row(0)])
    sink.close()
    assert path.read_text() == "a comment\n" + json_line(row(0))


def test_a_pipe_gets_its_lines() -> None:
    """The way that /dev/stdout goes where stdout is a pipe."""
    reader, writer = os.pipe()
    try:
        sink = JsonlSink(Path(f"/dev/fd/{writer}"))
        sink.write([row(0)])
        sink.write([row(1)])
        sink.close()
        assert os.read(reader, 10_000).decode() == json_line(row(0)) + json_line(row(1))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_pipe_whose_reader_goes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(StoreError, match="No such device or address; name a file that you can write"):
        JsonlSink(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonlSink(path)
    os.close(reader)
    with pytest.raises(StoreError, match="Broken pipe"):
        sink.write([row(0)])
    sink.close()


def test_a_file_that_was_moved_away_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonlSink(path)
    sink.write([row(0)])
    path.rename(tmp_path / "results.1.jsonl")
    sink.write([row(1)])
    sink.close()
    assert lines(tmp_path / "results.1.jsonl") == [0]
    assert lines(path) == [1]


def test_a_folder_that_goes_away_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    sink = JsonlSink(folder / "results.jsonl")
    (folder / "results.jsonl").unlink()
    folder.rmdir()
    with pytest.raises(StoreError, match="No such file or directory"):
        sink.write([row(0)])
    folder.mkdir()
    sink.write([row(1)])
    sink.close()
    assert lines(folder / "results.jsonl") == [1]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "results.jsonl"
    sink = JsonlSink(path)
    sink.write([row(0)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            sink.write([row(1), row(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lines(path) == [0]
    sink.write([row(3)])
    sink.close()
    assert lines(path) == [0, 3]
