"""The live benchmark of the scheduler: what it counts, what it compares, what it prints. The lab itself needs root."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scheduler_live, slow_links
from benchmarks.device_lab import JobError, why_not
from benchmarks.scheduler_live import (
    CHEAPEST,
    FASTEST,
    ITEM_S,
    LATE_S,
    MOST,
    TARGET,
    Aims,
    Phase,
    Plan,
    Scenario,
    chain_model,
    chains,
    complete,
    figures,
    load_trace,
    off_by,
    predict,
    print_results,
    scenarios,
    verdicts,
)
from task_offload.scheduling.cost_model import Costs, Payload


def run(fps: float, worst_fps: float | None = None, cloud_ms: float = 1.0) -> dict[str, Any]:
    return {"fps": fps, "worst_fps": fps if worst_fps is None else worst_fps, "cloud_ms": cloud_ms, "reports": []}


SWEEP = {
    1: run(30.0),
    3: run(100.0, cloud_ms=2.0),
    4: run(90.0, cloud_ms=1.5),
    5: run(78.0, cloud_ms=1.2),
    6: run(60.0, cloud_ms=1.0),
}


def scenario_result(**runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"fastest": FASTEST, "cheapest": CHEAPEST, "most": MOST, "target": TARGET}
    return {
        "chain": "ball",
        "scenario": "quota 0.25, 40 Mbit/s",
        "sweep": SWEEP,
        "predicted": {1: 33.0, 3: 110.0, 4: 90.0, 5: 78.0, 6: 48.0},
        "runs": {names[name]: each for name, each in runs.items()},
    }


MET = scenario_result(
    fastest=[run(100.0), run(110.0), run(90.0)],
    most=[run(97.0), run(99.0), run(95.0)],
    target=[run(85.0, 79.0, 1.20), run(86.0, 80.0, 1.25), run(84.0, 70.0, 1.30)],
    cheapest=[run(80.0, cloud_ms=1.2)] * 3,
)


def test_a_plan_of_one_phase_counts_what_comes_after_the_warm_up():
    plan = Plan(phases=1, warm=2, counted=3)
    assert plan.windows == 5
    windows = [{"fps": float(number)} for number in range(6)]
    assert plan.counted_windows(windows) == [windows[2:5]]


def test_after_each_change_a_window_does_not_count():
    plan = Plan(phases=3, warm=1, counted=2)
    windows = [{"fps": float(number)} for number in range(9)]
    assert plan.begins == (0, 3, 6)
    assert plan.windows == 9
    assert plan.counted_windows(windows) == [windows[1:3], windows[4:6], windows[7:9]]


def test_conditions_change_when_a_phase_begins():
    plan = Plan(phases=2, warm=1, counted=1)
    conditions = plan.conditions((Phase(0.5, 40.0), Phase(0.25, (8.0, 4.0))))
    second = 6.0 + LATE_S
    assert conditions.cpu == ((0.0, 0.5), (second, 0.25))
    assert conditions.mbit == ((0.0, 40.0), (second, 8.0), (second + 1.0, 4.0))


def report(*fps: float, cloud_cpu_s: float = 0.3) -> dict[str, Any]:
    return {"windows": [{"fps": each, "cloud_cpu_s": cloud_cpu_s} for each in fps]}


def test_figures_are_means_over_devices_and_the_least_of_the_phases():
    plan = Plan(phases=2, warm=1, counted=1)
    found = figures([report(1.0, 100.0, 1.0, 50.0), report(1.0, 60.0, 1.0, 30.0)], plan)
    assert found == {"fps": 60.0, "worst_fps": 40.0, "cloud_ms": pytest.approx(1e3 * 4 * 0.3 / (3.0 * 240.0))}


def test_a_run_that_ended_early_gives_no_figures():
    with pytest.raises(JobError):
        figures([report(1.0, 2.0)], Plan(phases=1, warm=1, counted=2))


def test_a_run_without_items_costs_endlessly_much():
    assert math.isinf(figures([report(0.0, 0.0)], Plan(phases=1, warm=1, counted=1))["cloud_ms"])


def test_the_target_is_what_the_best_split_can_keep_and_the_cheapest_split_meets_it():
    aims = Aims.of(SWEEP)
    assert aims == Aims(fastest=3, cheapest=5, slowest=1, target_fps=80.0)  # 78 is within what is tolerated
    assert aims.contenders() == {FASTEST: ["3"], MOST: ["1", "100000"], TARGET: ["1", "80"], CHEAPEST: ["5"]}


def test_the_target_follows_the_worst_phase():
    assert Aims.of({1: run(100.0, worst_fps=20.0), 2: run(90.0, worst_fps=50.0, cloud_ms=9.0)}) == Aims(1, 2, 2, 40.0)


def test_a_split_that_is_fastest_and_cheapest_runs_once_a_round():
    assert set(Aims.of({1: run(10.0), 2: run(100.0)}).contenders()) == {FASTEST, MOST, TARGET}


def test_verdicts_compare_round_by_round():
    speed, target, cost = verdicts(MET)
    assert speed == "0.97 (>= 0.95: met)"
    assert target == "0.99 (>= 0.97: met)"
    assert cost == "1.04 (<= 1.05: met)"


def test_each_bar_can_be_missed():
    missed = scenario_result(fastest=[run(100.0)], most=[run(90.0)], target=[run(80.0, 70.0, 3.0)])
    assert all("MISSED" in text for text in verdicts(missed))


def test_a_scenario_is_complete_with_its_last_round():
    assert not complete({"chain": "ball"}, 1)
    assert complete(MET, 3)
    assert not complete(MET, 4)
    assert not complete(scenario_result(fastest=[run(1.0)], most=[]), 1)


def test_the_table_shows_bars_and_the_simulation_beside_the_measured(capsys: pytest.CaptureFixture[str]):
    print_results([MET, {"chain": "traffic", "scenario": "not run yet"}])
    printed = capsys.readouterr().out
    assert "3: 100" in printed
    assert "1: 30 / 33" in printed
    assert off_by(MET) == pytest.approx([0.1, 0.1, 0.0, 0.0, -0.2])
    assert "| +0% " in printed
    assert "| -20% " in printed
    assert "3 of 3 bars met" in printed
    assert "traffic" not in printed


def test_the_scenarios_are_those_that_were_asked_for():
    found = scenarios([2.0, 1.0])
    assert len(found) == 6
    assert found[2].phases == (Phase(1.0, (6.0, 3.0)),)
    assert [each.devices for each in found] == [1, 1, 1, 1, 1, 8]
    assert len(chains()) == 3


def test_a_trace_is_a_csv_of_seconds_and_mbit(tmp_path: Path):
    file = tmp_path / "trace.csv"
    file.write_text("second,mbit\n0,5.5\n1,0\n")
    assert load_trace(file) == (5.5, 0.0)


COSTS = Costs(
    device_s=(0.001, 0.010, 0.001),
    cloud_s=(0.001, 0.010, 0.001),
    survival=(1.0, 1.0, 1.0),
    stateful=(False, False, False),
    payloads={(1, "none"): Payload(100_000, 0.001, 0.001), (2, "none"): Payload(1_000, 0.0001, 0.0001)},
)


def test_the_simulation_predicts_what_the_quota_and_the_link_allow():
    model = chain_model(("a", "b", "c"), COSTS, (1, 2))
    assert model.payloads["none"][1].encode_s == pytest.approx(0.0001 + ITEM_S, abs=1e-6)
    found = predict(model, Scenario("quota 0.5, 8 Mbit/s", (Phase(0.5, 8.0),)))
    assert found[1] == pytest.approx(10.0, rel=0.1)  # the link: 100 kB an item
    assert found[2] == pytest.approx(0.5 / 0.0116, rel=0.1)  # the device


def run_main(monkeypatch: pytest.MonkeyPatch, main: Any, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    main()


@pytest.mark.parametrize("main", [scheduler_live.main, slow_links.main])
def test_without_the_lab_it_skips_and_says_why(main, monkeypatch, capsys, tmp_path):
    run_main(monkeypatch, main, "--lab", str(tmp_path / "none"))
    assert "skipped: there is no" in capsys.readouterr().out.splitlines()[0]


def test_a_file_of_results_is_printed_without_the_lab(monkeypatch, capsys, tmp_path):
    file = tmp_path / "live.json"
    file.write_text(json.dumps([MET]))
    run_main(monkeypatch, scheduler_live.main, "--table", "--json", str(file), "--lab", str(tmp_path / "none"))
    assert "3 of 3 bars met" in capsys.readouterr().out


def test_what_the_lab_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "device-lab"
    script.write_text("")
    monkeypatch.setattr("benchmarks.device_lab.os.geteuid", lambda: 1000)
    assert "root" in (why_not(script) or "")


def test_slow_links_are_judged_by_the_forerunners_best_of_the_same_round(capsys: pytest.CaptureFixture[str]):
    link = {"cpu": 0.1, "mbit": 20.0, "options": (), "times": 6.0}
    found = {
        "link": link,
        "forerunner": {1: 5.0, 2: 3.0},
        "forerunner_best": [5.0, 6.0, 5.0],
        "fps": [31.0, 30.0, 32.0],
    }
    slow_links.print_slow_links([{**found, "exact": True}, {**found, "exact": False, "fps": [1.0, 1.0, 1.0]}])
    met, missed = capsys.readouterr().out.splitlines()[2:4]
    assert "6.20 (>= 6: met)" in met
    assert "MISSED" not in met
    assert missed.count("MISSED") == 2
