import json

from task_offload.scheduling.simulation.worlds import worlds
from task_offload.scheduling.table import choice_row, figure, render, split_rows, task_rows

WORLD = next(world for world in worlds() if world.name == "synthetic, Pi 4, filters")
COSTS = WORLD.costs(0.0)


def test_there_is_a_row_for_every_task_and_for_every_split_and_codec() -> None:
    tasks, splits = task_rows(WORLD.chain.names, COSTS), split_rows(COSTS, 30.0)
    assert [row["task"] for row in tasks] == list(WORLD.chain.names)
    assert {(row["split"], row["codec"]) for row in splits} == set(COSTS.payloads)
    assert json.loads(json.dumps([tasks, splits])) is not None
    for row in splits:
        assert row["meets_target"] == (row["fps"] >= 30.0)


def test_the_choice_meets_the_target_for_less_than_any_single_split() -> None:
    choice = choice_row(COSTS, 30.0)
    assert choice["meets_target"]
    assert choice["cloud_ms"] < min(row["cloud_ms"] for row in split_rows(COSTS, 30.0) if row["meets_target"])


def test_beyond_reach_the_choice_is_the_fastest_and_the_limit_is_named() -> None:
    choice = choice_row(COSTS, 1000.0)
    assert not choice["meets_target"]
    assert choice["limit"] in {"link", "device"}


def test_figures_have_no_exponent() -> None:
    assert [figure(value) for value in (0.01234, 1.5, 12.345, 999.4, 1079.6, 23456.7)] == [
        "0.0123", "1.5", "12.3", "999", "1080", "23457",
    ]  # fmt: skip
    assert figure(2500.0, 2) == "2500"
    assert figure(55.51234, 4) == "55.51"


def test_text_names_every_task_and_what_would_be_taken() -> None:
    text = render(WORLD.chain.names, COSTS, 30.0)
    assert all(name in text for name in WORLD.chain.names)
    assert "Automatic mode for 30 FPS would take split 3" in text
