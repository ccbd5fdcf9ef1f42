import json
import re
from dataclasses import replace

import pytest

from task_offload.scheduling.cost_model import Costs, Payload
from task_offload.scheduling.judgement import ENOUGH
from task_offload.scheduling.simulation.worlds import worlds
from task_offload.scheduling.table import WIDTH, choice_row, figure, render, split_rows, task_rows

WORLD = next(world for world in worlds() if world.name == "synthetic, Pi 4, filters")
COSTS = WORLD.costs(0.0)


def test_there_is_a_row_for_every_task_and_for_every_split_and_codec() -> None:
    tasks, splits = task_rows(WORLD.chain.names, COSTS), split_rows(COSTS, 30.0)
    assert [row["task"] for row in tasks] == list(WORLD.chain.names)
    assert {(row["split"], row["codec"]) for row in splits} == set(COSTS.payloads)
    assert json.loads(json.dumps([tasks, splits])) is not None
    for row in splits:
        assert row["meets_target"] == (row["fps"] >= ENOUGH * 30.0)


def test_the_choice_meets_the_target_for_less_than_any_single_split() -> None:
    choice = choice_row(COSTS, 30.0)
    assert choice is not None
    assert choice["meets_target"]
    assert choice["cloud_ms"] < min(row["cloud_ms"] for row in split_rows(COSTS, 30.0) if row["meets_target"])


def test_beyond_reach_the_choice_is_the_fastest_and_the_limit_is_named() -> None:
    choice = choice_row(COSTS, 1000.0)
    assert choice is not None
    assert not choice["meets_target"]
    assert choice["limit"] in {"link", "device"}


def test_what_takes_longer_than_is_allowed_is_left_out() -> None:
    rows = split_rows(COSTS, 1.0)
    for limit_ms in sorted(row["latency_ms"] for row in rows):
        limit_s = limit_ms / 1e3 + 1e-6
        in_time = {str(row["split"]) for row in split_rows(COSTS, 1.0, limit_s) if row["in_time"]}
        choice = choice_row(COSTS, 1.0, limit_s)
        assert choice is not None
        assert choice["in_time"]
        assert {str(split) for split in choice["shares"]} <= in_time
        assert "* meets the target, and keeps to --max-latency" in render(WORLD.chain.names, COSTS, 1.0, limit_s)
    least_s = min(row["latency_ms"] for row in rows) / 1e3
    choice = choice_row(COSTS, 1.0, least_s / 2)
    assert choice is not None
    assert not choice["in_time"]
    assert choice["latency_ms"] == pytest.approx(1e3 * least_s)
    text = render(WORLD.chain.names, COSTS, 1.0, least_s / 2)
    assert "*" not in text
    assert text.endswith("Every split takes longer than --max-latency; this is the quickest.")


def test_a_source_is_a_limit_and_a_target_above_it_is_not_met() -> None:
    slow = replace(COSTS, source_rate=2.0)
    assert {(row["fps"], row["limit"]) for row in split_rows(slow)} == {(2.0, "source")}
    cheapest_ms = min(row["cloud_ms"] for row in split_rows(slow))
    for target_fps, meets in ((1.5, True), (30.0, False), (None, None)):
        assert {row["meets_target"] for row in split_rows(slow, target_fps)} == {meets}
        choice = choice_row(slow, target_fps)
        assert choice is not None
        assert (choice["meets_target"], choice["cloud_ms"]) == (meets, cheapest_ms)
        assert ("* meets the target" in render(WORLD.chain.names, slow, target_fps)) == (meets is True)


def test_a_split_that_is_not_possible_stands_in_its_place_with_the_reason() -> None:
    possible = replace(COSTS, payloads={route: each for route, each in COSTS.payloads.items() if route[0] != 2})
    reason = "a det.Detection cannot travel; list it in the app's payload_types, or pass plain data"
    text = render(WORLD.chain.names, possible, 30.0, impossible={2: reason})
    assert " ".join(f"not possible: {reason}".split()) in " ".join(text.split())
    numbers = [int(number) for number in re.findall(r"^(\d+)  ", text, re.MULTILINE)]
    assert numbers == sorted(numbers)
    assert numbers.count(2) == 1


def test_without_a_possible_split_there_is_no_choice() -> None:
    none = replace(COSTS, payloads={})
    assert choice_row(none, 30.0) is None
    assert "for 30 FPS would have no split to take" in render(WORLD.chain.names, none, 30.0)


def test_sizes_are_in_the_unit_that_suits_them() -> None:
    sizes = {1: 53.0, 2: 2_260.0, 3: 999_700.0, 4: 2_260_000.0}
    costs = Costs(
        device_s=[0.001] * 5,
        cloud_s=[0.001] * 5,
        survival=[1.0] * 5,
        stateful=[False] * 5,
        payloads={(split, "none"): Payload(size, 0.0, 0.0) for split, size in sizes.items()},
    )
    lines = render("abcde", costs).splitlines()[2:6]
    assert [line[51:].strip() for line in lines] == ["53 B", "2.26 kB", "1000 kB", "2.26 MB"]


def test_the_text_fits_a_terminal() -> None:
    payloads = {
        (split, codec): Payload(123_456.0, 0.01, 0.01) for split in (1, 2, 3) for codec in ("none", "lz4", "zstd")
    }
    costs = Costs(
        device_s=[0.1234] * 4,
        cloud_s=[0.1234] * 3 + [12.34],
        survival=[1.0] * 4,
        stateful=[False] * 4,
        payloads=payloads,
    )
    names = ["a_task_with_a_name_that_goes_on_and_on", *"bcd"]
    text = render(names, costs, 0.01, 123.4567, {4: "a reason that goes on and on " * 9})
    assert "cloud main thread" in text
    assert "*" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_figures_have_no_exponent() -> None:
    assert [figure(value) for value in (0.01234, 1.5, 12.345, 999.4, 1079.6, 23456.7)] == [
        "0.0123", "1.5", "12.3", "999", "1080", "23457",
    ]  # fmt: skip
    assert figure(999.6) == "1000"
    assert figure(2500.0, 2) == "2500"
    assert figure(55.51234, 4) == "55.51"


def test_text_names_every_task_and_what_would_be_taken() -> None:
    text = render(WORLD.chain.names, COSTS, 30.0)
    assert all(name in text for name in WORLD.chain.names)
    assert "Automatic mode for 30 FPS would take split 3" in text
