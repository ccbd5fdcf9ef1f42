"""Records for the tests of this folder."""

from __future__ import annotations

from typing import Any

from task_offload.results.base import Record, Row, SessionBooks, SessionKey

SESSION = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2


def record(sequence: int = 0, ending: str = "completed", detail: str | None = None, **fields: Any) -> Record:
    values: dict[str, Any] = {
        "device": "pi-1", "session": SESSION, "split": 3, "result": None,
        "captured_at": 1_000_000.0 + sequence, "finished_at": 1_000_000.5 + sequence,
    }  # fmt: skip
    return Record(**{**values, **fields, "sequence": sequence, "ending": ending, "detail": detail})


def row(sequence: int = 0, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "device": "pi-1", "session": SESSION, "sequence": sequence, "split": 3, "ending": "completed",
        "detail": None, "result": None, "captured_at": 1_000_000.0 + sequence, "finished_at": 1_000_000.5 + sequence,
    }  # fmt: skip
    return Row(**{**values, **fields})


def books(watermark: int, device: str = "pi-1", session: str = SESSION) -> dict[SessionKey, SessionBooks]:
    return {(device, session): SessionBooks(watermark=watermark, completed=watermark)}
