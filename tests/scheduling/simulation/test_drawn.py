from dataclasses import replace

import pytest

from task_offload.scheduling import cost_model
from task_offload.scheduling.simulation.drawn import CHANGE_S, RECOVERY_S, draw


def test_a_seed_always_gives_the_same_world_and_another_one_another() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != replace(draw(8), name=draw(7).name)


@pytest.mark.parametrize("seed", range(40))
def test_every_world_can_be_evaluated_before_and_after_its_change(seed: int) -> None:
    world = draw(seed)
    for second in (0.0, CHANGE_S, RECOVERY_S):
        found = cost_model.options(world.costs(second))
        assert {option.split for option in found} == set(world.chain.splits)
        assert all(option.capacity_fps > 0 for option in found)


def test_targets_are_drawn_within_reach_and_beyond_it() -> None:
    reachable = []
    for seed in range(40):
        world = draw(seed)
        found = cost_model.options(world.costs(0.0))
        reachable.append(cost_model.cheapest(found, world.target_fps) is not None)
    assert 20 < sum(reachable) < 40
