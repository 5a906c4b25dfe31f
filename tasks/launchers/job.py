"""The protocol between launchers and their callers: a job to run, and a job that was submitted."""

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
    # Waiting threads sleep. Otherwise two jobs that share a machine's cores slow each other down 40-fold.
    "OMP_WAIT_POLICY": "PASSIVE",
}

SECONDS_TO_SAVE = 120  # A cluster's job has this long to save a checkpoint after SIGTERM.
CLUSTER_ENVIRONMENT = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SECONDS_TO_SAVE),  # how long torchrun waits for its ranks
    # Each start of the ranks gets its own store. In a shared store, ranks find the addresses of the previous start and
    # wait for them forever.
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
    log_file: Path  # In the run directory; the job's other files there have the same name and another suffix.

    @property
    def progress_file(self) -> Path:
        """The file to which the job writes its progress."""
        return self.log_file.with_suffix(".progress.json")

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Returns the variables to set for the job; values in `given` replace those of JOB_ENVIRONMENT."""
        return {name: given.get(name, value) for name, value in JOB_ENVIRONMENT.items()} | {
            PROGRESS_FILE: str(self.progress_file)
        }


class SubmittedJob(Protocol):
    """A job that was submitted; it writes its log whether or not someone follows it."""

    log_start: int  # Bytes that were in the log file before this job.

    @property
    def failure_detail(self) -> str:
        """The engine's explanation of a failure; empty if the exit code says everything."""
        ...

    def result(self) -> int | None:
        """Returns the job's exit code, or None while it runs. Called about twice a second."""
        ...

    def cancel(self) -> None:
        """Stops the job if it runs, gives it time to save, and returns when it is gone.

        Also called after a job has ended.
        """
        ...


class Launcher(Protocol):
    """An engine that runs jobs."""

    def submit(self, job: Job) -> SubmittedJob:
        """Starts `job`; raises ValueError if the engine would never run it.

        Jobs of some engines outlive the process that submitted them. Such an engine returns the running job if there is
        one for `job` already.
        """
        ...
