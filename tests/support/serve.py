"""The server's command with other limits than the defaults, from SERVER_LIMITS: no test must wait so long."""

from __future__ import annotations

import functools
import json
import os

from task_offload import cloud, command
from task_offload.transport.listener import ListenerLimits


def main() -> int:
    limits = ListenerLimits(**json.loads(os.environ["SERVER_LIMITS"]))
    cloud.Cloud = functools.partial(cloud.Cloud, limits=limits)  # type: ignore[assignment, misc]
    return command.cloud_command()


if __name__ == "__main__":
    raise SystemExit(main())
