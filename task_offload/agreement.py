"""What both sides must agree on. In: a chain. Out: its description for the handshake."""

from __future__ import annotations

from task_offload.task import Chain
from task_offload.wire.messages import ChainSpec, TaskSpec

_PINS = {None: 0, "device": 1, "cloud": 2}


def chain_spec(chain: Chain) -> ChainSpec:
    """Names and contracts of the tasks, names of the payload types, and the source's digest."""
    return ChainSpec(
        tuple(TaskSpec(t.name, _PINS[t.contract.runs_on], t.contract.stateful) for t in chain.tasks),
        tuple(each.__qualname__ for each in chain.payload_types),
        chain.source_digest,
    )
