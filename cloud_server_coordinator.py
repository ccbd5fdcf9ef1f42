#!/usr/bin/env python3
"""The cloud's side: runs the tasks that devices leave to it. See --help and README.md."""

import signal
import sys


def main() -> int:
    """Returns the exit status."""
    try:
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # NumPy takes Ctrl-C for a bad installation
        try:
            from task_offload.command import cloud_command, end  # here: a package may be missing
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        return end(cloud_command())
    except ModuleNotFoundError as error:
        sys.exit(f"cloud_server_coordinator.py: {error.name} is not installed; pip install -r requirements.txt")
    except KeyboardInterrupt:  # before the run, which ends in good order, began
        print("stopped before it began", file=sys.stderr)
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
