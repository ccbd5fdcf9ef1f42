"""Run one chain of tasks across a weak device and a cloud.

What an app needs is exported here. The way of an item through the modules:

    device   pipeline (tasks 1 to N) -> wire.codec -> wire.outbox -> transport.exchange, kept alive by transport.link
    cloud    transport.listener -> reception -> engines (tasks N+1 to m-1) -> finishing (order, last task) -> results
             -> reception (ack) -> transport.listener

`device` and `cloud` wire their side together; `run` is what all modes of the device share, `local_run` local-only mode,
`spooled_outbox` and `spool` what waits on disk, `capacity` whom the cloud admits; `command` is what the scripts call.
"""

from task_offload.errors import OffloadError, SourceError
from task_offload.picture import picture
from task_offload.task import Item, current_item, publish_frame, task

__all__ = ["Item", "OffloadError", "SourceError", "current_item", "picture", "publish_frame", "task"]
