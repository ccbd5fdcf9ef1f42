from dataclasses import replace

from task_offload.scheduling.simulation.baselines import Fixed
from task_offload.scheduling.simulation.laboratory import judge, run
from task_offload.scheduling.simulation.worlds import PI_4, SYNTHETIC, World, always

SLOW = World("slow device", SYNTHETIC, 12.0, always(PI_4), link_mbit=always(30.0), duration_s=60.0)


def test_a_target_that_is_met_too_late_is_not_met() -> None:
    highest = SYNTHETIC.splits[-1]
    score = judge(run(SLOW, lambda world: Fixed(highest, "none"), 0))
    assert score.met == score.feasible == 12
    assert score.p95_s > 0.08
    hurried = replace(SLOW, max_latency_s=0.08, live=True, source_fps=12.5)
    score = judge(run(hurried, lambda world: Fixed(highest, "none"), 0))
    assert (score.met, score.feasible) == (0, 12)
