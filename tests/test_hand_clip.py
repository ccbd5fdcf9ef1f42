"""Ball tracking on real footage: the same results at every split, pictures as JPEG or not.

Here on the clip's beginning; `python3 -m benchmarks.equality CLIP` does the same for the whole of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.equality import compare
from tests.support.processes import Lab

FRAMES = 60  # half of them are empty, then the hand moves in


@pytest.mark.timeout(180)
def test_results_are_equal_at_every_split(lab: Lab, hand_clip: Path, undo_imports: None) -> None:
    runs = [(1, 0), (2, 90), (3, 0), (4, 90), (5, 90), (6, 90)]
    assert compare(lab, hand_clip, FRAMES, runs, at_once=3) == []
