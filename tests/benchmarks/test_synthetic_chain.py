"""The synthetic chain keeps what its parameters promise."""

import json
import sys
import threading
from typing import Any

import numpy as np
import pytest

from benchmarks import synthetic_chain
from benchmarks.synthetic_chain import VARIABLE, build, calibrate, open_source, parse
from task_offload.errors import AppError, SourceError
from task_offload.runner import Kind, Outcome, Runner, States
from task_offload.task import Chain, Contract, Item, Task, load_app

APP = synthetic_chain.__file__
ROUNDS = {"free": 1.0, "held": 1.0}  # next to no work, so that tests are quick
SMALL: dict[str, Any] = {
    "rounds_per_ms": ROUNDS,
    "tasks": [
        {"cost_ms": 1, "payload_bytes": 9000},
        {"cost_ms": 5, "payload_bytes": 3, "survival": 0.7},
        {"cost_ms": 2, "holds_gil": True, "stateful": True, "runs_on": "cloud"},
        {"payload_bytes": 20},
        {},
    ],
}


def load(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> Chain:
    monkeypatch.setenv(VARIABLE, json.dumps(given))
    return load_app(APP)


def run(chain: Chain, split: int, items: int) -> list[Outcome]:
    runner, device, cloud = Runner(chain), States(), States()
    outcomes = []
    for sequence in range(items):
        item = Item("d", "0" * 32, sequence, 0.0, split)
        outcome = runner.run(item, device, (), 0, split)
        if outcome.kind is Kind.CONTINUED:
            outcome = runner.run(item, cloud, outcome.value, split, len(chain.tasks))
        outcomes.append(outcome)
    return outcomes


def endings(outcomes: list[Outcome]) -> list[tuple[Kind, int, Any]]:
    return [(each.kind, each.task, each.value) for each in outcomes]


def test_results_are_equal_at_every_split_and_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load(monkeypatch, SMALL)
    assert chain.splits == (1, 2)
    whole = endings(run(chain, len(chain.tasks), 200))
    assert {kind for kind, _, _ in whole} == {Kind.COMPLETED, Kind.FILTERED}
    for split in chain.splits:
        assert endings(run(chain, split, 200)) == whole


def test_tokens_are_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed values: another Python, NumPy or word size must come to the same."""
    whole = run(load(monkeypatch, {**SMALL, "seed": 7}), 5, 6)
    assert [each.value["token"] for each in whole if each.kind is Kind.COMPLETED] == [
        "cf01900a7afe8a5d",
        "dd71b7955b87c3e3",
        "6f959c4fe3cfaf46",
    ]


def test_a_changed_byte_changes_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load(monkeypatch, SMALL)
    runner, item = Runner(chain), Item("d", "0" * 32, 0, 0.0, 1)
    token, payload = runner.run(item, States(), (), 0, 1).value
    changed = payload.copy()
    changed[4096] ^= 1
    ends = [runner.run(item, States(), (token, each), 1, 2).value[0] for each in (payload, changed)]
    assert ends[0] != ends[1]


def test_state_tells_the_order_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load(monkeypatch, SMALL)
    runner = Runner(chain)
    tokens = []
    for sequences in ([0, 1, 2, 3], [1, 0, 2, 3]):
        state = States()
        for sequence in sequences:
            outcome = runner.run(Item("d", "0" * 32, sequence, 0.0, 2), state, (5, np.zeros(9, np.uint8)), 2, 5)
        tokens.append(outcome.value)
    assert tokens[0]["sequence"] == tokens[1]["sequence"] == 3
    assert tokens[0]["token"] != tokens[1]["token"]


@pytest.mark.parametrize("survival", [0.0, 0.25, 0.9])
def test_survival_is_the_share_and_the_same_items_each_time(monkeypatch: pytest.MonkeyPatch, survival: float) -> None:
    chain = load(monkeypatch, {"tasks": [{}, {"survival": survival}, {}]})
    survivors = [[n for n, each in enumerate(run(chain, 1, 2000)) if each.kind is Kind.COMPLETED] for _ in range(2)]
    assert survivors[0] == survivors[1]
    assert len(survivors[0]) / 2000 == pytest.approx(survival, abs=0.04)
    assert endings(run(chain, 1, 20)) != endings(run(load(monkeypatch, {"tasks": [{}, {}, {}]}), 1, 20))


def test_payloads_have_their_size_and_differ_and_belong_to_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load(monkeypatch, {"tasks": [{"payload_bytes": 10_000}, {}]})
    first, second = (Runner(chain).run(Item("d", "0" * 32, n, 0.0, 1), States(), (), 0, 1).value[1] for n in (0, 1))
    assert (first.nbytes, first.dtype) == (10_000, np.uint8)
    assert not np.array_equal(first, second)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable
    assert len(np.unique(first)) == 256


def test_the_source_ends_after_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load(monkeypatch, {"items": 3, "tasks": [{}, {}]})
    assert [each.kind for each in run(chain, 2, 5)] == [Kind.COMPLETED] * 3 + [Kind.FILTERED] * 2


def test_names_tell_the_parameters_and_contracts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[dict[str, Any]] = [{"runs_on": "device"}, {"name": "mine", "stateful": True, "runs_on": "device"}]
    chain = load(monkeypatch, {"rounds_per_ms": ROUNDS, "tasks": [*tasks, {"cost_ms": 1.5, "payload_bytes": 10}, {}]})
    assert chain.names == ("t1_0ms_0B", "mine", "t3_1.5ms_10B", "t4_0ms_0B")
    assert chain.tasks[1].contract == Contract("device", stateful=True)
    assert chain.splits == (2, 3)


def test_work_is_proportional_to_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    for kind in ("free", "held"):
        monkeypatch.setitem(synthetic_chain._KINDS, kind, lambda rounds, kind=kind: asked.append((kind, rounds)))
    rounds = {"free": 1000.0, "held": 10.0}
    tasks = [{"cost_ms": 2}, {"cost_ms": 30}, {"cost_ms": 0.5, "holds_gil": True}, {}]
    functions = build(parse(json.dumps({"rounds_per_ms": rounds, "tasks": tasks})))
    chain = Chain("test", tuple(Task(each.__name__, each, Contract()) for each in functions))
    Runner(chain).run(Item("d", "0" * 32, 0, 0.0, 4), States(), (), 0, 4)
    assert asked == [("free", 2000), ("free", 30000), ("held", 5)]


def test_calibration_finds_a_rate_for_both_kinds() -> None:
    assert calibrate("free") > 10
    assert calibrate("held") > 10


@pytest.mark.parametrize("kind", ["free", "held"])
def test_only_free_work_lets_another_thread_run(kind: str) -> None:
    ready, go, ran = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        ready.set()
        go.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that the other thread runs only if the work lets go of the lock by itself
    try:
        go.set()
        for _ in range(5000 if kind == "free" else 1):
            synthetic_chain._KINDS[kind](1000)
            if ran.is_set():
                break
        assert ran.is_set() == (kind == "free")
    finally:
        sys.setswitchinterval(interval_s)
        go.set()
        thread.join()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "not JSON"),
        ("{}", "needs 'tasks'"),
        ('{"tasks": [{}]}', "at least two"),
        ('{"tasks": [{}, 3]}', "task 2 must be an object"),
        ('{"tasks": [{}, {}], "item": 3}', "no parameter 'item'; it has tasks, items"),
        ('{"tasks": [{"cost": 3}, {}]}', "task 1 has no parameter 'cost'; it has name, cost_ms"),
        ('{"tasks": [{"cost_ms": -1}, {}]}', "task 1: cost_ms"),
        ('{"tasks": [{"cost_ms": NaN}, {}]}', "task 1: cost_ms"),
        ('{"tasks": [{"payload_bytes": 1.5}, {}]}', "task 1: payload_bytes"),
        ('{"tasks": [{}, {"survival": 1.5}, {}]}', "task 2: survival must be"),
        ('{"tasks": [{"survival": 0.5}, {}]}', "task 1: survival is for the tasks between"),
        ('{"tasks": [{"stateful": true}, {}]}', "task 1: a stateful task needs a pin"),
        ('{"tasks": [{"runs_on": "moon"}, {}]}', "task 1: runs_on is"),
        ('{"tasks": [{}, {}], "rate": 0}', "rate must be above 0"),
        ('{"tasks": [{}, {}], "items": -1}', "items must be"),
        ('{"tasks": [{}, {}], "seed": "x"}', "seed must be"),
        ('{"tasks": [{}, {}], "rounds_per_ms": {"free": 1}}', "rounds_per_ms must be"),
        ("/no/such/file.json", "neither JSON in braces nor a file"),
    ],
)
def test_parameters_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch, given: str, message: str) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(AppError, match=message):
        load_app(APP)


def test_parameters_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    file = tmp_path / "chain.json"
    file.write_text(json.dumps(SMALL))
    monkeypatch.setenv(VARIABLE, str(file))
    assert len(load_app(APP).tasks) == 5


def test_the_default_has_a_heavy_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    costs = [each.cost_ms for each in parse(synthetic_chain.DEFAULT).tasks]
    assert max(costs) == costs[2] > 0.7 * sum(costs)
    assert load_app(APP).splits == (1, 2, 3, 4)


def test_the_source_is_its_rate() -> None:
    assert open_source("12.5") == 12.5
    assert open_source(None) == synthetic_chain.parameters.rate
    for wrong in ("0", "-3", "nan", "inf", "camera"):
        with pytest.raises(SourceError, match="such as 30"):
            open_source(wrong)
