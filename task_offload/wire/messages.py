"""The protocol's messages. In: a message object or the bytes of one. Out: the other.

A message is a frame header, a head (small: control fields, then what describes the payload) and a body (large
buffers, as they are). Control fields are little-endian structs of fixed size; texts are UTF-8 behind their length.
`docs/protocol.md` is the specification, and this module follows it field by field. What decodes here is within the
limits that are stated here, so that nobody further on needs to look again.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from task_offload.errors import ProtocolError

MAGIC = b"PTOF"
VERSION = 1
MOST_SEQUENCE = 2**62  # every sequence is below it: SQLite holds integers of 63 bits
MOST_IN_RANGE = 1024  # items of one range: each becomes a row of the results
MOST_NAME_BYTES = 64  # of a device
MOST_TEXT_BYTES = 255  # of other names and of reasons: they are logged and recorded
MOST_REFUSAL_BYTES = 2048
LONGEST_RETRY_S = 24 * 3600.0

FRAME = struct.Struct("<BBHIQ")  # kind, zero, zero, head bytes, body bytes
ITEM = struct.Struct("<QQBB6x")  # sequence, age in microseconds, split, tag
_ITEM_PREFIX = struct.Struct(FRAME.format + ITEM.format.removeprefix("<"))
_RANGE = struct.Struct("<QIBBHQQ")  # first sequence, count, ending, split, detail bytes, oldest and newest age
_HELLO_BEGIN = struct.Struct("<4sH")  # magic, version: the same in all versions
_HELLO = struct.Struct("<4sHH16s32s32sQ")  # magic, version, flags, session, secret, source digest, acknowledged
_WELCOME = struct.Struct("<HHffQQIff")  # version, flags, heartbeat, silence, message and unacked bytes, items, W, M
_ACK = struct.Struct("<QQQQQB")  # next sequence, completed, filtered, dropped, CPU in microseconds, reasons
_COSTS = struct.Struct("<ffQQQQBH")  # W, M, queue wait and items, transfer bytes and time, task and payload costs
_TASK_COST = struct.Struct("<BIIQ")  # task, items, survived, busy microseconds
_PAYLOAD_COST = struct.Struct("<BBIQ")  # split, tag, items, busy microseconds
_LOAD = struct.Struct("<ffffQ")  # CPU of the process and of the machine, memory, temperature, resident bytes
_REFUSAL = struct.Struct("<Hf")  # code, seconds to come back
_U16 = struct.Struct("<H")
_U64 = struct.Struct("<Q")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")  # they would forge lines in a log

SOURCE_DIFFERS = 1  # flag of WELCOME


class Kind(IntEnum):
    """The first byte of a frame."""

    HELLO = 1  # device
    ITEM = 2  # device
    ENDINGS = 3  # device
    LOAD = 4  # device
    BYE = 5  # device
    WELCOME = 16  # cloud
    ACK = 17  # cloud
    COSTS = 18  # cloud
    FAREWELL = 19  # cloud
    PING = 32  # both
    REFUSAL = 33  # both


class Refusal(IntEnum):
    """Why a peer ends a connection."""

    PROTOCOL = 1  # the other side broke the protocol
    VERSION = 2
    CHAIN = 3
    TOKEN = 4  # unknown, wrong or revoked
    REPLACED = 5  # a newer session has the same device name
    BUSY = 6  # over capacity: come back later
    LIMIT = 7  # a stated limit was exceeded
    PAYLOAD = 8  # a payload that the allow-list does not construct
    STOPPING = 9  # the server shuts down


LASTING = frozenset({Refusal.VERSION, Refusal.CHAIN, Refusal.TOKEN})


class Ending(IntEnum):
    """How an item ended on its device."""

    FILTERED = 1
    DROPPED = 2


@dataclass(frozen=True)
class TaskSpec:
    """A task as both sides must agree on it. `pin`: 0 none, 1 device, 2 cloud."""

    name: str
    pin: int = 0
    stateful: bool = False


@dataclass(frozen=True)
class ChainSpec:
    """What both sides compare: tasks with their contracts and names of payload types must match."""

    tasks: tuple[TaskSpec, ...]
    payload_types: tuple[str, ...] = ()
    source_digest: bytes = bytes(32)

    def identity(self) -> tuple[list[str], list[str]]:
        """What payloads of this chain depend on: names of the tasks and of the payload types."""
        return [task.name for task in self.tasks], list(self.payload_types)

    def difference(self, other: ChainSpec) -> str | None:
        """What does not match, in words: `self` is the cloud's chain, `other` the device's. None if all does."""
        if len(self.tasks) != len(other.tasks):
            return f"the cloud's chain has {len(self.tasks)} tasks, the device's has {len(other.tasks)}"
        for number, (mine, theirs) in enumerate(zip(self.tasks, other.tasks, strict=True), 1):
            if mine.name != theirs.name:
                return f"task {number} is {mine.name} in the cloud and {theirs.name} on the device"
            if mine != theirs:
                return f"task {number}, {mine.name}, has another contract (@task) in the cloud than on the device"
        if self.payload_types != other.payload_types:
            return "payload_types differ between the cloud's app and the device's"
        return None


@dataclass(frozen=True)
class Hello:
    """The device's first message.

    Attributes:
        device: its name.
        session: 16 bytes, the identity of this run of the device.
        secret: 32 bytes that prove the name; zeros where none is needed.
        chain: what it runs.
        acked: all its items below this sequence were acknowledged, as far as it remembers. A cloud whose books end
            before that has lost them, and begins there.
        version: of the protocol.
    """

    device: str
    session: bytes
    secret: bytes
    chain: ChainSpec
    acked: int = 0
    version: int = VERSION

    def encode(self) -> bytes:
        parts = [
            _HELLO.pack(MAGIC, self.version, 0, self.session, self.secret, self.chain.source_digest, self.acked),
            _text(self.device),
            bytes([len(self.chain.tasks)]),
        ]
        for task in self.chain.tasks:
            parts += [bytes([task.pin | (4 if task.stateful else 0)]), _text(task.name)]
        parts.append(bytes([len(self.chain.payload_types)]))
        parts += [_text(name) for name in self.chain.payload_types]
        return frame(Kind.HELLO, b"".join(parts))

    @staticmethod
    def decode(head: bytes) -> Hello:
        """Raises ProtocolError. Of another version, `version` is all that is read."""
        magic, version = _Reader(head).fields(_HELLO_BEGIN)
        if magic != MAGIC:
            raise ProtocolError("the peer does not speak this protocol")
        if version != VERSION:
            return Hello("", bytes(16), bytes(32), ChainSpec(()), version=version)
        reader = _Reader(head)
        _, _, _, session, secret, digest, acked = reader.fields(_HELLO)
        device = reader.text(MOST_NAME_BYTES)
        if not device or acked > MOST_SEQUENCE:
            raise ProtocolError("a hello makes no sense")
        tasks = []
        for _ in range(reader.byte()):
            contract = reader.byte()
            if contract > 7 or contract & 3 == 3:
                raise ProtocolError("a task's contract is none of this version")
            tasks.append(TaskSpec(reader.text(), contract & 3, bool(contract & 4)))
        types = tuple(reader.text() for _ in range(reader.byte()))
        reader.end()
        return Hello(device, session, secret, ChainSpec(tuple(tasks), types, digest), acked)


class Totals(NamedTuple):
    """A session's books in the cloud, over all its connections: items by ending, and CPU spent on them."""

    next_sequence: int = 0
    completed: int = 0
    filtered: int = 0
    dropped: Mapping[str, int] = MappingProxyType({})
    cloud_cpu_us: int = 0

    def encode(self) -> bytes:
        parts = [
            _ACK.pack(
                self.next_sequence,
                self.completed,
                self.filtered,
                sum(self.dropped.values()),
                self.cloud_cpu_us,
                len(self.dropped),
            )
        ]
        for reason, count in self.dropped.items():
            parts += [_text(reason), _U64.pack(count)]
        return b"".join(parts)

    @staticmethod
    def read(reader: _Reader) -> Totals:
        next_sequence, completed, filtered, dropped, cpu_us, reasons = reader.fields(_ACK)
        by_reason = {}
        for _ in range(reasons):
            reason = reader.text()
            by_reason[reason] = reader.fields(_U64)[0]
        if sum(by_reason.values()) != dropped or completed + filtered + dropped > next_sequence:
            raise ProtocolError("an acknowledgement's books do not add up")
        check_sequences(next_sequence, 0)
        return Totals(next_sequence, completed, filtered, by_reason, cpu_us)


@dataclass(frozen=True)
class Welcome:
    """The cloud's answer to a hello that it accepts.

    Attributes:
        totals: the session's books; items below `totals.next_sequence` are recorded and need not be sent.
        heartbeat_s: after so long without sending, each side sends a ping.
        silence_s: after so long without hearing anything, each side takes the other for gone.
        message_bytes: largest message that the cloud takes.
        unacked_bytes, unacked_items: how much may be sent and not acknowledged.
        workers, main_share: W and M, as in `Costs`.
        codecs: names of the codecs that the cloud can decode.
        source_differs: the two sides' apps have the same chain, but not the same source.
    """

    totals: Totals
    heartbeat_s: float
    silence_s: float
    message_bytes: int
    unacked_bytes: int
    unacked_items: int
    workers: float = 1.0
    main_share: float = 1.0
    codecs: tuple[str, ...] = ("none",)
    source_differs: bool = False
    version: int = VERSION

    def encode(self) -> bytes:
        fixed = _WELCOME.pack(
            self.version,
            SOURCE_DIFFERS if self.source_differs else 0,
            self.heartbeat_s,
            self.silence_s,
            self.message_bytes,
            self.unacked_bytes,
            self.unacked_items,
            self.workers,
            self.main_share,
        )
        codecs = bytes([len(self.codecs)]) + b"".join(map(_text, self.codecs))
        return frame(Kind.WELCOME, fixed + self.totals.encode() + codecs)

    @staticmethod
    def decode(head: bytes) -> Welcome:
        reader = _Reader(head)
        version, flags, heartbeat_s, silence_s, message, unacked, items, workers, main = reader.fields(_WELCOME)
        if version != VERSION:
            raise ProtocolError(f"the cloud answered in version {version} of the protocol; this is version {VERSION}")
        if not (0 < heartbeat_s < silence_s < 3600) or not items or not unacked or not message:
            raise ProtocolError("the cloud's limits make no sense")
        _check_shares(workers, main)
        totals = Totals.read(reader)
        codecs = tuple(reader.text() for _ in range(reader.byte()))
        reader.end()
        return Welcome(
            totals, heartbeat_s, silence_s, message, unacked, items, workers, main, codecs,
            bool(flags & SOURCE_DIFFERS), version,
        )  # fmt: skip


@dataclass(frozen=True)
class EndingRange:
    """Items of consecutive sequences that ended on the device, all in the same way.

    Attributes:
        first, count: the sequences first to first+count-1.
        ending: filtered or dropped.
        split: how many tasks would have run on the device.
        detail: the filtering task's name, or the reason of the drop.
        oldest_age_us, newest_age_us: microseconds since the first and the last of them were captured.
    """

    first: int
    count: int
    ending: Ending
    split: int
    detail: str
    oldest_age_us: int = 0
    newest_age_us: int = 0

    def encode(self) -> bytes:
        detail = _utf8(self.detail, MOST_TEXT_BYTES)
        return frame(
            Kind.ENDINGS,
            _RANGE.pack(
                self.first, self.count, self.ending, self.split, len(detail), self.oldest_age_us, self.newest_age_us
            )
            + detail,
        )

    @staticmethod
    def decode(head: bytes) -> EndingRange:
        reader = _Reader(head)
        first, count, ending, split, detail_bytes, oldest, newest = reader.fields(_RANGE)
        detail = reader.utf8(detail_bytes, MOST_TEXT_BYTES)
        reader.end()
        if not 1 <= count <= MOST_IN_RANGE or ending not in (Ending.FILTERED, Ending.DROPPED) or newest > oldest:
            raise ProtocolError("a range of endings makes no sense")
        check_sequences(first, count)
        return EndingRange(first, count, Ending(ending), split, detail, oldest, newest)


@dataclass(frozen=True)
class TaskBusy:
    """What one task cost in the cloud since the costs before: items, how many survived it, busy microseconds."""

    task: int
    items: int
    survived: int
    busy_us: int


@dataclass(frozen=True)
class PayloadBusy:
    """What receiving and decoding payloads of one split and tag cost since the costs before.

    The tag is a number that the device gave the items; it stands for a codec, and the cloud only gives it back.
    """

    split: int
    tag: int
    items: int
    busy_us: int


@dataclass(frozen=True)
class Costs:
    """What the cloud's side costs this device, sent from time to time.

    Attributes:
        workers: W, the cloud's workers that this device may count on.
        main_share: M, the share of the cloud's main thread that it may count on, 0 to 1.
        queue_us, queued: microseconds that items waited for a worker, in all, and how many items.
        transfer_bytes, transfer_us: of bodies that came in pieces, the bytes that were still to come when all that was
            there had been read for the first time, and the microseconds from then to the last piece: what the link
            carries, however seldom it is used.
        tasks, payloads: costs since the message before.
    """

    workers: float
    main_share: float
    queue_us: int = 0
    queued: int = 0
    transfer_bytes: int = 0
    transfer_us: int = 0
    tasks: tuple[TaskBusy, ...] = ()
    payloads: tuple[PayloadBusy, ...] = ()

    def encode(self) -> bytes:
        parts = [
            _COSTS.pack(
                self.workers,
                self.main_share,
                self.queue_us,
                self.queued,
                self.transfer_bytes,
                self.transfer_us,
                len(self.tasks),
                len(self.payloads),
            )
        ]
        parts += [_TASK_COST.pack(t.task, t.items, t.survived, t.busy_us) for t in self.tasks]
        parts += [_PAYLOAD_COST.pack(p.split, p.tag, p.items, p.busy_us) for p in self.payloads]
        return frame(Kind.COSTS, b"".join(parts))

    @staticmethod
    def decode(head: bytes) -> Costs:
        reader = _Reader(head)
        workers, main_share, *sums, tasks, payloads = reader.fields(_COSTS)
        task_costs = tuple(TaskBusy(*reader.fields(_TASK_COST)) for _ in range(tasks))
        payload_costs = tuple(PayloadBusy(*reader.fields(_PAYLOAD_COST)) for _ in range(payloads))
        reader.end()
        _check_shares(workers, main_share)
        if any(each.survived > each.items for each in task_costs):
            raise ProtocolError("more items survived a task than it had")
        queue_us, queued, transfer_bytes, transfer_us = sums
        return Costs(workers, main_share, queue_us, queued, transfer_bytes, transfer_us, task_costs, payload_costs)


@dataclass(frozen=True)
class Load:
    """A device's load, as it measures it.

    Attributes:
        process_cpu: cores' worth of CPU that the process uses.
        machine_cpu: share of all the machine's cores in use, 0 to 1.
        memory: share of the machine's memory in use, 0 to 1.
        temperature_c: of the processor in degrees Celsius; NaN where there is no sensor.
        resident_bytes: memory of the process.
    """

    process_cpu: float
    machine_cpu: float
    memory: float
    temperature_c: float
    resident_bytes: int

    def encode(self) -> bytes:
        return frame(
            Kind.LOAD,
            _LOAD.pack(self.process_cpu, self.machine_cpu, self.memory, self.temperature_c, self.resident_bytes),
        )

    @staticmethod
    def decode(head: bytes) -> Load:
        reader = _Reader(head)
        load = Load(*reader.fields(_LOAD))
        reader.end()
        shares = load.process_cpu, load.machine_cpu, load.memory
        if not all(0 <= each < math.inf for each in shares) or math.isinf(load.temperature_c):
            raise ProtocolError("a load makes no sense")
        return load


@dataclass(frozen=True)
class RefusalMessage:
    """The last message on a connection whose sender will not go on with it.

    Attributes:
        code: why.
        message: why, for people.
        retry_after_s: seconds after which to come back; 0 if the sender does not say.
    """

    code: int
    message: str
    retry_after_s: float = 0.0

    def encode(self) -> bytes:
        return frame(
            Kind.REFUSAL, _REFUSAL.pack(self.code, self.retry_after_s) + _text(self.message, MOST_REFUSAL_BYTES)
        )

    @staticmethod
    def decode(head: bytes) -> RefusalMessage:
        reader = _Reader(head)
        code, retry_after_s = reader.fields(_REFUSAL)
        message = reader.text(MOST_REFUSAL_BYTES)
        reader.end()
        if not 0 <= retry_after_s <= LONGEST_RETRY_S:
            raise ProtocolError("a refusal asks to come back at a time that makes no sense")
        return RefusalMessage(code, message, retry_after_s)


PING = FRAME.pack(Kind.PING, 0, 0, 0, 0)
_ITEM_KIND = int(Kind.ITEM)  # packed for each item: a member of an enum takes twice as long


def item_prefix(sequence: int, age_us: int, split: int, tag: int, head_bytes: int, body_bytes: int) -> bytes:
    """Frame header and control fields of an item; the payload's head and body follow on the wire."""
    return _ITEM_PREFIX.pack(_ITEM_KIND, 0, 0, ITEM.size + head_bytes, body_bytes, sequence, age_us, split, tag)


def bye(next_sequence: int) -> bytes:
    """The device has ended all its items below `next_sequence` and has no more."""
    return frame(Kind.BYE, _U64.pack(next_sequence))


def decode_bye(head: bytes) -> int:
    reader = _Reader(head)
    (next_sequence,) = reader.fields(_U64)
    reader.end()
    check_sequences(next_sequence, 0)
    return int(next_sequence)


def check_ping(head: bytes) -> None:
    _Reader(head).end()


def check_sequences(first: int, count: int) -> None:
    """Raises ProtocolError if `count` items from `first` on reach beyond the last sequence."""
    if first + count > MOST_SEQUENCE:
        raise ProtocolError(f"item {first + count - 1} is beyond the last sequence")


def ack(totals: Totals) -> bytes:
    """All items below `totals.next_sequence` are finished and recorded."""
    return frame(Kind.ACK, totals.encode())


def farewell(totals: Totals) -> bytes:
    """The cloud's answer to a bye, once all is recorded: the session's final books."""
    return frame(Kind.FAREWELL, totals.encode())


def decode_totals(head: bytes) -> Totals:
    """Content of an ack or a farewell."""
    reader = _Reader(head)
    totals = Totals.read(reader)
    reader.end()
    return totals


def frame(kind: Kind, head: bytes) -> bytes:
    """A message without a body."""
    return FRAME.pack(kind, 0, 0, len(head), 0) + head


def _text(text: str, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    encoded = _utf8(text, most_bytes)
    return _U16.pack(len(encoded)) + encoded


def _utf8(text: str, most_bytes: int) -> bytes:
    """What may travel of a text, which may come from an error of the app: cut between characters."""
    encoded = _CONTROL.sub(" ", text).encode(errors="replace")
    return encoded if len(encoded) <= most_bytes else encoded[:most_bytes].decode(errors="ignore").encode()


def _check_shares(workers: float, main_share: float) -> None:
    if not (0 <= workers < math.inf and 0 <= main_share <= 1):
        raise ProtocolError("the cloud's shares make no sense")


class _Reader:
    """Reads fields off a head. Raises ProtocolError where its size is wrong, or a text is not what it may be."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        end = self._at + layout.size
        if end > len(self._data):
            raise ProtocolError("a message is shorter than its fields")
        start, self._at = self._at, end
        return layout.unpack_from(self._data, start)

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise ProtocolError("a message is shorter than its fields")
        self._at += 1
        return self._data[self._at - 1]

    def utf8(self, size_bytes: int, most_bytes: int) -> str:
        if size_bytes > most_bytes:
            raise ProtocolError(f"a text of {size_bytes} bytes; at most {most_bytes} are allowed here")
        end = self._at + size_bytes
        if end > len(self._data):
            raise ProtocolError("a message is shorter than its fields")
        try:
            text = bytes(self._data[self._at : end]).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a text in a message is not UTF-8") from error
        if _CONTROL.search(text):
            raise ProtocolError("a text in a message has control characters")
        self._at = end
        return text

    def text(self, most_bytes: int = MOST_TEXT_BYTES) -> str:
        return self.utf8(self.fields(_U16)[0], most_bytes)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError("a message is longer than its fields")
