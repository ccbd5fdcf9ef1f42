"""Renders the clip that ships with the example, and its ground truth. In: nothing. Out: `ball.mp4` and `ball.csv`.

    python3 -m ball_tracking_example.render_clip

A tennis ball bounces, rolls and swings before a brick wall with grass, a bush, a post and a green crate. Clouds and
foliage change the light, the camera is held by hand, its sensor is noisy and its shutter open for half of a frame.
Everything follows from `SEED`. Ball positions are in pixels of the frame; (0, 0) is the centre of its first pixel.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ball_tracking_example import CLIP, CLIP_TRUTH

SEED = 20150914
WIDTH, HEIGHT, FPS, FRAMES = 640, 360, 24, 480
MARGIN = 16  # pixels that the scene is larger on each side, so that a shaking camera sees no border
SHUTTER = 0.5  # of a frame's time
SUBFRAMES = 8  # moments within it, for motion blur
GROUND_Y = 262  # where the wall stands on the ground

BALL_COLOUR = np.array((62, 208, 172), np.float32)
SEAM_COLOUR = np.array((178, 214, 206), np.float32)


@dataclass(frozen=True)
class Truth:
    """Where the ball really is at the middle of the exposure.

    Attributes:
        x, y, radius: pixels of the frame; None where nothing of the ball is seen.
        visible: the share of its disc that is seen, 0 to 1.
    """

    x: float | None
    y: float | None
    radius: float | None
    visible: float


class Scene:
    """The scene before the camera. `frame(index)` renders any frame without those before it."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self._shape = (HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
        self._wall = self._background(rng)
        self._front, self._front_alpha = self._foreground(rng)
        self._shade = _clouds(rng, (self._shape[0], 3 * self._shape[1]), octaves=5, coarsest=96)
        self._grid = np.mgrid[0 : self._shape[0], 0 : self._shape[1]].astype(np.float32)

    def frame(self, index: int) -> tuple[np.ndarray, Truth]:
        """The image of frame `index`, 8 bits a channel, blue, green, red, and the truth about it."""
        rng = np.random.default_rng((SEED, index))
        image = self._wall.copy()
        moments = index + np.linspace(-SHUTTER / 2, SHUTTER / 2, SUBFRAMES)
        seen, whole = 0.0, 1e-9
        balls = [ball for ball in map(_ball, moments) if ball is not None]
        front = self._sway(self._front, index)
        front_alpha = self._sway(self._front_alpha, index)[..., None]
        if balls:
            self._cast_shadow(image, balls[len(balls) // 2])
            alpha = np.zeros((*self._shape, 1), np.float32)
            colour = np.zeros((*self._shape, 3), np.float32)
            for x, y, radius, turn in balls:
                self._add_ball(colour, alpha, (x + MARGIN, y + MARGIN), radius, turn)
                whole += np.pi * radius**2 / SUBFRAMES
            image = image * (1 - alpha) + colour
            inside = np.zeros_like(alpha)
            inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = 1
            seen = float((alpha * (1 - front_alpha) * inside).sum())
        image = image * (1 - front_alpha) + front * front_alpha
        image *= self._light(index)
        shake = _shake(index)
        view = cv2.warpAffine(image, shake, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        view = cv2.GaussianBlur(view, (0, 0), 0.8)  # the lens
        view = _sensor(view, rng)
        centre = _ball(index)
        visible = min(1.0, seen / whole)
        if centre is None or visible < 0.01:
            return view, Truth(None, None, None, 0.0)
        x, y, radius, _ = centre
        # warpAffine's matrix leads from the scene to the view
        x, y = shake @ np.array((x + MARGIN, y + MARGIN, 1.0))
        return view, Truth(round(float(x), 2), round(float(y), 2), round(radius, 2), round(visible, 3))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        height, width = self._shape
        horizon = GROUND_Y + MARGIN
        image = np.zeros((height, width, 3), np.float32)
        image[:] = (128, 142, 152)  # mortar
        for row, top in enumerate(range(-4, horizon, 22)):
            for left in range(-60 + (row % 2) * 29, width, 58):
                tone = rng.normal(1, 0.09)
                brick = np.array((96, 112, 158), np.float32) * tone + rng.normal(0, 5, 3)
                cv2.rectangle(image, (left, top), (left + 54, top + 18), brick.tolist(), -1)
        image = cv2.GaussianBlur(image, (0, 0), 0.8)
        image[horizon:] = (132, 146, 150)  # a path of concrete
        image += 26 * _clouds(rng, self._shape, octaves=6, coarsest=64)[..., None]
        image += rng.normal(0, 7, (height, width, 1)).astype(np.float32)
        slope = np.linspace(1.12, 0.72, width, dtype=np.float32)[None, :, None]
        image *= slope * np.linspace(0.86, 1.08, height, dtype=np.float32)[:, None, None]
        image[horizon - 6 : horizon + 4] *= 0.72  # the dark joint where wall meets path
        _grass(image, rng, base=horizon + 6, count=3000, longest=24)
        self._sign(image, left=96, top=46)
        self._crate(image, left=420, bottom=horizon + 24, rng=rng)
        return cv2.GaussianBlur(np.clip(image, 0, 255), (0, 0), 0.8)  # a little behind the lens's focus

    @staticmethod
    def _sign(image: np.ndarray, left: int, top: int) -> None:
        image[top + 3 : top + 47, left + 4 : left + 65] *= 0.6  # its shadow on the wall
        plate = image[top : top + 44, left : left + 62]
        plate[:] = np.array((58, 118, 44), np.float32) * np.linspace(1.1, 0.9, 62, dtype=np.float32)[None, :, None]
        for x, y, to_x, to_y in ((18, 11, 18, 33), (32, 11, 46, 11), (46, 11, 37, 33)):  # house number 17
            cv2.line(image, (left + x, top + y), (left + to_x, top + to_y), (206, 214, 210), 4)

    @staticmethod
    def _crate(image: np.ndarray, left: int, bottom: int, rng: np.random.Generator) -> None:
        width, height = 84, 56
        shadow = image[bottom - 5 : bottom + 9, left - 2 : left + width + 22]
        shadow *= np.linspace(0.45, 0.9, 14, dtype=np.float32)[:, None, None]
        image[bottom - height : bottom, left : left + width] = (22, 46, 24)
        for row in range(4):
            top = bottom - height + 14 * row
            slat = image[top : top + 11, left : left + width]
            slat[:] = np.array((60, 122, 66), np.float32) * np.linspace(1.15, 0.8, 11, dtype=np.float32)[:, None, None]
            slat += rng.normal(0, 5, slat.shape).astype(np.float32)
        for x in (left, left + width // 2 - 4, left + width - 8):
            post = image[bottom - height : bottom, x : x + 8]
            post[:] = np.array((54, 112, 58), np.float32) * np.linspace(1.1, 0.85, 8, dtype=np.float32)[None, :, None]

    def _foreground(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        height, width = self._shape
        image = np.zeros((height, width, 3), np.float32)
        alpha = np.zeros((height, width), np.float32)
        post = slice(246, 276)
        shading = np.sin(np.linspace(0.35, 2.6, 30)).astype(np.float32)[None, :, None]
        grain = _clouds(rng, (height, 30), octaves=5, coarsest=16)[..., None]
        image[:, post] = np.array((66, 92, 122), np.float32) * (0.55 + 0.6 * shading) + 18 * grain
        alpha[:, post] = 1
        for _ in range(420):  # a bush of leaves in the right corner
            x, y = width - np.abs(rng.normal(0, 46)), height - np.abs(rng.normal(20, 42))
            tone = rng.uniform(0.45, 1.15)
            colour = np.array((rng.uniform(48, 74), rng.uniform(96, 124), rng.uniform(62, 92))) * tone
            axes = (int(rng.uniform(7, 13)), int(rng.uniform(2, 4)))
            turn = float(rng.uniform(0, 180))
            cv2.ellipse(image, (int(x), int(y)), axes, turn, 0, 360, colour.tolist(), -1, cv2.LINE_AA)
            cv2.ellipse(alpha, (int(x), int(y)), axes, turn, 0, 360, 1.0, -1, cv2.LINE_AA)
        return image, alpha

    def _sway(self, layer: np.ndarray, index: int) -> np.ndarray:
        """Wind moves the bush; the post, further left, stands."""
        y, x = self._grid
        t = index / FPS
        wind = 1.6 * np.sin(3.3 * t) + 0.9 * np.sin(8.1 * t + 1)
        push = wind * np.clip((x - 400) / 240, 0, 1) * np.clip((self._shape[0] - y) / 120, 0, 1.5)
        return cv2.remap(layer, x + push.astype(np.float32), y, cv2.INTER_LINEAR)

    def _add_ball(
        self, colour: np.ndarray, alpha: np.ndarray, centre: tuple[float, float], radius: float, turn: float
    ) -> None:
        reach = int(radius) + 3
        left, top = int(centre[0]) - reach, int(centre[1]) - reach
        right, bottom = left + 2 * reach, top + 2 * reach
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, self._shape[1]), min(bottom, self._shape[0])
        if left >= right or top >= bottom:
            return
        y, x = self._grid[:, top:bottom, left:right]
        x, y = (x - centre[0]) / radius, (y - centre[1]) / radius
        distance = np.hypot(x, y)
        cover = np.clip((1 - distance) * radius + 0.5, 0, 1)[..., None] / SUBFRAMES
        z = np.sqrt(np.clip(1 - distance**2, 0, 1))
        diffuse = np.clip(-0.45 * x - 0.62 * y + 0.64 * z, 0, 1)
        bounce = np.clip(y, 0, 1) * 0.12  # light from the ground
        u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        u, w = u * np.cos(0.6) - z * np.sin(0.6), u * np.sin(0.6) + z * np.cos(0.6)
        seam = np.clip(1.6 - np.abs(w - 1.1 * (u**2 - v**2) - 0.15) * 18, 0, 1)[..., None]
        felt = 1 + 0.05 * np.sin(23 * u + 7 * v) * np.sin(19 * v - 11 * w) + 0.04 * np.sin(41 * w + 31 * u)
        tone = (0.34 + 0.72 * diffuse + bounce)[..., None] * felt[..., None]
        shine = 26 * np.clip(diffuse, 0, 1)[..., None] ** 12
        surface = (BALL_COLOUR * (1 - seam) + SEAM_COLOUR * seam) * tone + shine
        colour[top:bottom, left:right] += cover * np.clip(surface, 0, 255)
        alpha[top:bottom, left:right] += cover

    def _cast_shadow(self, image: np.ndarray, ball: tuple[float, float, float, float]) -> None:
        x, y, radius, _ = ball
        floor_y = max(GROUND_Y + 34.0, y + radius) + MARGIN
        height = max(0.0, floor_y - MARGIN - y - radius)
        ys, xs = self._grid
        far = np.hypot((xs - x - MARGIN - 0.5 * height - 4) / (1.3 * radius), (ys - floor_y) / (0.4 * radius))
        softness = 0.35 + height / 90
        image *= (1 - 0.5 / (1 + height / 60) / (1 + np.exp(np.clip((far - 1) / softness * 3, -30, 30))))[..., None]

    def _light(self, index: int) -> np.ndarray:
        """Clouds, the camera's exposure that follows them late, and the green shade of foliage that drifts by."""
        t = index / FPS
        exposure = 1 + 0.13 * np.sin(t / 2.1) + 0.05 * np.sin(t * 1.9)
        if 12 <= t < 15:  # the sun comes out, and the exposure needs a while
            exposure *= 1 + 0.38 * np.exp(-(t - 12) / 0.7)
        offset = int(t * 39) % (2 * self._shape[1])
        foliage = self._shade[:, offset : offset + self._shape[1]]
        depth = np.clip(foliage * 2.2 - 0.2, 0, 1)[..., None] * (0.6 + 0.4 * np.sin(t / 3.0))
        return (exposure * (1 - depth * np.array((0.40, 0.33, 0.385)))).astype(np.float32)


def _ball(moment: float) -> tuple[float, float, float, float] | None:
    """(x, y, radius, turn) of the ball at a moment in frames, or None while it is away."""
    t = moment / FPS
    if 1.2 <= t < 4.6:  # it bounces in from the left, passes behind the post and leaves on the right
        s = t - 1.2
        return -30 + 225 * s, _bounce(s, start=60, floor=312), 21 - 0.8 * s, 6 * s
    if 5.8 <= t < 10.2:  # it rolls back, out of the bush
        s = t - 5.8
        return 660 - 230 * s + 11 * s**2, 322 + 2 * s, 16 + 0.8 * s, -9 * s
    if 11.6 <= t < 13.0:  # thrown fast, close to the camera
        s = t - 11.6
        return -40 + 560 * s, 250 - 420 * s + 330 * s**2, 24 + 6 * s, 20 * s
    if 14.2 <= t < 19.0:  # it swings on a line, and comes nearer
        s = t - 14.2
        swing = 1.15 * np.cos(2.5 * s) * np.exp(-s / 12)
        length = 215 + 14 * s
        rise = max(0.0, 0.9 - s) ** 2 * 260 + max(0.0, s - 4.0) ** 2 * 420
        return 400 + length * np.sin(swing), -62 + length * np.cos(swing) - rise, 17 + 4.2 * s, swing
    return None


def _bounce(s: float, start: float, floor: float) -> float:
    """Height of a ball dropped at `start`, in pixels from the top; each bounce keeps 0.72 of the height."""
    gravity, height = 900.0, floor - start
    fall = np.sqrt(2 * height / gravity)
    if s < fall:
        return start + gravity * s**2 / 2
    s -= fall
    while True:
        height *= 0.72
        flight = 2 * np.sqrt(2 * height / gravity)
        if s < flight:
            return floor - gravity * s * (flight - s) / 2
        s -= flight


def _shake(index: int) -> np.ndarray:
    """The hand that holds the camera: the matrix from the scene to the view."""
    t = index / FPS
    dx = 2.4 * np.sin(0.9 * t) + 0.9 * np.sin(2.3 * t + 1) + 0.25 * np.sin(7.0 * t)
    dy = 1.9 * np.sin(0.7 * t + 2) + 0.7 * np.sin(2.9 * t) + 0.25 * np.sin(7.9 * t + 1)
    angle = 0.004 * np.sin(0.6 * t) + 0.001 * np.sin(2.1 * t)
    cos, sin = np.cos(angle), np.sin(angle)
    middle_x, middle_y = WIDTH / 2, HEIGHT / 2
    return np.array(
        (
            (cos, -sin, middle_x + dx - cos * (middle_x + MARGIN) + sin * (middle_y + MARGIN)),
            (sin, cos, middle_y + dy - sin * (middle_x + MARGIN) - cos * (middle_y + MARGIN)),
        )
    )


def _sensor(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shot noise and read noise, a little wider than a pixel because of the colour filter; then 8 bits."""
    noise = rng.standard_normal(view.shape, np.float32)
    noise = 0.65 * cv2.GaussianBlur(noise, (0, 0), 0.6)
    view = view + noise * np.sqrt(0.10 * np.clip(view, 0, 255) + 4)
    return np.clip(view + 0.5, 0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, shape: tuple[int, int], octaves: int, coarsest: int) -> np.ndarray:
    """Fractal noise around 0, about -1 to 1: octaves of random values, each half as wide and high as the one before."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cell = max(1, coarsest >> octave)
        coarse = rng.normal(0, 1, (shape[0] // cell + 2, shape[1] // cell + 2)).astype(np.float32)
        fine = cv2.resize(coarse, (coarse.shape[1] * cell, coarse.shape[0] * cell), interpolation=cv2.INTER_CUBIC)
        total += fine[: shape[0], : shape[1]] / 2**octave
    return total / 2


def _grass(image: np.ndarray, rng: np.random.Generator, base: int, count: int, longest: int) -> None:
    """Blades that lean, from the back to the front, thicker and thinner in places."""
    width = image.shape[1]
    density = 0.8 + 0.2 * np.sin(np.arange(width) / 37.0) * np.sin(np.arange(width) / 11.0 + 1)
    xs = rng.choice(width, count, p=density / density.sum())
    for x, y in zip(xs, np.sort(rng.normal(base, 4, count)), strict=True):
        length, lean = rng.uniform(0.3, 1) * longest, rng.normal(0, 5)
        tone = rng.uniform(0.5, 1.2)
        colour = np.array((rng.uniform(40, 70), rng.uniform(92, 125), rng.uniform(70, 110))) * tone
        points = np.array(((x, y), (x + lean * 0.3, y - length * 0.6), (x + lean, y - length)))
        cv2.polylines(image, [points.round().astype(np.int32)], False, colour.tolist(), 1, cv2.LINE_AA)


def render() -> Iterator[tuple[np.ndarray, Truth]]:
    """Every frame of the clip with its truth."""
    scene = Scene()
    for index in range(FRAMES):
        yield scene.frame(index)


def main(clip: Path = CLIP, truth_file: Path = CLIP_TRUTH) -> None:
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    with truth_file.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("frame", "x", "y", "radius", "visible"))
        for index, (image, truth) in enumerate(render()):
            writer.write(image)
            table.writerow((index, truth.x, truth.y, truth.radius, truth.visible))
    writer.release()


if __name__ == "__main__":
    main()
