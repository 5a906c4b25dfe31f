"""Heavy jobs as subprocesses: `torchrun -m MODULE ...` in a process group of its own, followed through its log file.

The job writes into a file and not into a pipe: it neither waits for its follower nor dies with it.
"""

import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from tasks import bound
from tasks.processes import end_family, write_pid_file
from vlm_core.progress import PROGRESS_FILE

SECONDS_BETWEEN_LOOKS = 0.5
TAIL_LINES = 30

JOB_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars are unreadable in a log
    "PYTHONUNBUFFERED": "1",
    # Waiting threads sleep: two jobs that share the cores of a machine would otherwise slow each other 40-fold.
    "OMP_WAIT_POLICY": "PASSIVE",
}

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class JobFailedError(RuntimeError):
    """A job ended with a non-zero exit code; the message has the code and the last lines of its log."""


def run_job(
    module: str,
    arguments: Sequence[str],
    *,
    processes: int,
    log_file: Path,
    logger: Logger,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Runs `torchrun --nproc-per-node=processes -m module arguments` to its end.

    Lines of its log go to `logger` while it runs; `on_look` is called about twice a second, and once after the end.
    Whatever ends this call early (a cancellation, an error of `on_look`) ends the whole process group first; a death
    of this very process ends it too (`tasks.bound`).
    Raises JobFailedError for a non-zero exit code.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file, progress_file = log_file.with_suffix(".pid"), progress_file_of(log_file)
    progress_file.unlink(missing_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # By its path: as a module it would import the package, and Prefect's defaults, first.
    command = [sys.executable, str(Path(bound.__file__)), str(os.getpid()), *torchrun]
    with log_file.open("ab") as sink, log_file.open("rb") as source:
        source.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [*command, "-m", module, *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=JOB_ENVIRONMENT | os.environ | {PROGRESS_FILE: str(progress_file)},
        )
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            write_pid_file(pid_file, process.pid)
            while process.poll() is None:
                _pass_on(source, logger, tail)
                on_look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            _pass_on(source, logger, tail, ended=True)
            on_look()
        finally:
            if process.poll() is None:
                end_family(psutil.Process(process.pid))
            process.wait()
            pid_file.unlink(missing_ok=True)
    if process.returncode:
        last_lines = "\n".join(tail)
        raise JobFailedError(f"{module} ended with exit code {process.returncode}; {log_file} ends with:\n{last_lines}")


def progress_file_of(log_file: Path) -> Path:
    """Returns where a job with this log file writes how far it is."""
    return log_file.with_suffix(".progress.json")


def _pass_on(source: BinaryIO, logger: Logger, tail: deque[str], *, ended: bool = False) -> None:
    while line := source.readline():
        if not line.endswith(b"\n") and not ended:
            source.seek(-len(line), os.SEEK_CUR)  # It is still being written.
            return
        text = line.decode(errors="replace").rstrip()  # Drivers write into it too, in whatever encoding.
        if text:
            tail.append(text)
            logger.info("%s", text)
