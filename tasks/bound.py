"""Runs a command that ends with its parent: `python tasks/bound.py PARENT-PID COMMAND ...`.

A flow's process that is killed (by the kernel for want of memory, say) cannot end what it started. So the kernel is
asked to send SIGTERM to the command when its parent dies: torchrun passes it on, and a training saves a checkpoint.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; it holds across exec


def main() -> None:
    """Becomes the command."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # It died before the kernel was asked.
            raise SystemExit(f"the process {parent} that started this one has ended")
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
