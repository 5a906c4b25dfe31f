"""Runs a command that ends with its parent: `python tasks/launchers/parent_guard.py PARENT-PID COMMAND ...`.

A flow's process that is killed (by the kernel for want of memory, say) cannot end what it started. So the kernel is
asked to send SIGTERM when a parent dies: this process passes it on, torchrun too, and a training saves a checkpoint.

It passes on one SIGTERM and no more. A worker that is stopped sends one to the flow's process, which sends one here,
and kills that process before the checkpoint is saved; at a second one torchrun would drop its ranks.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int | None = None, number: int = signal.SIGTERM) -> None:
    """Has the kernel send SIGTERM, or another signal, to this process when its parent dies.

    Raises SystemExit if it is no longer the child of `parent`, which died before the kernel was asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent not in (None, os.getppid()):
        raise SystemExit(f"the process {parent} that started this one has ended")


def run(command: list[str]) -> int:
    """Returns the exit code of a command that is told once to end, however often this process is."""
    told = False
    child: subprocess.Popen[bytes] | None = None

    def tell(number: int, frame: object) -> None:
        nonlocal told
        if not told and child is not None:
            child.terminate()
        told = True

    signal.signal(signal.SIGTERM, tell)
    end_with_parent(int(sys.argv[1]))
    child = subprocess.Popen(command, preexec_fn=end_with_parent)
    if told:  # while it was started
        child.terminate()
    code = child.wait()
    return code if code >= 0 else 128 - code  # as a shell says it


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[2:]))
