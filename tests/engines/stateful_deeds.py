"""`deeds`, with a second task that keeps state in the cloud."""

from __future__ import annotations

from task_offload.task import task
from tests.engines import deeds

tasks = [deeds.take, task(runs_on="cloud", stateful=True)(deeds.do), deeds.show]
