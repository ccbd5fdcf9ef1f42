"""A worker in a process of its own."""

from __future__ import annotations

from task_offload.engines.base import Lane, Unit
from task_offload.engines.processes import ProcessWorker
from task_offload.task import Item, load_app
from task_offload.wire.codec import Encoder


def double(number: int) -> Unit:
    head = Encoder().encode(("double", number)).head
    return Unit(Lane(), Item("device", "0" * 32, number, 0.0, 1), head, None, 0, None)


def test_replies_that_nobody_read_are_not_those_of_the_next_units() -> None:
    worker = ProcessWorker(load_app("tests.engines.deeds"), timeout_s=60.0)
    try:
        worker.wait()
        run = worker.run([double(1), double(2)])
        next(run)
        run.close()  # as any error does that ends it half-way
        worker.wait()
        (done,) = worker.run([double(3)])
        assert done.outcome.value[-1] == 6
    finally:
        worker.close()
