"""Runs torchrun on a node of a cluster: `python tasks/launchers/node_agent.py COMMAND ...`.

When a cluster stops a job, it sends SIGTERM to every process of the node. The ranks save a checkpoint, and torchrun
waits for them and then fails. This process got SIGTERM too, and ends with EXIT_PREEMPTED. The job's script then knows
that it can queue the job again, which will resume from the checkpoint.
"""

import signal
import subprocess
import sys

# EX_TEMPFAIL of sysexits.h, the same number as in vlm_core/finetune.py. This file runs by path on every node and
# imports the standard library only.
EXIT_PREEMPTED = 75


def run(command: list[str]) -> int:
    """Returns the exit code of `command`, or EXIT_PREEMPTED if SIGTERM came before its end."""
    stopped = False

    def remember(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    # The signal is not passed on: torchrun got its own, and would kill its ranks at a second one.
    signal.signal(signal.SIGTERM, remember)
    code = subprocess.call(command)
    if stopped:
        return EXIT_PREEMPTED
    return code if code >= 0 else 128 - code  # a shell's exit code for a signal


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
