"""The background model, by frames made up."""

import numpy as np
import pytest
from numpy.typing import NDArray

from traffic_example.foreground import Background

Gray = NDArray[np.uint8]


def road(light: float = 1.0, seed: int = 0) -> Gray:
    texture = np.random.default_rng(1).normal(110, 10, (90, 160))
    noise = np.random.default_rng(seed).normal(0, 1.5, (90, 160))
    return np.clip(light * texture + noise, 0, 255).astype(np.uint8)


def with_car(frame: Gray, brightness: int) -> Gray:
    changed = frame.copy()
    changed[30:60, 50:70] = brightness
    return changed


def learned() -> Background:
    background = Background(road())
    for seed in range(1, 20):
        background.foreground(road(seed=seed))
    return background


@pytest.mark.parametrize("brightness", [230, 40])
@pytest.mark.parametrize("light", [1.0, 0.6])
def test_a_car_is_found_in_any_light(brightness: int, light: float) -> None:
    mask = learned().foreground(with_car(road(light, seed=30), int(brightness * light)))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    truth = with_car(np.zeros_like(mask), 255)
    assert np.count_nonzero(mask != truth) < 0.1 * np.count_nonzero(truth)


def test_an_empty_road_stays_empty_while_the_light_changes() -> None:
    background = learned()
    for step in range(40):
        mask = background.foreground(road(1 - 0.5 * np.sin(step / 6) ** 2, seed=step))
        assert np.count_nonzero(mask) == 0


def test_a_faint_shadow_is_road() -> None:
    background = learned()
    shaded = road(seed=50)
    shaded[20:70, 40:90] = shaded[20:70, 40:90] * 0.88
    assert np.count_nonzero(background.foreground(shaded)) == 0


def test_a_car_that_stands_for_a_while_stays_foreground_and_leaves_no_ghost() -> None:
    background = learned()
    for seed in range(60):
        mask = background.foreground(with_car(road(seed=seed), 230))
    assert mask[45, 60] == 255
    assert np.count_nonzero(background.foreground(road(seed=99))) == 0


def test_a_frame_that_is_all_foreground_is_survived() -> None:
    background = learned()
    for level in (255, 255, 0, 0):
        background.foreground(np.full((90, 160), level, np.uint8))
    assert background.foreground(road()).shape == (90, 160)


def test_masks_are_not_written_again() -> None:
    background = learned()
    masks = [background.foreground(with_car(road(seed=seed), 200 + seed)) for seed in range(5)]
    copies = [mask.copy() for mask in masks]
    background.foreground(road())
    assert all(np.array_equal(mask, copy) for mask, copy in zip(masks, copies, strict=True))
