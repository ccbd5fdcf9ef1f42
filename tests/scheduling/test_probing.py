from collections.abc import Sequence
from dataclasses import replace

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option, Payload
from task_offload.scheduling.known import Known
from task_offload.scheduling.observation import Observation, PayloadCost, Route, TaskCost
from task_offload.scheduling.payloads import PayloadSpread
from task_offload.scheduling.probing import PROBE_PAUSE_S, PROBE_WAIT_S, Probing

TASKS = 3


def known(survival: float = 1.0, spread: float = 1.0) -> Known:
    """Split 1 takes little of the device and much of the link, and 11 ms of the cloud more than split 2.

    One of them is measured; of the other's payload `spread` is not known.
    """
    costs = Costs(
        device_s=(0.01, 0.09, 0.01),
        cloud_s=(0.002, 0.01, 0.002),
        survival=(survival, 1.0, 1.0),
        stateful=(False,) * TASKS,
        payloads={(1, "none"): Payload(200_000, 0.001, 0.001), (2, "none"): Payload(1000, 0.001, 0.001)},
        link_bytes_per_s=1_000_000.0,
    )
    spreads = (0.05,) * TASKS
    return Known(costs, spreads, spreads, dict.fromkeys(costs.payloads, PayloadSpread(spread)), 0.0, 1.0)


def choose(
    probing: Probing, known: Known, fps: float, split: int = 2, now_s: float = 100.0, since_switch_s: float = 60.0
) -> tuple[Route, ...]:
    """What is probed while this split is in force, and so many items a second are asked for."""
    found = cost_model.options(known.costs)
    current = cost_model.single(found[split - 1])

    def best_of(hopeful: Sequence[Option]) -> tuple[Choice, bool]:
        choice = cost_model.cheapest(hopeful, fps)
        return (choice, True) if choice is not None else (cost_model.fastest(hopeful), False)

    meets = current.capacity_fps >= fps
    return probing.choose(found, known, current, current, meets, best_of, since_switch_s, now_s)


def came(now_s: float, route: tuple[int, str] = (2, "none")) -> Observation:
    return Observation(
        now_s=now_s,
        interval_s=0.5,
        captured=5,
        finished=5,
        dropped=0,
        device=(TaskCost(),) * TASKS,
        cloud=(TaskCost(),) * TASKS,
        payloads={route: PayloadCost(1, 1000, 0.001, 1, 0.001)},
    )


def test_what_would_be_faster_if_it_were_as_good_as_it_may_be_is_probed() -> None:
    assert choose(Probing(), known(), 12.0) == (Route(1, "none"),)
    assert choose(Probing(), known(spread=0.1), 12.0) == ()


def test_what_would_cost_less_is_probed_while_the_target_is_met() -> None:
    assert choose(Probing(), known(), 4.0, split=1) == (Route(2, "none"),)
    assert choose(Probing(), known(), 4.0, split=2) == ()


def test_what_the_cloud_takes_is_probed_until_it_was_told_more_than_once() -> None:
    """Splits 1 and 2 cost the cloud the same for all that is known, and decoding is all of it."""
    payloads = {(1, "none"): Payload(1000, 0.001, 0.01), (2, "none"): Payload(1000, 0.001, 0.01)}
    same = replace(known().costs, cloud_s=(0.0, 0.0, 0.0001), payloads=payloads)

    def decoding(spread: float) -> Known:
        spreads = {(1, "none"): PayloadSpread(0.05, decode=0.05), (2, "none"): PayloadSpread(0.05, decode=spread)}
        return replace(known(), costs=same, payloads=spreads)

    assert choose(Probing(), decoding(0.3), 4.0, split=1) == (Route(2, "none"),)
    assert choose(Probing(), decoding(0.1), 4.0, split=1) == ()


def test_what_was_encoded_once_is_tried_again_if_the_first_time_alone_makes_it_look_slow() -> None:
    payloads = {(1, "none"): Payload(1000, 0.2, 0.001), (2, "none"): Payload(1000, 0.001, 0.001)}
    slow = replace(known().costs, payloads=payloads)

    def encoding(spread: float) -> Known:
        spreads = {(1, "none"): PayloadSpread(0.05, spread), (2, "none"): PayloadSpread(0.05, 0.05)}
        return replace(known(), costs=slow, payloads=spreads)

    assert choose(Probing(), encoding(0.75), 12.0) == (Route(1, "none"),)
    assert choose(Probing(), encoding(0.15), 12.0) == ()


def test_the_fewer_items_survive_the_more_are_sent_for_one_payload() -> None:
    assert choose(Probing(), known(survival=0.4), 40.0) == (Route(1, "none"),) * 2


def test_a_probe_that_takes_long_waits_until_the_choice_in_force_is_old_enough() -> None:
    assert choose(Probing(), known(), 12.0, since_switch_s=0.1) == ()


def test_one_probe_at_a_time_until_it_comes_back_or_is_lost() -> None:
    probing = Probing()
    assert choose(probing, known(), 12.0, now_s=100.0)
    assert choose(probing, known(), 12.0, now_s=101.0) == ()
    assert not probing.take_in(came(101.0))
    assert probing.take_in(came(101.5, (1, "none")))
    assert choose(probing, known(), 12.0, now_s=101.5)
    assert not probing.take_in(came(102.0))
    assert probing.take_in(came(102.0 + PROBE_WAIT_S))


def test_a_probe_whose_items_were_all_filtered_is_tried_again_at_once() -> None:
    probing = Probing()
    assert choose(probing, known(survival=0.4), 4.0, split=1, now_s=100.0) == (Route(2, "none"),) * 2
    one_unsent = replace(came(100.5, (1, "none")), unsent={(2, "none"): 1, (1, "none"): 5})
    assert not probing.take_in(one_unsent)
    assert choose(probing, known(survival=0.4), 4.0, split=1, now_s=100.5) == ()
    assert probing.take_in(one_unsent)
    assert choose(probing, known(survival=0.4), 4.0, split=1, now_s=101.0) == (Route(2, "none"),) * 2


def test_there_is_a_pause_between_probes_while_the_target_is_met() -> None:
    probing = Probing()
    assert choose(probing, known(), 4.0, split=1, now_s=100.0)
    assert probing.take_in(came(100.5, (2, "none")))
    assert choose(probing, known(), 4.0, split=1, now_s=100.0 + 0.5 * PROBE_PAUSE_S) == ()
    assert choose(probing, known(), 4.0, split=1, now_s=100.0 + PROBE_PAUSE_S)
