"""The sessions that a device's run carries. In: what earlier runs left in the spool. Out: those, then the run's own."""

from __future__ import annotations

import json
import logging
import os

from task_offload.agreement import chain_spec
from task_offload.config import DeviceConfig
from task_offload.spool import DiskSpool
from task_offload.spooled_outbox import SpooledOutbox
from task_offload.task import Chain
from task_offload.transport.exchange import DeviceSession
from task_offload.wire.outbox import Outbox

log = logging.getLogger(__name__)

MEMORY_SPOOL_BYTES = 64 * 1024 * 1024
DISK_SPOOL_BYTES = 1024 * 1024 * 1024


def open_spool(config: DeviceConfig) -> DiskSpool | None:
    """The spool of `--spool`.

    Raises:
        ConfigError: another process uses the folder.
        StoreError: the folder cannot be used.
    """
    return DiskSpool(config.spool, config.spool_limit_bytes or DISK_SPOOL_BYTES) if config.spool is not None else None


def open_sessions(config: DeviceConfig, chain: Chain, spool: DiskSpool | None, newest: bool) -> list[DeviceSession]:
    """What earlier runs left for this chain and device, and as the last one the session of this run.

    Arguments:
        newest: where the spool is full, an item becomes a drop; otherwise it waits in memory.
    """
    session = os.urandom(16)
    if spool is None:
        return [DeviceSession(session, Outbox(config.spool_limit_bytes or MEMORY_SPOOL_BYTES))]
    limit_bytes = config.spool_limit_bytes or DISK_SPOOL_BYTES
    meta = json.dumps([config.device_name, *chain_spec(chain).identity()]).encode()
    earlier = []
    for held in spool.sessions():
        if held.meta != meta:
            log.warning(
                "%d items of an earlier run wait in %s for another app or device name: %s",
                held.items, config.spool, held.meta.decode(errors="replace"),
            )  # fmt: skip
            continue
        outbox = SpooledOutbox(spool, held.session, limit_bytes, (held.first, held.end))
        earlier.append(DeviceSession(bytes.fromhex(held.session), outbox, held.end, sent_to=2**63, leaving=True))
    if earlier:
        log.info("%d items of earlier runs are delivered first", sum(each.outbox.waiting_entries for each in earlier))
    spool.begin(session.hex(), meta)
    outbox = SpooledOutbox(spool, session.hex(), limit_bytes, drop_when_full=newest)
    return [*earlier, DeviceSession(session, outbox)]
