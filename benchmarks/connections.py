"""Why one thread has all connections: it beside a thread for each, from few devices to many.

    python3 -m benchmarks.connections [--rate 4000] [--number 10 --number 500] [--rounds 3]

Both servers cut frames by the same code, take small items of emulated devices, and acknowledge them at once; nothing is
decoded or recorded. One is the framework's `Listener`, the other has a thread for each device, which waits in `recv`.
The columns: items a second, CPU of the server for one, the ack's latency, and memory for a device.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from typing import Any

import psutil

from benchmarks import fleet_chain
from benchmarks.fleet import HEAD, Result, carry, row
from benchmarks.fleet_devices import Load
from benchmarks.harness import Peer, calls, in_turn, print_table
from task_offload.task import load_app
from task_offload.transport.listener import Connection, Listener, ListenerLimits
from task_offload.transport.stream import tune
from task_offload.wire.framing import FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import Hello, Totals, Welcome, ack, farewell
from task_offload.wire.session import Arrived, Bye, CloudEvent, CloudSide

LIMITS = ListenerLimits()
WELCOME = Welcome(
    Totals(), LIMITS.heartbeat_s, LIMITS.silence_s, LIMITS.frames.body_bytes, 1 << 26, 1 << 10
).encode()  # fmt: skip


def new_side() -> CloudSide:
    chain = load_app(fleet_chain.APP)
    return CloudSide(len(chain.tasks), chain.splits)


class OneThread:
    """The framework's listener, which acknowledges what came when it has read it all."""

    def __init__(self) -> None:
        self._came: dict[Connection, int] = {}
        self._listener = Listener("127.0.0.1", 0, self, new_side, limits=LIMITS)
        self.port = self._listener.port
        self._listener.start()

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self._listener.accept(connection, 0, WELCOME)

    def arrived(self, connection: Connection, event: CloudEvent) -> None:
        if type(event) is Arrived:
            connection.session = self._came[connection] = event.sequence + 1
        elif isinstance(event, Bye):
            self._listener.send(connection, farewell(Totals(connection.session)))
            self._came.pop(connection, None)
            self._listener.dismiss(connection)

    def closed(self, connection: Connection, reason: str) -> None:
        self._came.pop(connection, None)

    def flush(self) -> None:
        came, self._came = self._came, {}
        for connection, items in came.items():
            self._listener.send(connection, ack(Totals(items)))

    def tick(self) -> None:
        pass


class ThreadEach:
    """A thread for each connection."""

    def __init__(self) -> None:
        self._memory = MemoryPool(LIMITS.free_bytes)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._socket.accept()
            tune(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        reader, side = FrameReader(self._memory, FrameLimits()), new_side()
        items = 0
        with sock:
            while count := sock.recv_into(reader.buffer()):
                before = items
                reader.received(count)
                for frame in iter(reader.next, None):
                    event = side.receive(frame)
                    if type(event) is Arrived:
                        items = event.sequence + 1
                    elif isinstance(event, Hello):
                        side.open()
                        sock.sendall(WELCOME)
                    elif isinstance(event, Bye):
                        sock.sendall(farewell(Totals(items)))
                        return
                if items > before:
                    sock.sendall(ack(Totals(items)))


DESIGNS = {"one thread": OneThread, "a thread each": ThreadEach}


def serve(pipe: Any) -> None:
    """A server's process: runs the design that it is told."""
    server: Any = None
    for (name,) in calls(pipe):
        server = DESIGNS[name]()
        pipe.send((server.port, psutil.Process().pid))


class Server:
    """A server's process, as `carry` asks it."""

    def __init__(self, name: str) -> None:
        self._peer = Peer(serve)
        self.port, pid = self._peer.ask(name)
        self._process = psutil.Process(pid)
        time.sleep(0.2)  # until it waits

    def cpu_s(self) -> float:
        return sum(self._process.cpu_times()[:2])

    def memory_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def close(self) -> None:
        self._peer.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.connections", description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, action="append", help="of devices, repeatable (default: 10, 100 and 500)")
    parser.add_argument("--rate", type=float, default=4000.0, help="items a second of all devices")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one run")
    options = parser.parse_args(argv)
    for number in options.number or (10, 100, 500):
        found: dict[str, list[Result]] = {name: [] for name in DESIGNS}
        for name in in_turn(list(DESIGNS), options.rounds):
            server = Server(name)
            load = Load(number, len(fleet_chain.tasks) - 1, None, rate=options.rate / number, window=256)
            found[name].append(carry(server, [load], options.seconds)[0])
            server.close()
        print(f"{number} devices, {options.rate:g} items a second in all\n")
        print_table(HEAD, [row(name, runs) for name, runs in found.items()])


if __name__ == "__main__":
    main()
