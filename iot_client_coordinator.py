#!/usr/bin/env python3
"""The device's side: runs the first tasks of an app here, and the rest on a server. See --help and README.md."""

from task_offload.command import device_command

main = device_command

if __name__ == "__main__":
    raise SystemExit(main())
