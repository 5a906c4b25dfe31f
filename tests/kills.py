"""What the kill tests share: how often they kill (three times, or MEDPIX_KILLS times), and processes to kill."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KILLS = int(os.environ.get("MEDPIX_KILLS", "3"))  # `make stress` sets both
FAULTS = int(os.environ.get("MEDPIX_FAULTS", "0"))  # processes of whole flows that are killed
# Imports take longer than the work, so this program imports once and forks a process for each line that it reads.
LOOP = """
for line in sys.stdin:
    child = os.fork()
    if not child:
        work(line.rstrip("\\n"))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Starter:
    """Starts processes that do the same work, one after the other."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def start(self, line: str) -> int:
        """Starts a process that calls `work(line)` and returns its process id."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> int:
        """Waits for the process and returns its wait status: 0, or the signal that killed it."""
        return self._read()

    def _read(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@contextmanager
def starter_of(program: str) -> Iterator[Starter]:
    """Yields the starter of a program, which imports `os` and `sys` and defines `work`."""
    with subprocess.Popen(
        [sys.executable, "-c", program + LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Starter(process)
        process.kill()
