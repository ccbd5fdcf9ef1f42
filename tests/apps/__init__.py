"""Small deterministic apps for the tests, loaded by file."""

from typing import Any


def expected_of_counter(number: int, device: str) -> tuple[str, str | None, dict[str, Any] | None]:
    """How item `number` of `counter` ends on a device of this name: ending, detail and result."""
    if number % 3 == 2:
        return "filtered", "keep_most", None
    return "completed", None, {"number": number, "label": f"{number}:{number * number}", "device": device}
