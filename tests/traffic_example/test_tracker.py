"""The tracker, by boxes made up."""

from traffic_example.tracker import LOST_AFTER, TRUSTED_AFTER, Box, Tracker


def tracker() -> Tracker:
    return Tracker(line_y=100, margin=4)


def drive(x: int, begin: int, step: int, frames: int) -> list[Box]:
    return [(x, begin + step * number, 20, 40) for number in range(frames)]


def test_a_vehicle_is_counted_once_in_its_direction() -> None:
    followed = tracker()
    crossings = []
    for number, (down, up) in enumerate(zip(drive(10, 0, 8, 20), drive(80, 160, -8, 20), strict=True)):
        followed.update([down, up])
        crossings += [(number, *each) for each in followed.crossed]
    assert followed.counts == {"up": 1, "down": 1}
    assert crossings == [(11, 1, "down"), (11, 2, "up")]  # centres at 108 and 92, more than 4 past the line


def test_vehicles_keep_their_numbers_and_are_shown_once_trusted() -> None:
    followed = tracker()
    shown = [followed.update([box]) for box in drive(10, 0, 8, 6)]
    assert [len(each) for each in shown] == [0] * (TRUSTED_AFTER - 1) + [1] * (6 - TRUSTED_AFTER + 1)
    assert {each[0].number for each in shown if each} == {1}
    assert shown[-1][0].step == (0.0, 8.0)


def test_a_vehicle_that_trembles_on_the_line_is_not_counted() -> None:
    followed = tracker()
    for _ in range(20):
        followed.update([(10, 79, 20, 40)])
        followed.update([(10, 82, 20, 40)])
    assert followed.counts == {"up": 0, "down": 0}


def test_a_vehicle_that_turns_back_is_counted_both_ways() -> None:
    followed = tracker()
    for box in [*drive(10, 40, 8, 10), *drive(10, 112, -8, 10)]:
        followed.update([box])
    assert followed.counts == {"up": 1, "down": 1}


def test_a_gap_in_which_it_is_not_seen_is_bridged() -> None:
    followed = tracker()
    for number, box in enumerate(drive(10, 0, 8, 20)):
        followed.update([] if 8 <= number < 8 + LOST_AFTER else [box])
    assert followed.counts == {"up": 0, "down": 1}
    assert [each.number for each in followed.update([(10, 160, 20, 40)])] == [1]


def test_one_that_was_away_for_longer_is_another() -> None:
    followed = tracker()
    for _ in range(TRUSTED_AFTER):
        followed.update([(10, 20, 20, 40)])
    for _ in range(LOST_AFTER + 1):
        assert followed.update([]) == []
    for _ in range(TRUSTED_AFTER):
        shown = followed.update([(10, 20, 20, 40)])
    assert [each.number for each in shown] == [2]


def test_neighbours_are_not_confused() -> None:
    followed = tracker()
    for left, right in zip(drive(10, 0, 9, 18), drive(36, 20, 5, 18), strict=True):
        shown = followed.update([right, left])  # in whatever order they are found
    assert {each.number: each.box[0] for each in shown} == {1: 36, 2: 10}


def test_a_flash_is_not_counted() -> None:
    followed = tracker()
    followed.update([(10, 40, 20, 40)])
    followed.update([(10, 58, 20, 40)])
    followed.update([(10, 90, 20, 40)])
    assert followed.counts == {"up": 0, "down": 0}
