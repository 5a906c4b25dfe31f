"""Runs a command that ends with its parent: `python tasks/launchers/parent_guard.py PARENT-PID COMMAND ...`.

A flow's process that is killed (for example by the kernel when memory runs out) cannot end the processes that it
started. This guard therefore asks the kernel for a SIGTERM when its parent dies. It passes the signal on, torchrun does
too, and a training saves a checkpoint.

The guard passes on only the first SIGTERM. A worker that is stopped sends SIGTERM to the flow's process, which sends
one here. The worker then kills the flow's process before the checkpoint is saved, which causes a second SIGTERM. At a
second one, torchrun would kill its ranks.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int | None = None, number: int = signal.SIGTERM) -> None:
    """Asks the kernel to send SIGTERM, or another signal, to this process when its parent dies.

    Raises SystemExit if `parent` has died already, so that the kernel would never send the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent not in (None, os.getppid()):
        raise SystemExit(f"the process {parent} that started this one has ended")


def run(command: list[str]) -> int:
    """Runs `command` and returns its exit code; passes on the first SIGTERM, and ignores later ones."""
    stopped = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        if not stopped and child is not None:
            child.terminate()
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    end_with_parent(int(sys.argv[1]))
    child = subprocess.Popen(command, preexec_fn=end_with_parent)
    if stopped:  # SIGTERM came while the child was being started
        child.terminate()
    code = child.wait()
    return code if code >= 0 else 128 - code  # a shell's exit code for a signal


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[2:]))
