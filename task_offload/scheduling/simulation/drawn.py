"""Worlds drawn at random, so that policies are judged where nobody tuned them. In: a seed. Out: a world.

Chain, device, link, source, target and what changes half-way are all drawn, wide enough to hold what users bring. The
same seed always gives the same world.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from task_offload.scheduling import cost_model
from task_offload.scheduling.simulation.worlds import (
    ALL_CODECS,
    ChainModel,
    Steps,
    World,
    always,
    lookalike,
    payloads,
)

DURATION_S = 450.0
CHANGE_S, RECOVERY_S = 150.0, 300.0
LINK_REPEAT_S = 180
SLOWEST_FPS, QUICKEST_FPS = 8.0, 40.0  # of the chain on the device alone: a camera's, and what needs help to get there


def draw(seed: int) -> World:
    """The world of this seed."""
    random_ = random.Random(seed)
    chain = _chain(random_)
    codecs = ALL_CODECS if random_.random() < 0.5 else ("none",)
    cores = random_.choice((1, 1, 4))
    alone_fps = _between(random_, SLOWEST_FPS, QUICKEST_FPS)
    link_mbit = _between(random_, 2.0, 150.0)
    moving = random_.random() < 0.2
    world = World(
        f"drawn {seed}",
        chain,
        target_fps=1.0,
        slowdown=always(1.0),
        cores=cores,
        link_mbit=lookalike(link_mbit, LINK_REPEAT_S, seed) if moving else always(link_mbit),
        link_repeat_s=LINK_REPEAT_S if moving else None,
        rtt_s=_between(random_, 0.005, 0.12),
        codecs=codecs,
        workers=always(random_.choice((0.5, 1.0, 2.0, 4.0))),
        device_noise=random_.uniform(0.05, 0.25),
        quota=random_.random() < 0.2,
        steady=not moving,
        duration_s=DURATION_S,
    )
    # As slow a device as gives the drawn rate at the highest split, where it does all that it may.
    highest = _at(replace(world, link_mbit=always(1e4)), chain.splits[-1])
    world = replace(world, slowdown=always(highest / alone_fps))
    found = cost_model.options(replace(world, link_mbit=always(link_mbit)).costs(0.0))
    fastest_fps = cost_model.fastest(found).capacity_fps
    # From what the device can do alone to what nothing can do.
    wish = random_.uniform(-0.1, 1.05)
    target_fps = round(alone_fps * max(1.0, fastest_fps / alone_fps) ** wish * (0.9 if wish < 0 else 1.0), 1)
    world = replace(world, target_fps=target_fps)
    if random_.random() < 0.5:
        world = replace(
            world,
            live=True,
            source_fps=target_fps * random_.uniform(1.02, 1.5),
            states_rate=random_.random() < 0.5,
        )
    return _changed(random_, world) if random_.random() < 0.6 else world


def _between(random_: random.Random, low: float, high: float) -> float:
    """Drawn evenly on a logarithmic scale."""
    return math.exp(random_.uniform(math.log(low), math.log(high)))


def _chain(random_: random.Random) -> ChainModel:
    tasks = random_.randint(4, 9)
    times = [_between(random_, 0.3e-3, 12e-3) for _ in range(tasks)]
    times[0] = _between(random_, 0.2e-3, 4e-3)
    times[-1] = _between(random_, 0.03e-3, 0.3e-3)
    survival = [1.0] * tasks
    if random_.random() < 0.35:
        survival[random_.randrange(1, tasks - 1)] = random_.uniform(0.1, 0.9)
    raw = [_between(random_, 300.0, 500e3) for _ in range(tasks - 1)]
    raw[0] = _between(random_, 20e3, 500e3)
    picture = [random_.choice((0.0, 0.0, 0.5, 0.9)) for _ in raw]
    pinned = random_.randint(2, tasks - 1) if random_.random() < 0.25 else tasks  # from here on they keep state
    return ChainModel(
        tuple(f"task {i + 1}" for i in range(tasks)),
        tuple(times),
        tuple(survival),
        payloads(raw, picture),
        tuple(pinned <= i < tasks - 1 for i in range(tasks)),
        tuple(range(1, min(pinned, tasks - 1) + 1)),
    )


def _at(world: World, split: int) -> float:
    """Throughput of one split with the first codec."""
    found = cost_model.options(world.costs(0.0))
    return next(each.capacity_fps for each in found if each.split == split)


def _changed(random_: random.Random, world: World) -> World:
    """The same world, in which something changes and mostly recovers."""

    def steps(before: float, after: float) -> Steps:
        return ((0.0, before), (CHANGE_S, after), (RECOVERY_S, before))

    kind = random_.choice(("device", "link", "survival", "task", "cloud"))
    slow = world.slowdown[0][1]
    world = replace(world, steady=False)
    task = random_.randrange(1, len(world.chain.task_s) - 1)
    if kind == "link" and world.link_repeat_s is None:
        factor = _between(random_, 2.0, 6.0)
        mbit = world.link_mbit[0][1]
        return _named(replace(world, link_mbit=steps(mbit, mbit / factor)), f"the link is {factor:.1f} times slower")
    if kind == "survival":
        before, after = world.chain.survival[task], random_.uniform(0.1, 1.0)
        words = f"{after:.0%} survive {world.chain.names[task]}"
        return _named(replace(world, survival={task: steps(before, after)}), words)
    if kind == "task":
        factor = _between(random_, 1.5, 4.0)
        words = f"{world.chain.names[task]} takes {factor:.1f} times as long"
        return _named(replace(world, task_scale={task: steps(1.0, factor)}), words)
    if kind == "cloud":
        workers = world.workers[0][1]
        return _named(replace(world, workers=steps(workers, workers * 0.1)), "others fill the cloud")
    factor = _between(random_, 1.3, 2.5)
    return _named(replace(world, slowdown=steps(slow, slow * factor)), f"the device is {factor:.1f} times slower")


def _named(world: World, words: str) -> World:
    return replace(world, changes=((CHANGE_S, words), (RECOVERY_S, "as before")))
