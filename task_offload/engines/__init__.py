"""Where the cloud runs an item's remaining tasks up to the last."""

from __future__ import annotations

from task_offload.engines.base import Engine, Finished
from task_offload.engines.threads import ThreadEngine
from task_offload.errors import ConfigError
from task_offload.task import Chain
from task_offload.wire.codec import Decoder


def make_engine(name: str, chain: Chain, decoder: Decoder, workers: int, finished: Finished) -> Engine:
    """The engine of this name, as `--engine` takes it.

    Raises:
        ConfigError: there is none.
    """
    if name == "threads":
        return ThreadEngine(chain, decoder, workers, finished)
    raise ConfigError(f"engine {name!r} is not known; choose threads")
