#!/usr/bin/env python3
"""The cloud's side: runs the tasks that devices leave to it. See --help and README.md."""

import sys


def main() -> int:
    """Returns the exit status."""
    try:
        from task_offload.command import cloud_command, end  # here: Ctrl-C may come meanwhile, or a package be missing

        return end(cloud_command())
    except ModuleNotFoundError as error:
        sys.exit(f"cloud_server_coordinator.py: {error.name} is not installed; pip install -r requirements.txt")
    except KeyboardInterrupt:  # before the run, which ends in good order, began
        print("stopped before it began", file=sys.stderr)
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
