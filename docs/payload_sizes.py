"""What an item of ball tracking weighs at every split. In: the clip. Out: a table, as it stands in `apps.md`.

python3 docs/payload_sizes.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from task_offload.picture import Picture
from task_offload.runner import Kind, Runner, States
from task_offload.task import Chain, Item, load_app
from task_offload.wire.codec import Encoder

APP = "ball_tracking_example.taskified"
EVERY = 10  # frames: neighbours weigh the same


def measure(chain: Chain, split: int) -> tuple[float, float, float]:
    """Mean bytes of a payload: all of it without loss, with pictures as JPEG, and without its pictures."""
    assert chain.open_source is not None
    chain.open_source(None)
    runner, states = Runner(chain), States()
    encoders = (Encoder(chain.payload_types, 0), Encoder(chain.payload_types, 90), Encoder(chain.payload_types, 90))
    sizes = [0, 0, 0]
    sequence = items = 0
    while True:
        item = Item("device", "0" * 32, sequence, 0.0, split)
        outcome = runner.run(item, states, (), 0, 1)
        if outcome.kind is Kind.FILTERED:
            return sizes[0] / items, sizes[1] / items, sizes[2] / items
        if sequence % EVERY == 0:
            if split > 1:
                outcome = runner.run(item, states, outcome.value, 1, split)
            args: tuple[Any, ...] = outcome.value
            without = tuple(each for each in args if not isinstance(each, Picture))
            for place, (encoder, passed) in enumerate(zip(encoders, (args, args, without), strict=True)):
                sizes[place] += encoder.encode(passed).size_bytes
            items += 1
        sequence += 1


def main() -> None:
    chain = load_app(APP)
    print("| split | after | all without loss | frame as `picture` | without the frame |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for split in chain.splits:
        lossless, marked, without = measure(chain, split)
        print(f"| {split} | `{chain.names[split - 1]}` | {lossless:,.0f} | {marked:,.0f} | {without:,.0f} |")


if __name__ == "__main__":
    main()
