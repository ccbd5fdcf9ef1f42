"""What an item of ball tracking weighs at every split. In: the clip. Out: a table, as it stands in `apps.md`.

python3 docs/payload_sizes.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from task_offload.picture import Picture
from task_offload.runner import Kind, Runner, States
from task_offload.task import Item, load_app
from task_offload.wire.codec import Encoder

APP = "ball_tracking_example.taskified"
EVERY = 10  # frames: neighbours weigh the same
COLUMNS = ("all without loss", "frame as `picture`", "and `--codec zstd`", "without the frame")


def measure() -> dict[str, list[float]]:
    """Mean bytes of a payload after each task but the last: as many figures as there are `COLUMNS`."""
    chain = load_app(APP)
    assert chain.open_source is not None
    chain.open_source(None)
    runner, states = Runner(chain), States()
    lossless, usual, compressing = Encoder((), 0), Encoder((), 90), Encoder((), 90, "zstd")
    splits = range(1, len(chain.tasks))
    totals = np.zeros((len(splits), len(COLUMNS)))
    items = sequence = 0
    while (outcome := runner.run(item := _item(sequence), states, (), 0, 1)).kind is not Kind.FILTERED:
        sequence += 1
        if sequence % EVERY:
            continue
        items += 1
        for split in splits:
            if split > 1:
                outcome = runner.run(item, states, outcome.value, split - 1, split)
            args = outcome.value
            without = tuple(each for each in args if not isinstance(each, Picture))
            payloads = (lossless.encode(args), usual.encode(args), compressing.encode(args), usual.encode(without))
            totals[split - 1] += [each.size_bytes for each in payloads]
    return dict(zip(chain.names, (totals / items).tolist(), strict=False))


def _item(sequence: int) -> Item:
    return Item("device", "0" * 32, sequence, 0.0, 1)


def main() -> None:
    print("| split | after |", " | ".join(COLUMNS), "|")
    print("| ---: | --- |", " | ".join("---:" for _ in COLUMNS), "|")
    for split, (task, sizes) in enumerate(measure().items(), 1):
        print(f"| {split} | `{task}` |", " | ".join(f"{size:,.0f}" for size in sizes), "|")


if __name__ == "__main__":
    main()
