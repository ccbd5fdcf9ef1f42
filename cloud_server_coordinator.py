#!/usr/bin/env python3
"""The cloud's side: runs the tasks that devices leave to it. See --help and README.md."""

from task_offload.command import cloud_command

main = cloud_command

if __name__ == "__main__":
    raise SystemExit(main())
