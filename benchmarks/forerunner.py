"""The sequential design that the framework is measured against, as the forerunner of this project has it.

One loop on the device: run the first tasks, `pickle.dumps` of each argument in band with length prefixes joined by
`+=`, `sendall`. On the server a thread for each client: `recv(4096)` and `+=` until the length is there,
`pickle.loads`, the remaining tasks. Nothing is acknowledged. Its artificial slowness is left out.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from task_offload.picture import Picture
from task_offload.task import Item, set_current_item

_NUMBER = struct.Struct("<Q")

Tasks = Sequence[Callable[..., Any]]


def bare_loop(tasks: Tasks, duration_s: float) -> int:
    """Runs all tasks on one item after the other. Returns how many items there were."""
    set_current_item(Item("loop", "", 0, 0.0, len(tasks)))
    items = 0
    ends_at = time.monotonic() + duration_s
    while time.monotonic() < ends_at:
        _run(tasks, ())
        items += 1
    return items


def run_device(tasks: Tasks, split: int, port: int, duration_s: float, host: str = "127.0.0.1") -> tuple[int, int]:
    """Sends items for some seconds. Returns how many, and how many bytes."""
    items = sent_bytes = 0
    set_current_item(Item("forerunner", "", 0, 0.0, split))
    with socket.create_connection((host, port)) as sock:
        ends_at = time.monotonic() + duration_s
        while time.monotonic() < ends_at:
            args = _run(tasks[:split], ())
            data = b""
            data += _NUMBER.pack(split)
            data += _NUMBER.pack(len(args))
            for arg in args:
                pickled = pickle.dumps(arg)
                data += _NUMBER.pack(len(pickled))
                data += pickled
            sock.sendall(data)
            items += 1
            sent_bytes += len(data)
    return items, sent_bytes


class Server:
    """Takes clients in until the process ends."""

    def __init__(self, tasks: Tasks, host: str = "127.0.0.1", port: int = 0) -> None:
        self._tasks = tasks
        self._socket = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        self._clients: SimpleQueue[threading.Thread] = SimpleQueue()
        threading.Thread(target=self._accept, daemon=True).start()

    def wait(self) -> None:
        """Until the next client has come and left, and all it sent is processed."""
        self._clients.get().join()

    def _accept(self) -> None:
        while True:
            sock, _ = self._socket.accept()
            client = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            client.start()
            self._clients.put(client)

    def _serve(self, sock: socket.socket) -> None:
        set_current_item(Item("forerunner", "", 0, 0.0, 1))
        data = b""

        def take(size_bytes: int) -> bytes:
            nonlocal data
            while len(data) < size_bytes:
                received = sock.recv(4096)
                if not received:
                    raise EOFError
                data += received
            taken, data = data[:size_bytes], data[size_bytes:]
            return taken

        def take_number() -> int:
            return int(_NUMBER.unpack(take(_NUMBER.size))[0])

        with sock:
            try:
                while True:
                    split = take_number()
                    args = tuple(pickle.loads(take(take_number())) for _ in range(take_number()))
                    _run(self._tasks[split:], args)
            except EOFError:
                pass


def _run(tasks: Tasks, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Runs tasks that let every item continue. Returns the arguments of the next one."""
    for task in tasks:
        _, returned = task(*args)
        args = returned if type(returned) is tuple else (returned,)
        args = tuple(arg.image if type(arg) is Picture else arg for arg in args)
    return args
