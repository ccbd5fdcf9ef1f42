"""Run reports. In: what was counted. Out: a JSON file, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from task_offload.errors import StoreError
from task_offload.wire.messages import Load


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a run report. What is no ordinary file (a pipe, /dev/stdout) is written to, and not replaced.

    Raises:
        StoreError: the file cannot be written.
    """
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text)
            return
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"the report {path} cannot be written: {error.strerror}; give another file") from error


def load_report(load: Load) -> dict[str, float | None]:
    """A device's load for a report; without a temperature where there is no sensor."""
    return {
        "process_cpu": round(load.process_cpu, 3),
        "machine_cpu": round(load.machine_cpu, 3),
        "memory": round(load.memory, 3),
        "temperature_c": None if math.isnan(load.temperature_c) else round(load.temperature_c, 1),
        "resident_bytes": load.resident_bytes,
    }
