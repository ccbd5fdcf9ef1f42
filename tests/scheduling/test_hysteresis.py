import pytest

from task_offload.scheduling.cost_model import LINK, RESOURCES, Choice, Option, single
from task_offload.scheduling.hysteresis import FORGIVE_S, PATIENCE_S, TRIAL_S, Hysteresis, Rival, Standing
from task_offload.scheduling.judgement import ENOUGH, JUDGED_S

TICK_S = 0.5
FPS = 20.0


def choice(split: int, cloud_s: float, fps: float = FPS, latency_s: float = 0.1, busiest: int = 0) -> Choice:
    use_s = [0.001] * len(RESOURCES)
    use_s[busiest] = 1.0 / fps
    return single(Option(split, "none", tuple(use_s), 1.0 / fps, cloud_s, 0.0, 0.0, 0.0, latency_s, 1000.0))


MUCH, LITTLE = choice(2, 0.020), choice(1, 0.010)  # of the cloud; neither only takes tasks back


class Weighed:
    """A hysteresis and its clock."""

    def __init__(self) -> None:
        self.hysteresis = Hysteresis(lambda choice: choice.cloud_busy_s != 0.0)
        self.now_s = 100.0

    def weigh(
        self, current: Choice, best: Choice, *, able_fps: float = FPS, in_time: bool = True, link_moves: bool = False
    ) -> tuple[bool, bool]:
        self.now_s += TICK_S
        holds = in_time and able_fps >= ENOUGH * FPS
        standing = Standing(FPS, FPS, current, current, current, able_fps, in_time, holds)
        rival = Rival(best, best.capacity_fps >= FPS, True, 0.0)
        return self.hysteresis.weigh(standing, rival, link_moves, self.now_s, TICK_S)

    def saves_after_s(self, current: Choice, best: Choice) -> float:
        """How long the best choice has to save, until it is taken."""
        began_s = self.now_s
        while not self.weigh(current, best)[1]:
            assert self.now_s - began_s < 3600.0
        return self.now_s - began_s

    def switch(self, old: Choice, needed: bool) -> None:
        self.hysteresis.switched(old, needed, self.now_s)


def test_what_is_needed_is_done_at_once() -> None:
    weighed = Weighed()
    assert weighed.weigh(LITTLE, MUCH) == (False, False)
    assert weighed.weigh(LITTLE, MUCH, able_fps=10.0) == (True, False)
    assert weighed.weigh(MUCH, MUCH, able_fps=10.0) == (False, False)


def test_what_is_too_late_is_left_for_what_is_in_time() -> None:
    assert Weighed().weigh(choice(2, 0.01, latency_s=0.3), choice(1, 0.02, latency_s=0.1), in_time=False)[0]


def test_what_saves_waits_and_the_less_it_saves_the_longer() -> None:
    little_s = Weighed().saves_after_s(MUCH, choice(1, 0.018))
    much_s = Weighed().saves_after_s(MUCH, choice(1, 0.002))
    assert TICK_S <= much_s < little_s < PATIENCE_S


def test_what_saves_too_little_or_is_slower_or_was_not_told_is_not_taken() -> None:
    weighed = Weighed()
    for best in (choice(1, 0.0195), choice(1, 0.010, fps=0.9 * FPS), choice(1, 0.0)):
        assert not any(weighed.weigh(MUCH, best)[1] for _ in range(1000))


def test_what_the_device_can_do_too_is_taken_back_though_it_saves_little() -> None:
    assert Weighed().saves_after_s(MUCH, choice(3, 0.0199)) < 2.0 * PATIENCE_S


def test_a_saving_that_failed_makes_patient_until_it_is_forgiven() -> None:
    weighed = Weighed()
    first_s = weighed.saves_after_s(MUCH, LITTLE)
    weighed.switch(MUCH, needed=False)
    weighed.now_s += 0.5 * TRIAL_S
    weighed.switch(LITTLE, needed=True)
    assert weighed.saves_after_s(MUCH, LITTLE) == pytest.approx(2.0 * first_s, abs=TICK_S)
    weighed.switch(MUCH, needed=False)
    weighed.now_s += FORGIVE_S
    weighed.switch(LITTLE, needed=True)
    assert weighed.saves_after_s(MUCH, LITTLE) == pytest.approx(first_s, abs=TICK_S)


def test_out_of_reach_each_attempt_waits_longer_unless_it_is_far_faster() -> None:
    weighed = Weighed()
    slow, faster, far_faster = choice(2, 0.02, 5.0), choice(1, 0.02, 6.0), choice(1, 0.02, 10.0)
    waited_s = []
    for _ in range(3):
        weighed.switch(choice(3, 0.02), needed=True)
        began_s = weighed.now_s
        while not weighed.weigh(slow, faster, able_fps=5.0)[0]:
            pass
        waited_s.append(weighed.now_s - began_s)
    assert waited_s == [2.0 * JUDGED_S, 4.0 * JUDGED_S, 8.0 * JUDGED_S]
    weighed.switch(choice(3, 0.02), needed=True)
    assert not weighed.weigh(slow, far_faster, able_fps=5.0)[0]
    weighed.now_s += JUDGED_S
    assert weighed.weigh(slow, far_faster, able_fps=5.0)[0]


def test_what_was_just_left_for_being_slower_is_not_taken_again_soon() -> None:
    weighed = Weighed()
    slow, faster = choice(2, 0.02, 5.0), choice(1, 0.02, 5.5)
    weighed.switch(faster, needed=True)
    weighed.now_s += TRIAL_S - 2.0 * TICK_S
    assert not weighed.weigh(slow, faster, able_fps=5.0)[0]
    assert weighed.weigh(slow, faster, able_fps=5.0)[0]


def test_a_moving_link_that_falls_is_given_time_to_recover() -> None:
    weighed = Weighed()
    falling = choice(1, 0.02, 10.0, busiest=LINK)
    needed = [weighed.weigh(falling, MUCH, able_fps=10.0, link_moves=True)[0] for _ in range(8)]
    assert needed == [False] * 6 + [True] * 2
    assert Weighed().weigh(falling, MUCH, able_fps=10.0)[0]
