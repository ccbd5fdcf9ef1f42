"""How an item's ending is written down. In: the cloud's records. Out: rows of text and numbers, and session books.

Record  (result: what the last task gave)  ->  Row  (result: JSON)  ->  the store, then each sink
                                           ->  SessionBooks         ->  the store, then the ack
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

COMPLETED: Final = "completed"
FILTERED: Final = "filtered"
DROPPED: Final = "dropped"
ENDINGS: Final = (COMPLETED, FILTERED, DROPPED)

RESULT_BYTES: Final = 64 * 1024  # a result is what people query, not a picture
DETAIL_CHARACTERS: Final = 500
MAX_REASONS: Final = 32  # of drops, in a session's books; a device invents no more of them
OTHER_REASON: Final = "other"
MAX_SEQUENCE: Final = 2**63 - 1  # what an SQLite integer holds

SessionKey = tuple[str, str]
"""Device name and session."""


class Record(NamedTuple):
    """How an item ended; for drops, how a run of items with adjacent sequences ended.

    Attributes:
        device: name of the device.
        session: the session's identity, 32 hexadecimal digits.
        sequence: number of the item on its device; of the first one where `items` is more than 1.
        split: how many tasks ran on the device for it.
        ending: "completed", "filtered" or "dropped".
        detail: the filtering task, or the drop's reason. What follows a colon in a reason is for people only and not
            counted apart. None for a completed item.
        result: what the last task gave, plain data or None.
        captured_at, finished_at: Unix seconds by the cloud's clock.
        cloud_cpu_s: CPU seconds that the cloud spent on the session since its record before this one.
        bytes_received: bytes that came from the session since its record before this one.
        items: how many items, with the sequences from `sequence` on ended this way; each becomes a row.
    """

    device: str
    session: str
    sequence: int
    split: int
    ending: str
    detail: str | None
    result: Any
    captured_at: float
    finished_at: float
    cloud_cpu_s: float = 0.0
    bytes_received: int = 0
    items: int = 1

    def check(self) -> None:
        """Raises ValueError if a field is out of its range, so that no record can block those behind it."""
        if not 0 <= self.sequence <= MAX_SEQUENCE - self.items or self.items < 1:
            raise ValueError(f"sequence {self.sequence} with {self.items} is out of range")
        if self.ending not in ENDINGS:
            raise ValueError(f"ending is one of {', '.join(ENDINGS)}, not {self.ending!r}")
        if self.items > 1 and self.ending != DROPPED:
            raise ValueError("only drops are recorded as a run")
        if not (math.isfinite(self.captured_at) and math.isfinite(self.finished_at)):
            raise ValueError("captured_at and finished_at are finite Unix seconds")


class Row(NamedTuple):
    """One row of the table `items`, in the order of its columns. `result` is JSON or None."""

    device: str
    session: str
    sequence: int
    split: int
    ending: str
    detail: str | None
    result: str | None
    captured_at: float
    finished_at: float


@dataclass(frozen=True)
class SessionBooks:
    """What is recorded of a session, from its beginning and across restarts of the cloud.

    Attributes:
        watermark: the next sequence that is not recorded; 0 for a new session.
        completed, filtered: items that ended so.
        dropped: dropped items by reason.
        cloud_cpu_s: CPU seconds that the cloud spent on the session.
        bytes_received: bytes that came from it.
    """

    watermark: int = 0
    completed: int = 0
    filtered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    cloud_cpu_s: float = 0.0
    bytes_received: int = 0

    def extended(self, records: Iterable[Record]) -> SessionBooks:
        """These books with the session's next records entered; every record is at or above the watermark."""
        watermark, completed, filtered = self.watermark, self.completed, self.filtered
        cloud_cpu_s, bytes_received = self.cloud_cpu_s, self.bytes_received
        dropped = dict(self.dropped)
        for record in records:
            watermark = record.sequence + record.items
            cloud_cpu_s += record.cloud_cpu_s
            bytes_received += record.bytes_received
            if record.ending == COMPLETED:
                completed += 1
            elif record.ending == FILTERED:
                filtered += 1
            else:
                reason = (record.detail or OTHER_REASON).partition(":")[0]
                if reason not in dropped and len(dropped) >= MAX_REASONS:
                    reason = OTHER_REASON
                dropped[reason] = dropped.get(reason, 0) + record.items
        return SessionBooks(watermark, completed, filtered, dropped, cloud_cpu_s, bytes_received)


class Store(Protocol):
    """The book of record: what it has written is recorded, and may be acknowledged."""

    def books(self, device: str, session: str) -> SessionBooks:
        """What is recorded of a session. Any thread may ask. Raises StoreError."""

    def write(self, rows: Sequence[Row], books: Mapping[SessionKey, SessionBooks]) -> None:
        """Writes rows and the books that they lead to, all or nothing.

        Raises:
            StoreError: nothing of it is recorded, and the store stays usable.
        """

    def tidy(self) -> bool:
        """Called where there is nothing to write. Returns whether it should be called again soon. Raises StoreError."""

    def close(self) -> None:
        """Closes the store; what was written stays."""


class Sink(Protocol):
    """Another place that results go to, after they are recorded. One thread calls it."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def write(self, rows: Sequence[Row]) -> None:
        """Writes rows. Raises StoreError: none of them is written, and they may be tried again."""

    def close(self) -> None:
        """Closes the sink, with what was written flushed."""


def rows_of(record: Record) -> list[Row]:
    """The rows of a record: one, or `items` of them for a run of drops.

    A result that is not plain data, or whose JSON is longer than `RESULT_BYTES`, is not recorded: `result` is None and
    `detail` says why. The item is completed all the same.
    """
    result: str | None = None
    detail = record.detail
    if record.result is not None:
        try:
            result = result_json(record.result)
        except ValueError as error:
            detail = f"result not recorded: {error}"
    row = Row(
        _storable(record.device), _storable(record.session), record.sequence, record.split, record.ending,
        None if detail is None else _storable(detail[:DETAIL_CHARACTERS]), result, record.captured_at,
        record.finished_at,
    )  # fmt: skip
    if record.items == 1:
        return [row]
    return [row._replace(sequence=record.sequence + i) for i in range(record.items)]


def _storable(text: str) -> str:
    """Text without what UTF-8 cannot hold (lone surrogates) or SQLite's tools stop at (NUL)."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def result_json(result: Any) -> str:
    """A result as JSON: ASCII, without spaces.

    NumPy's numbers become numbers, its arrays lists. NaN and the infinities, which JSON does not have, become null.

    Raises:
        ValueError: it is not plain data, or too long; the message says which.
    """
    try:
        try:
            text = _ENCODER.encode(result)
        except (TypeError, ValueError):  # a number that is not finite, or a key that JSON does not have
            text = _ENCODER.encode(_finite(result, 0))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # a class of the app may raise anything here, and must not cost the item
        raise ValueError(f"it is not plain data ({error})") from error
    if len(text) > RESULT_BYTES:
        raise ValueError(f"its JSON has {len(text)} bytes, {RESULT_BYTES} are allowed")
    return text


def _plain(value: Any) -> Any:
    """What the JSON encoder does not know: NumPy's numbers and arrays."""
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.ndarray):
        if value.size > RESULT_BYTES // 2:  # an image is refused before it becomes a list of a million numbers
            raise ValueError(f"an array of shape {value.shape} is longer than {RESULT_BYTES} bytes")
        return value.tolist()
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain)
_MAX_DEPTH: Final = 200


def _finite(value: Any, depth: int) -> Any:
    """`value` with null for what is not finite, and with keys that JSON has."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, (np.generic, np.ndarray)):
        value = _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _finite(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each, depth + 1) for each in value]
    return value


def _key(key: Any) -> Any:
    key = _plain(key) if isinstance(key, np.generic) else key
    return str(key) if isinstance(key, float) else key
