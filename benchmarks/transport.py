"""The wire alone, beside bare sockets and ZeroMQ: arrays from one process to another, every message acknowledged.

    python3 -m benchmarks.transport [--rounds 7] [--messages 8000] [--window 8] [--arrays 1|2] [--only CONTENDER]

A message is one array of 421,500 bytes (a frame of 500 x 281), or two. Contenders:

    ours          Encoder -> Link | Listener -> Decoder -> ack, with the window of items given
    bare          sendall | recv_into of as many bytes, in memory that is used again, nothing acknowledged
    ZeroMQ        PUSH | PULL, pickle 5 with the arrays out of band in a multipart message, nothing acknowledged
    ours, TLS     as above, with TLS as the framework sets it up
    bare, TLS     sendall | recv_into over the same TLS
"""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import Peer, calls, in_turn, median_ratio, print_table, verdict
from task_offload.transport.certificates import client_context, load_or_make_certificate, server_context
from task_offload.transport.exchange import DeviceSession
from task_offload.transport.link import Link
from task_offload.transport.listener import Connection, Listener
from task_offload.transport.tokens import Token
from task_offload.wire.codec import Decoder, Encoder
from task_offload.wire.compression import available_codecs
from task_offload.wire.messages import ChainSpec, Costs, Hello, TaskSpec, Totals, Welcome, ack, farewell
from task_offload.wire.outbox import Acked, Entry
from task_offload.wire.session import Arrived, Bye, CloudEvent, CloudSide

try:
    import zmq
except ImportError:
    zmq = None

SHAPE = (281, 500, 3)
ARRAY_BYTES = 281 * 500 * 3
CHAIN = ChainSpec((TaskSpec("make"), TaskSpec("take")))
HEARTBEAT_S, SILENCE_S = 2.0, 8.0
UNACKED_BYTES = 64 * 1024 * 1024
ROOM_ENTRIES = 2  # as the device's pipeline has it
WARM_UP_SHARE = 0.1  # of the messages: memory is taken, caches are filled

Figures = dict[str, float]


class Meter:
    """CPU and time from the end of the warm-up to the last message."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._warm_up = max(1, int(messages * WARM_UP_SHARE))
        self._began = (0.0, 0.0)

    def passed(self, number: int) -> None:
        """The message of this number, from 0, is done with."""
        if number + 1 == self._warm_up:
            self._began = (time.process_time(), time.perf_counter())

    def figures(self) -> Figures:
        """To be called after the last message."""
        messages = self._messages - self._warm_up
        cpu_s, seconds = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        return {"rate": messages / seconds, "cpu_us": cpu_s / messages * 1e6}


def make_arrays(count: int) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8) for number in range(count))


# --- ours -------------------------------------------------------------------------------------------------------


class Acknowledger:
    """Decodes what comes and acknowledges it at once, as a cloud without tasks and without a store."""

    def __init__(self, messages: int, pipe: Pipe, context: ssl.SSLContext | None) -> None:
        self.listener = Listener("127.0.0.1", 0, self, lambda: CloudSide(2, (1,)), context)
        self.figures: Figures = {}
        self.left = threading.Event()
        self._meter = Meter(messages)
        self._messages = messages
        self._decoder = Decoder()
        self._received = self._acked = 0
        self._connection: Connection | None = None
        self.listener.start()
        pipe.send(self.listener.port)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        codecs = available_codecs()
        welcome = Welcome(Totals(), HEARTBEAT_S, SILENCE_S, UNACKED_BYTES, UNACKED_BYTES, 1024, codecs=codecs)
        self._connection = connection
        self.listener.accept(connection, None, welcome.encode())

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        if type(event) is Arrived:
            args = self._decoder.decode(event.head, event.body)
            assert args[0].shape == SHAPE
            self._meter.passed(self._received)
            self._received += 1
            if self._received == self._messages:
                self.figures = self._meter.figures()
        elif isinstance(event, Bye):
            self.listener.send(connection, farewell(Totals(self._received, self._received)))
            self.listener.dismiss(connection)

    def closed(self, connection: Connection, reason: str) -> None:
        self.left.set()

    def flush(self) -> None:
        if self._received > self._acked:
            self._acked = self._received
            self.listener.send(self._connection, ack(Totals(self._received, self._received)))

    def tick(self) -> None:
        pass


class Hearer:
    """Hears of the link what it must."""

    def __init__(self) -> None:
        self.welcome = threading.Event()

    def welcomed(self, session: DeviceSession, welcome: Welcome) -> None:
        self.welcome.set()

    def learned(self, session: DeviceSession, acked: list[Acked], totals: Totals) -> None:
        pass

    def cost(self, session: DeviceSession, costs: Costs) -> None:
        pass

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        pass


def receive_ours(pipe: Pipe, messages: int, arrays: int, tls: bool, folder: Path) -> Figures:
    acknowledger = Acknowledger(messages, pipe, server_context(load_or_make_certificate(folder)) if tls else None)
    acknowledger.left.wait()
    acknowledger.listener.close()
    return acknowledger.figures


def send_ours(port: int, messages: int, arrays: int, tls: bool, folder: Path, window: int) -> Figures:
    hearer, session, encoder, meter = Hearer(), DeviceSession(os.urandom(16)), Encoder(), Meter(messages)
    token = Token("bench", load_or_make_certificate(folder).fingerprint, bytes(32)) if tls else None
    link = Link(("127.0.0.1", port), "bench", CHAIN, lambda: token, [session], hearer, use_tls=tls, window_items=window)
    link.start()
    hearer.welcome.wait()
    args = make_arrays(arrays)
    for number in range(messages):
        link.wait_until(lambda: session.outbox.waiting_entries < ROOM_ENTRIES)
        link.put(Entry(number, 1, time.monotonic(), encoder.encode(args)))
        link.carry()
        meter.passed(number)
    link.leave()
    link.join(30.0)
    return meter.figures()


# --- bare sockets -----------------------------------------------------------------------------------------------


def receive_bare(pipe: Pipe, messages: int, arrays: int, tls: bool, folder: Path) -> Figures:
    meter = Meter(messages)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        sock, _ = server.accept()
    if tls:
        sock = server_context(load_or_make_certificate(folder)).wrap_socket(sock, server_side=True)
    memory = memoryview(bytearray(arrays * ARRAY_BYTES))
    with sock:
        for number in range(messages):
            filled = 0
            while filled < len(memory):
                filled += sock.recv_into(memory[filled:])
            meter.passed(number)
        figures = meter.figures()
        sock.recv(1)
    return figures


def send_bare(port: int, messages: int, arrays: int, tls: bool, folder: Path, window: int) -> Figures:
    meter = Meter(messages)
    data = b"".join(array.tobytes() for array in make_arrays(arrays))
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client_context().wrap_socket(sock) if tls else sock as sock:
        for number in range(messages):
            sock.sendall(data)
            meter.passed(number)
        return meter.figures()


# --- ZeroMQ -----------------------------------------------------------------------------------------------------


def receive_zeromq(pipe: Pipe, messages: int, arrays: int, tls: bool, folder: Path) -> Figures:
    meter = Meter(messages)
    with zmq.Context() as context, context.socket(zmq.PULL) as sock:
        pipe.send(sock.bind_to_random_port("tcp://127.0.0.1"))
        for number in range(messages):
            frames = sock.recv_multipart(copy=False)
            args = pickle.loads(frames[0].buffer, buffers=[frame.buffer for frame in frames[1:]])
            assert args[0].shape == SHAPE
            meter.passed(number)
        return meter.figures()


def send_zeromq(port: int, messages: int, arrays: int, tls: bool, folder: Path, window: int) -> Figures:
    meter = Meter(messages)
    args = make_arrays(arrays)
    with zmq.Context() as context, context.socket(zmq.PUSH) as sock:
        sock.connect(f"tcp://127.0.0.1:{port}")
        for number in range(messages):
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps(args, 5, buffer_callback=buffers.append)
            sock.send_multipart([head, *(each.raw() for each in buffers)], copy=False)
            meter.passed(number)
        return meter.figures()


# --- the run ----------------------------------------------------------------------------------------------------

Receive = Callable[[Pipe, int, int, bool, Path], Figures]
Send = Callable[[int, int, int, bool, Path, int], Figures]
CONTENDERS: dict[str, tuple[Receive, Send, bool]] = {
    "bare": (receive_bare, send_bare, False),
    "ours": (receive_ours, send_ours, False),
    "ZeroMQ": (receive_zeromq, send_zeromq, False),
    "bare, TLS": (receive_bare, send_bare, True),
    "ours, TLS": (receive_ours, send_ours, True),
}


def receiver(pipe: Pipe) -> None:
    for name, *numbers, folder in calls(pipe):
        receive, _, tls = CONTENDERS[name]
        pipe.send(receive(pipe, *numbers, tls, folder))


def sender(pipe: Pipe) -> None:
    for name, port, *numbers, folder, window in calls(pipe):
        _, send, tls = CONTENDERS[name]
        pipe.send(send(port, *numbers, tls, folder, window))


def measure(names: list[str], arrays: int, options: argparse.Namespace, folder: Path) -> None:
    ends: dict[str, tuple[Peer, Peer]] = {name: (Peer(receiver), Peer(sender)) for name in names}
    found: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in names}
    for name in in_turn(names, options.rounds):
        receiving, sending = ends[name]
        messages = options.messages // (4 if CONTENDERS[name][2] else 1) // arrays
        port = receiving.ask(name, messages, arrays, folder)
        sent = sending.ask(name, port, messages, arrays, folder, options.window)
        found[name].append((receiving.answer(), sent))
    for pair in ends.values():
        for each in pair:
            each.close()
    print(f"{arrays} x {ARRAY_BYTES:,} bytes a message, medians of {options.rounds} rounds\n")
    print_table(
        ("one way", "messages/s", "sender µs CPU", "receiver µs CPU"),
        [
            (name, *(median(pick(each) for each in rounds) for pick in (_rate, _sender_cpu, _receiver_cpu)))
            for name, rounds in found.items()
        ],
    )
    bars = [("ours", "bare", 0.75), ("ours", "ZeroMQ", 1.3), ("ours, TLS", "bare, TLS", 0.8)]
    rows = []
    for ours, theirs, bar in bars:
        if ours in found and theirs in found:
            ratio = median_ratio([_rate(each) for each in found[ours]], [_rate(each) for each in found[theirs]])
            rows.append((f"{ours} by {theirs}", verdict(ratio, at_least=bar)))
    print_table(("messages a second", "median ratio"), rows)


def _rate(figures: tuple[Figures, Figures]) -> float:
    return figures[0]["rate"]


def _receiver_cpu(figures: tuple[Figures, Figures]) -> float:
    return figures[0]["cpu_us"]


def _sender_cpu(figures: tuple[Figures, Figures]) -> float:
    return figures[1]["cpu_us"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.transport", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=8000, help="in a round; fewer with TLS or two arrays")
    parser.add_argument("--window", type=int, default=8, help="items that may be on their way unacknowledged")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="this contender; repeatable")
    parser.add_argument("--arrays", type=int, action="append", help="arrays in a message; repeatable (default 1 and 2)")
    options = parser.parse_args(argv)
    names: list[Any] = options.only or list(CONTENDERS)
    if zmq is None and "ZeroMQ" in names:
        names.remove("ZeroMQ")
        print("ZeroMQ is left out: pyzmq is not installed; pip install pyzmq\n")
    with tempfile.TemporaryDirectory() as folder:
        for arrays in options.arrays or (1, 2):
            measure(names, arrays, options, Path(folder))


if __name__ == "__main__":
    main()
