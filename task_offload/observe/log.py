"""Log lines of both commands. In: nothing. Out: lines on stderr."""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Log lines as both commands print them."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
