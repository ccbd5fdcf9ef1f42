"""Emulated devices, hundreds to a process: they replay recorded payloads by the real protocol.

One thread and a selector; a device is a socket, a sequence and a deque. What it costs is a few microseconds an item,
so that the load generator is not what is measured. In: orders through a pipe. Out: what was acknowledged, and when.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

from benchmarks.harness import calls
from task_offload.agreement import chain_spec
from task_offload.task import load_app
from task_offload.wire.codec import Payload, padded_body
from task_offload.wire.messages import FRAME, ITEM, PING, ChainSpec, Hello, Kind, Refusal, RefusalMessage, Welcome, bye

HEARTBEAT_S = 1.5
SEND_BYTES = 256 * 1024
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Load:
    """What each device of a group sends.

    Attributes:
        devices: how many there are.
        split: how many tasks it says that it ran.
        picture_quality: as `payloads` takes it.
        rate: items a second, evenly; 0 sends whenever the window has room.
        window: items that are sent and not acknowledged.
    """

    devices: int
    split: int
    picture_quality: int | None = None
    rate: float = 0.0
    window: int = 8


@dataclass
class Found:
    """What the devices saw while it counted, each in the order of the devices.

    Attributes:
        acked: items that were acknowledged.
        offered: items that were due.
        latencies_ms: from when an item was due to when it was acknowledged.
        refused: connections that were refused, by code.
    """

    acked: list[int] = field(default_factory=list)
    offered: list[int] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Message:
    """One recorded payload as bytes, without the fields that each item has of its own."""

    def __init__(self, payload: Payload) -> None:
        body_bytes = payload.size_bytes - len(payload.head)
        self.header = FRAME.pack(Kind.ITEM, 0, 0, ITEM.size + len(payload.head), body_bytes)
        self.head = payload.head
        self.body = [memoryview(part) for part in padded_body(payload)]


class Device:
    """One emulated device."""

    def __init__(self, name: str, messages: Sequence[Message], load: Load, port: int, chain: ChainSpec) -> None:
        self.name = name
        self.session = os.urandom(16)
        self.messages = messages
        self.load = load
        self.port = port
        self.sequence = 0  # the next one to send
        self.acked = 0
        self.due_s: deque[float] = deque()  # when each item that was sent and is not acknowledged was due
        self.waiting: deque[float] = deque()  # items that are due, and for which the window has no room
        self.next_due_s = 0.0
        self.leaving = False
        self.farewell = False
        self.refusal: str | None = None
        self.count = self.offered = 0
        self._chain = chain
        self.connect()

    def connect(self) -> None:
        """Connects, or connects again and resumes the session."""
        self.received = b""
        self.outgoing: deque[memoryview] = deque()
        self.open = False
        self.closed = False
        self.sock = socket.create_connection(("127.0.0.1", self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(Hello(self.name, self.session, bytes(32), self._chain, self.acked).encode())
        self.sock.setblocking(False)
        self.sent_s = time.monotonic()

    def send_again(self) -> None:
        """What an earlier connection took and the cloud does not have goes first."""
        self.sequence -= len(self.due_s)
        self.waiting.extendleft(reversed(self.due_s))
        self.due_s.clear()


class Fleet:
    """All devices of one process."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.devices: list[Device] = []
        self._messages: dict[tuple[int, int | None], list[Message]] = {}
        self._chain: ChainSpec | None = None
        self._counting = False
        self._latencies_ms: list[float] = []

    def connect(self, loads: Sequence[Load], port: int, first: int) -> None:
        """Connects all devices, and waits until each is let in or refused."""
        number = first
        for load in loads:
            for _ in range(load.devices):
                self.join(f"device-{number}", load, port)
                number += 1
                self._turn(0.0, False)
        ends_at = time.monotonic() + PATIENCE_S
        while any(not (each.open or each.closed) for each in self.devices) and time.monotonic() < ends_at:
            self._turn(0.05, False)

    def join(self, name: str, load: Load, port: int) -> Device:
        """Connects one device, and does not wait until it is let in."""
        from benchmarks import fleet_chain

        self._chain = self._chain or chain_spec(load_app(fleet_chain.APP))
        key = load.split, load.picture_quality
        if key not in self._messages:
            self._messages[key] = [Message(payload) for payload in fleet_chain.payloads(*key)]
        device = Device(name, self._messages[key], load, port, self._chain)
        self._selector.register(device.sock, selectors.EVENT_READ, device)
        self.devices.append(device)
        return device

    def cut(self, device: Device) -> None:
        """Its connection ends without a word."""
        self._close(device)

    def resume(self, device: Device) -> None:
        """It connects again."""
        device.connect()
        self._selector.register(device.sock, selectors.EVENT_READ, device)

    def say_goodbye(self, device: Device) -> None:
        """It sends no more items, and leaves when all that it sent is acknowledged."""
        device.leaving = True
        device.outgoing.append(memoryview(bye(device.sequence)))
        self._flush(device)

    def pin(self, core: int) -> None:
        """Stays on one core, so that the cloud has the others to itself."""
        os.sched_setaffinity(0, {core})

    def idle(self, seconds: float) -> None:
        """Stays connected and sends nothing but signs of life."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self._turn(0.05, False)

    def run(self, warm_up_s: float, seconds: float) -> Found:
        """Sends, and counts after the warm-up."""
        began_s = time.monotonic()
        due: list[tuple[float, int]] = []
        for number, device in enumerate(self.devices):
            if device.load.rate:
                if began_s - device.next_due_s > 1 / device.load.rate:  # it begins
                    # Spread evenly, so that items come alike from few devices and from many.
                    device.next_due_s = began_s + number / len(self.devices) / device.load.rate
                heapq.heappush(due, (device.next_due_s, number))
            else:
                self._fill(device, began_s)
        counting_from, ends_at = began_s + warm_up_s, began_s + warm_up_s + seconds
        self._counting = False
        while (now := time.monotonic()) < ends_at:
            if not self._counting and now >= counting_from:
                self._counting = True
                counting_from = now
                self._latencies_ms.clear()
                for device in self.devices:
                    device.count = device.offered = 0
            while due and due[0][0] <= now:
                at, number = due[0]
                device = self.devices[number]
                device.offered += 1
                if not device.closed:
                    device.waiting.append(at)
                device.next_due_s = at + 1 / device.load.rate
                heapq.heapreplace(due, (device.next_due_s, number))
                self._fill(device, now)
            self._turn(min(0.02, max(0.0, due[0][0] - now)) if due else 0.02, True)
        took_s = time.monotonic() - counting_from
        self._counting = False
        return Found(
            [each.count for each in self.devices],
            [each.offered for each in self.devices],
            list(self._latencies_ms),
            {},
            took_s,
        )

    def leave(self) -> dict[str, int]:
        """Says goodbye, waits until all that is on its way is acknowledged, and closes. Returns refusals by code."""
        ends_at = time.monotonic() + PATIENCE_S
        for device in self.devices:
            if device.open and not device.closed:
                self.say_goodbye(device)
        while any(not each.closed for each in self.devices) and time.monotonic() < ends_at:
            self._turn(0.05, False)
        refused: dict[str, int] = {}
        for device in self.devices:
            if device.refusal is not None:
                refused[device.refusal] = refused.get(device.refusal, 0) + 1
            elif device.due_s:
                refused["not acknowledged"] = refused.get("not acknowledged", 0) + 1
            self._close(device)
        self.devices.clear()
        return refused

    def _turn(self, timeout_s: float, sending: bool) -> None:
        for key, mask in self._selector.select(timeout_s):
            device: Device = key.data
            if mask & selectors.EVENT_WRITE:
                self._flush(device)
            if mask & selectors.EVENT_READ:
                self._read(device, sending)
        now = time.monotonic()
        for device in self.devices:
            if device.open and not device.closed and now - device.sent_s > HEARTBEAT_S:
                device.outgoing.append(memoryview(PING))
                self._flush(device)

    def _fill(self, device: Device, now: float) -> None:
        """Sends what is due and fits into the window."""
        if not device.open or device.closed or device.leaving:
            return
        load, messages = device.load, device.messages
        room = load.window - len(device.due_s)
        if load.rate:
            room = min(room, len(device.waiting))
        if room <= 0:
            return
        small: list[bytes] = []
        for _ in range(room):
            at = device.waiting.popleft() if load.rate else now
            if not load.rate:
                device.offered += 1
            device.due_s.append(at)
            message = messages[device.sequence % len(messages)]
            age_us = int((now - at) * 1e6)
            small += (message.header, ITEM.pack(device.sequence, age_us, load.split, 0), message.head)
            device.sequence += 1
            if message.body:
                device.outgoing.append(memoryview(b"".join(small)))
                small.clear()
                device.outgoing.extend(message.body)
        if small:
            device.outgoing.append(memoryview(b"".join(small)))
        self._flush(device)

    def _flush(self, device: Device) -> None:
        outgoing = device.outgoing
        try:
            while outgoing:
                sent = device.sock.sendmsg([outgoing[i] for i in range(min(len(outgoing), 32))])
                while sent:
                    if sent < len(outgoing[0]):
                        outgoing[0] = outgoing[0][sent:]
                        break
                    sent -= len(outgoing.popleft())
        except BlockingIOError:
            pass
        except OSError:
            self._close(device)
            return
        device.sent_s = time.monotonic()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if outgoing else 0)
        if self._selector.get_key(device.sock).events != wanted:
            self._selector.modify(device.sock, wanted, device)

    def _read(self, device: Device, sending: bool) -> None:
        try:
            data = device.sock.recv(SEND_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(device)
            return
        data = device.received + data
        at = 0
        acked = device.acked
        welcomed = False
        while len(data) - at >= FRAME.size:
            kind, _, _, head_bytes, _ = FRAME.unpack_from(data, at)
            end = at + FRAME.size + head_bytes
            if end > len(data):
                break
            head = at + FRAME.size
            if kind in (Kind.ACK, Kind.FAREWELL):
                acked = int.from_bytes(data[head : head + 8], "little")
                device.farewell |= kind == Kind.FAREWELL
            elif kind == Kind.WELCOME:
                acked = Welcome.decode(data[head:end]).totals.next_sequence
                device.open = welcomed = True
            elif kind == Kind.REFUSAL:
                device.refusal = Refusal(RefusalMessage.decode(data[head:end]).code).name.lower()
            at = end
        device.received = data[at:]
        if acked > device.acked:
            now = time.monotonic()
            for _ in range(acked - device.acked):
                if device.due_s:
                    due = device.due_s.popleft()
                else:  # the cloud had it from an earlier connection, and it need not be sent again
                    due = device.waiting.popleft()
                    device.sequence += 1
                if self._counting:
                    self._latencies_ms.append((now - due) * 1e3)
            if self._counting:
                device.count += acked - device.acked
            device.acked = acked
            if sending and not welcomed:
                self._fill(device, now)
        if welcomed:
            device.send_again()

    def _close(self, device: Device) -> None:
        if not device.closed:
            device.closed = True
            self._selector.unregister(device.sock)
            device.sock.close()


def devices(pipe: Pipe) -> None:
    """A load generator's process: does what the pipe says, in turn."""
    fleet = Fleet()
    for order, *args in calls(pipe):
        pipe.send(getattr(fleet, order)(*args))
