"""Runs torchrun on a node of a cluster: `python tasks/launchers/node_agent.py COMMAND ...`.

The cluster tells every process of a node to end: the ranks save a checkpoint, torchrun waits for them and fails. So
this one, which was told too, ends with EXIT_TOLD, which says that the job can be queued again and goes on from there.
"""

import signal
import subprocess
import sys

EXIT_TOLD = 75  # EX_TEMPFAIL of sysexits.h, as a training by itself ends


def run(command: list[str]) -> int:
    """Returns the exit code of `command`, EXIT_TOLD where SIGTERM came before its end."""
    told = False

    def remember(number: int, frame: object) -> None:
        nonlocal told
        told = True

    # Not passed on: torchrun got one of its own, and would drop its ranks at the second.
    signal.signal(signal.SIGTERM, remember)
    code = subprocess.call(command)
    if told:
        return EXIT_TOLD
    return code if code >= 0 else 128 - code  # as a shell says it


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
