"""What launchers and whoever uses them share: a job, and one that was submitted."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlm_core.config import ComputeConfig
from vlm_core.progress import PROGRESS_FILE

JOB_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars are unreadable in a log
    "PYTHONUNBUFFERED": "1",
    # Waiting threads sleep: two jobs that share the cores of a machine would otherwise slow each other 40-fold.
    "OMP_WAIT_POLICY": "PASSIVE",
}

SECONDS_TO_SAVE = 120  # of a job of a cluster that is told to end
CLUSTER_ENVIRONMENT = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SECONDS_TO_SAVE),  # for which torchrun waits for its ranks
    # A store of its own for each start of the ranks: in a shared one they find the addresses of those before, and wait
    # for them without end.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class JobFailedError(RuntimeError):
    """A job ended with a non-zero exit code; the message has the code and the last lines of its log."""


@dataclass(frozen=True)
class Job:
    """`torchrun -m module arguments` on the nodes and processes of `compute`."""

    module: str
    arguments: tuple[str, ...]
    compute: ComputeConfig
    log_file: Path  # in the run directory; what else a job leaves there has its name and another suffix

    @property
    def progress_file(self) -> Path:
        """Where the job writes how far it is."""
        return self.log_file.with_suffix(".progress.json")

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Returns the job's own variables; of JOB_ENVIRONMENT, what is `given` has another value."""
        return {name: given.get(name, value) for name, value in JOB_ENVIRONMENT.items()} | {
            PROGRESS_FILE: str(self.progress_file)
        }


class SubmittedJob(Protocol):
    """A job that was submitted; it writes its log whether it is followed or not."""

    log_start: int  # bytes of the log file that are older than this job

    @property
    def remark(self) -> str:
        """What the engine says of a job that failed; empty where the exit code says it all."""
        ...

    def result(self) -> int | None:
        """Returns the job's exit code, None until it has ended. Called about twice a second."""
        ...

    def cancel(self) -> None:
        """Leaves nothing of the job: one that works is told to end, has the time to save, and is gone on return.

        Called for a job that has ended, too.
        """
        ...


class Launcher(Protocol):
    """An engine that runs jobs."""

    def submit(self, job: Job) -> SubmittedJob:
        """Starts `job`; raises ValueError where the engine would never run it.

        An engine whose jobs outlive the process that submitted them returns the one that is at work on `job` already.
        """
        ...
