"""Renders the clip of this example and its ground truth: traffic on four lanes, seen from above.

    python3 -m traffic_example.render_clip            writes traffic.mp4 and traffic_truth.csv beside this file

In: nothing but the list of vehicles below and a seed. Out: the same frames each time. The scene has what makes
counting hard: asphalt with texture, camera noise, motion blur, soft shadows, vehicles of many sizes, speeds and
colours (one nearly that of the road), neighbours side by side, one that stops on its way, clouds that pass, and an
exposure that follows them late.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
WIDTH, HEIGHT, FRAMES, FPS = 480, 270, 270, 15.0
SEED = 2019
LANE_CENTERS = (118, 196, 284, 362)  # pixels; the left two lead down, the right two up
SUBSTEPS = 3  # positions drawn over each other for the motion blur
SUPERSAMPLING = 4
NOISE = 3.0  # standard deviation, of 255
SHADOW, SHADOW_OFFSET = 0.55, (7, 5)

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Vehicle:
    """One vehicle on its way through the picture.

    Attributes:
        kind: a key of `SIZES`.
        color: blue, green, red.
        lane: index into `LANE_CENTERS`.
        enters: frame in which its front reaches the picture.
        speed: pixels a frame.
        stops: frames that it stands still for, once its centre is a fifth of the picture before the middle.
    """

    kind: str
    color: tuple[int, int, int]
    lane: int
    enters: int
    speed: float
    stops: int = 0

    @property
    def direction(self) -> str:
        return "down" if self.lane < 2 else "up"

    def center(self, frame: float) -> tuple[float, float]:
        """Its centre in pixels at a time in frames."""
        way = self.speed * (frame - self.enters) - SIZES[self.kind][1] / 2
        stop_at = 0.3 * HEIGHT
        if self.stops and way > stop_at:
            way = max(stop_at, way - self.stops * self.speed)
        return LANE_CENTERS[self.lane], way if self.direction == "down" else HEIGHT - way

    @property
    def crosses(self) -> int:
        """The first frame in which its centre is past the middle of the picture."""
        ahead = 1 if self.direction == "down" else -1
        return next(n for n in range(self.enters, FRAMES) if ahead * (self.center(n)[1] - HEIGHT / 2) >= 0)


SIZES = {"motorcycle": (15, 36), "car": (40, 84), "van": (44, 104), "truck": (52, 168)}  # width, length in pixels
WHITE, SILVER, BLACK, RED, BLUE, YELLOW = (
    (235, 236, 238), (140, 138, 136), (38, 36, 36), (48, 40, 190), (150, 84, 40), (60, 190, 220),
)  # fmt: skip
VEHICLES = (
    Vehicle("car", WHITE, 0, 18, 5.0),
    Vehicle("car", RED, 2, 24, 4.2),
    Vehicle("car", BLACK, 3, 58, 6.0),
    Vehicle("truck", YELLOW, 1, 66, 3.6),
    Vehicle("motorcycle", RED, 2, 96, 7.5),
    Vehicle("car", SILVER, 0, 104, 4.6),
    Vehicle("van", BLUE, 3, 128, 4.0),
    Vehicle("car", WHITE, 2, 150, 4.4, stops=30),
    Vehicle("car", BLACK, 1, 172, 5.2),
    Vehicle("car", RED, 0, 182, 6.4),
    Vehicle("truck", WHITE, 3, 196, 4.2),
    Vehicle("car", BLUE, 1, 206, 4.8),
    Vehicle("motorcycle", BLACK, 0, 214, 6.0),
    Vehicle("car", SILVER, 2, 214, 5.4),
)


def frames() -> Iterator[Image]:
    """The frames, of shape (HEIGHT, WIDTH, 3), in the order blue, green, red."""
    random = np.random.default_rng(SEED)
    road = _road(random)
    sprites = [_sprite(each) for each in VEHICLES]
    exposure = 1.0
    for number in range(FRAMES):
        light = _light(number)
        exposure += 0.12 * (0.6 / light + 0.4 - exposure)
        # The shutter is open for half of a frame's time.
        scenes = [_with_vehicles(road, sprites, number + 0.5 * step / SUBSTEPS) for step in range(SUBSTEPS)]
        scene = sum(scenes) * np.float32(light * exposure / SUBSTEPS)
        scene += random.normal(0, NOISE, scene.shape).astype(np.float32)
        yield np.clip(scene, 0, 255).astype(np.uint8)


def _light(number: int) -> float:
    """Sunlight: two clouds pass, the second one thick and fast."""
    thin = 0.10 * np.exp(-(((number - 90) / 30) ** 2))
    thick = 0.35 / (1 + np.exp(-(number - 196) / 4)) / (1 + np.exp((number - 236) / 4))
    return float(1.0 - thin - thick)


def _road(random: np.random.Generator) -> Floats:
    asphalt = np.full((HEIGHT, WIDTH), 108, np.float32)
    for grain, contrast in ((1, 5.0), (3, 4.0), (40, 7.0)):
        noise = random.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), grain)
        asphalt += contrast * noise / noise.std()
    road = cv2.merge([asphalt * 1.02, asphalt, asphalt * 0.98])
    grass = random.normal(0, 14, (HEIGHT, WIDTH, 1)).astype(np.float32) + np.float32([62, 118, 96])
    verge = np.abs(np.arange(WIDTH) - WIDTH / 2) > 172
    road[:, verge] = grass[:, verge]
    for x in (157, 323):
        for y in range(-10, HEIGHT, 60):
            cv2.rectangle(road, (x - 2, y), (x + 1, y + 27), (205, 208, 210), -1)
    for x in (72, 237, 243, 408):
        cv2.line(road, (x, 0), (x, HEIGHT), (200, 204, 206), 2)
    return cv2.GaussianBlur(road, (0, 0), 0.8)


def _sprite(vehicle: Vehicle) -> tuple[Floats, Floats]:
    """A vehicle that drives up, and how opaque it is, with a margin around it."""
    width, length = (SUPERSAMPLING * each for each in SIZES[vehicle.kind])
    margin = 4 * SUPERSAMPLING
    size = (length + 2 * margin, width + 2 * margin)
    color = np.full((*size, 3), vehicle.color, np.float32)
    opaque = np.zeros(size, np.float32)

    def part(left: float, top: float, right: float, bottom: float, shade: tuple[float, ...] | None = None) -> None:
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) * (width, length) + margin
        hull = cv2.ellipse2Poly((0, 0), (width // 10, width // 10), 0, 0, 360, 15)
        inner = (corners - corners.mean(axis=0)) * (1 - 0.2 * width / np.ptp(corners, axis=0)) + corners.mean(axis=0)
        outline = cv2.convexHull((inner[:, None] + hull[None]).reshape(-1, 2).astype(np.int32))
        if shade is None:
            cv2.fillConvexPoly(opaque, outline, 1.0)
        else:
            cv2.fillConvexPoly(color, outline, shade)

    glass, body = (70.0, 62.0, 58.0), np.array(vehicle.color, np.float64)
    part(0, 0, 1, 1)
    if vehicle.kind == "truck":
        part(0.03, 0.17, 0.97, 0.98, tuple(np.minimum(body * 0.55 + 105, 240)))
        part(0.14, 0.04, 0.86, 0.10, glass)
    elif vehicle.kind == "motorcycle":
        part(0.1, 0.35, 0.9, 0.75, (30.0, 30.0, 34.0))
    else:
        part(0.06, 0.22, 0.94, 0.92, tuple(body * 0.8))
        part(0.14, 0.24, 0.86, 0.36, glass)
        part(0.16, 0.38, 0.84, 0.74, tuple(np.minimum(body * 1.08, 250)))
        part(0.18, 0.77, 0.82, 0.86, glass)
    if vehicle.direction == "down":
        color, opaque = cv2.flip(color, 0), cv2.flip(opaque, 0)
    return cv2.GaussianBlur(color, (0, 0), 3), cv2.GaussianBlur(opaque, (0, 0), 2)


def _with_vehicles(road: Floats, sprites: list[tuple[Floats, Floats]], time: float) -> Floats:
    scene = road.copy()
    for vehicle, (color, opaque) in zip(VEHICLES, sprites, strict=True):
        x, y = vehicle.center(time)
        if not -100 < y < HEIGHT + 100:
            continue
        shadow = cv2.GaussianBlur(_placed(opaque, x + SHADOW_OFFSET[0], y + SHADOW_OFFSET[1]), (0, 0), 2.5)
        scene *= 1 - (1 - SHADOW) * shadow[:, :, None]
        alpha = _placed(opaque, x, y)[:, :, None]
        scene = scene * (1 - alpha) + _placed(color, x, y) * alpha
    return scene


def _placed(sprite: Floats, x: float, y: float) -> Floats:
    height, width = sprite.shape[:2]
    scale = 1 / SUPERSAMPLING
    onto = np.float32([[scale, 0, x - width * scale / 2], [0, scale, y - height * scale / 2]])
    return cv2.warpAffine(sprite, onto, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)


def main() -> None:
    """Writes the clip and its truth, or ends with a line on stderr where OpenCV cannot encode."""
    writer = cv2.VideoWriter(str(HERE / "traffic.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        sys.exit("this build of OpenCV cannot encode mp4v; use the one that pip install opencv-python gives")
    for frame in frames():
        writer.write(frame)
    writer.release()
    with (HERE / "traffic_truth.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["kind", "direction", "crosses_at_frame"])
        rows.writerows([each.kind, each.direction, each.crosses] for each in sorted(VEHICLES, key=lambda v: v.crosses))


if __name__ == "__main__":
    main()
