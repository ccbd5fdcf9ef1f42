"""Run one chain of tasks across a weak device and a cloud.

What an app needs is exported here. The way of an item through the modules:

    device   pipeline (tasks 1 to N) -> wire.codec -> wire.outbox -> transport.exchange, kept alive by transport.link
    cloud    transport.listener -> reception -> engines (tasks N+1 to m-1) -> finishing (order, last task) -> results
             -> reception (ack) -> transport.listener

`device` and `cloud` wire their side together. On the device `admission` says when an item may come in and how it goes,
`steering` what the policy decides of that, and `observer` what the policy sees; `device_sessions`, `spooled_outbox` and
`spool` hold what waits on disk; `run` is what all modes share, `local_run` local-only mode. `capacity` says whom the
cloud admits; `command` is what the scripts call.
"""

from task_offload.errors import OffloadError, SourceError
from task_offload.picture import picture
from task_offload.task import Item, current_item, publish_frame, task

__all__ = ["Item", "OffloadError", "SourceError", "current_item", "picture", "publish_frame", "task"]
