"""The cloud in this process, on clocks that stand still, with devices spoken by hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from task_offload.cloud import Cloud
from task_offload.config import CloudConfig
from task_offload.engines.base import Unit
from task_offload.task import Chain, load_app
from task_offload.wire.messages import Ending, EndingRange, Kind, Totals, Welcome, decode_totals
from tests.support.peers import Peer, hello
from tests.support.processes import APPS, Row, read_rows

COUNTER = str(APPS / "counter.py")
SESSION = bytes(range(16))


class World:
    def __init__(self, folder: Path, results: str | None = None, **more: Any) -> None:
        self.now = 1000.0
        self.unix_now = 1_800_000_000.0
        self.store = folder / "results.sqlite"
        config = CloudConfig(
            host="127.0.0.1", port=0, app=COUNTER, workers=2, results=(results or f"sqlite:{self.store}",),
            use_tls=False, drain_s=5.0, **more,
        )  # fmt: skip
        self.cloud = Cloud(config, clock=lambda: self.now, unix_clock=lambda: self.unix_now)
        self.chain: Chain = load_app(COUNTER)
        self._thread = threading.Thread(target=self.cloud.run, daemon=True)  # a test that fails may leave it busy
        self.cloud.start()
        self._thread.start()

    def connect(self, session: bytes = SESSION, device: str = "device", acked: int = 0) -> tuple[Peer, Welcome]:
        peer = Peer(self.cloud.port)
        peer.send(hello(self.chain, device, session, acked=acked).encode())
        return peer, Welcome.decode(peer.until(Kind.WELCOME).head)

    def rows(self) -> list[Row]:
        return read_rows(self.store)

    def close(self) -> None:
        self.cloud.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.cloud.close()


@contextmanager
def worlds(folder: Path) -> Iterator[Callable[..., World]]:
    """Gives what makes worlds, one after the other over the same store, and closes them."""
    made: list[World] = []

    def build(**more: Any) -> World:
        made.append(World(folder, **more))
        return made[-1]

    try:
        yield build
    finally:
        for world in made:
            world.close()


def totals(peer: Peer, items: int) -> Totals:
    """The first ack that covers so many items."""
    while (found := decode_totals(peer.until(Kind.ACK).head)).next_sequence < items:
        pass
    return found


def ended(first: int, count: int = 1, ending: Ending = Ending.DROPPED, detail: str = "overload", **more: Any) -> bytes:
    return EndingRange(first, count, ending, 2, detail, **more).encode()


class Held:
    """Units on their way to the engine, which wait until a test lets them go."""

    def __init__(self, world: World) -> None:
        self.submit = world.cloud.reception._behind.submit
        self.units: list[Unit] = []
        world.cloud.reception._behind.submit = self.units.extend  # type: ignore[method-assign]

    def let_go(self) -> None:
        units = self.units[:]
        del self.units[: len(units)]
        self.submit(units)


def pass_by(world: World) -> None:
    """The listener has done all that it could do until now."""
    peer, _ = world.connect(session=os.urandom(16), device="somebody")
    peer.socket.close()
