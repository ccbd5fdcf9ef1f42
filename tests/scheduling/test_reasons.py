import math
from dataclasses import replace

import pytest

from task_offload.scheduling.cost_model import LINK, RESOURCES, Option, mixed, single
from task_offload.scheduling.reasons import Change

NAMES = ("capture", "scale", "detect", "report")


def option(split: int, busiest: str, busiest_s: float, cloud_s: float, codec: str = "none") -> Option:
    use_s = [0.001] * len(RESOURCES)
    use_s[LINK] = 0.002
    use_s[RESOURCES.index(busiest)] = busiest_s
    return Option(split, codec, tuple(use_s), busiest_s, cloud_s, 0.0, 0.0, 0.0, 0.1, 1000.0)


HERE, THERE = option(3, "device", 0.1, 0.001), option(2, "link", 0.05, 0.02)
CHANGE = Change(single(HERE), single(THERE), True, 16.0, 10.0, True, 0.1, 0.1, math.inf, True, 0.0)


def test_a_device_that_is_too_slow() -> None:
    expected = "detect moved to the cloud; the device needs 100 ms an item, 16 FPS allow 62.5; link 80%"
    assert CHANGE.in_words(NAMES) == expected


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"old": single(option(3, "link", 0.05, 0.001)), "able_fps": 12.34},
            "it gave 12.3 FPS of the 16 wanted, though 20 were predicted",
        ),
        ({"needed": False}, "20 ms of cloud time an item instead of 1"),
        ({"old": single(option(3, "link", 0.1, 0.001))}, "the link allows 10 FPS of the 16 wanted"),
        ({"reaches": False}, "no split reaches 16 FPS, this one is fastest; the limit is the link"),
        (
            {"reaches": False, "lossy_fps": 40.0},
            "no split reaches 16 FPS, this one is fastest; the limit is the link; "
            "--codec jpeg:90 (of images only, which it changes) would give up to 40",
        ),
        ({"demand_fps": math.inf, "reaches": False}, "this is fastest; the limit is the link"),
        (
            {"allowed_s": 0.09, "new_latency_s": 0.08},
            "an item takes 80 ms instead of 100; 90 ms are allowed",
        ),
        (
            {"allowed_s": 0.07, "new_latency_s": 0.08},
            "an item takes 80 ms instead of 100, which is quickest; no split keeps to 70 ms",
        ),
    ],
)
def test_why(changes: dict[str, object], why: str) -> None:
    words = replace(CHANGE, link_measured=False, **changes).in_words(NAMES)  # type: ignore[arg-type]
    assert words == f"detect moved to the cloud; {why}"


def test_a_share_of_the_items_and_another_codec() -> None:
    mix = mixed(option(3, "device", 0.1, 0.001, "lz4"), option(1, "link", 0.05, 0.02, "lz4"), 0.25)
    words = replace(CHANGE, new=mix).in_words(NAMES)
    assert words.startswith(
        "scale to detect for a share of the items moved to the cloud; payloads encoded with lz4 instead of none; "
    )
