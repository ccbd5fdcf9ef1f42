"""Where the cloud runs an item's remaining tasks up to the last."""

from __future__ import annotations

import sys

from task_offload.engines.base import Engine, Finished
from task_offload.engines.pool import Pool
from task_offload.engines.threads import ThreadWorker
from task_offload.errors import ConfigError
from task_offload.task import Chain

ENGINES = "threads, processes, dask or dask:ADDRESS"


def make_engine(name: str, chain: Chain, workers: int, finished: Finished, timeout_s: float) -> Engine:
    """The engine of this name, as `--engine` takes it.

    Raises:
        ConfigError: there is none, or a package that it needs is not installed.
        AppError: a worker's process cannot load the app.
        LinkError: Dask's cluster does not answer, or cannot be started.
    """
    kind, _, address = name.partition(":")
    stateful = chain.stateful_between(chain.splits[0], len(chain.tasks) - 1)
    if name == "threads":
        if workers > 1 and (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(1)  # the workers are the parallelism
        return Pool(lambda: ThreadWorker(chain), workers, stateful, False, finished, timeout_s)
    if name == "processes":
        from task_offload.engines.processes import ProcessWorker

        return Pool(lambda: ProcessWorker(chain, timeout_s), workers, stateful, True, finished, timeout_s)
    if kind == "dask" and (address or name == "dask"):
        from task_offload.engines.dask import DaskEngine

        return DaskEngine(chain, address, workers, stateful, finished, timeout_s)
    raise ConfigError(f"--engine {name}: choose {ENGINES}")
