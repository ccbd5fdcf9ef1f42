"""`deeds`, with a second task that keeps state in the cloud."""

from __future__ import annotations

from task_offload.task import task
from tests.engines import deeds


@task(runs_on="cloud", stateful=True)
def do(deed, value):  # a function of its own: `task` marks the one that it is given
    return deeds.do(deed, value)


tasks = [deeds.take, do, deeds.show]
