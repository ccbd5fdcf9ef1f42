import inspect
from pathlib import Path

import pytest

from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, load_app

FILE = Path(__file__).parent.parent / "task_interface_example.py"


def run(app: str, split: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Kind, object]]:
    """Every item's end, with the first `split` tasks under one dict of states and the rest under another."""
    chain = load_app(app)
    monkeypatch.setattr(inspect.getmodule(chain.tasks[0].function), "PACE_S", 0.0001)
    assert chain.open_source is not None
    chain.open_source(None)
    runner, device, cloud = Runner(chain), States(), States()
    ends = []
    for sequence in range(1000):
        item = Item("pi", "0" * 32, sequence, 0.0, split)
        outcome = runner.run(item, device, (), 0, split)
        if outcome.kind is Kind.FILTERED and outcome.task == 0:
            return ends
        if outcome.kind is Kind.CONTINUED:
            outcome = runner.run(item, cloud, outcome.value, split, len(chain.tasks))
        assert outcome.kind is not Kind.FAILED, outcome.value
        ends.append((outcome.kind, outcome.value))
    raise AssertionError("the stream does not end")


@pytest.mark.parametrize("app", ["task_interface_example", str(FILE)])
def test_it_loads_by_module_and_by_file(app: str) -> None:
    chain = load_app(app)
    assert chain.names == ("read_thermometer", "to_celsius", "only_if_warm", "compare_with_average", "report")
    assert chain.splits == (1, 2, 3), "the task with state is pinned to the cloud"


def test_every_split_ends_every_item_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    local = run("task_interface_example", 5, monkeypatch)
    for split in (1, 2, 3):
        assert run("task_interface_example", split, monkeypatch) == local


def test_it_shows_each_way_an_item_can_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    ends = run("task_interface_example", 2, monkeypatch)
    assert len(ends) == 40
    filtered = [end for end in ends if end[0] is Kind.FILTERED]
    silent = [end for end in ends if end == (Kind.COMPLETED, None)]
    reported = [value for kind, value in ends if value is not None]
    assert filtered
    assert silent, "the last task's bare False"
    assert reported[0] == {"reading": 1, "celsius": 18.18}
    assert len(capsys.readouterr().out.splitlines()) == len(reported)
