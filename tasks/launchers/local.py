"""Runs jobs on this machine: torchrun as a subprocess in its own process group.

The job writes its log to a file, not to a pipe, so it never waits for the process that follows it.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tasks.launchers import parent_guard
from tasks.launchers.job import Job
from tasks.launchers.processes import end_family, write_pid_file


class LocalJob:
    """A torchrun process on this machine; it ends when its parent ends (`tasks.launchers.parent_guard`)."""

    failure_detail = ""

    def __init__(self, process: subprocess.Popen[bytes], pid_file: Path, log_start: int) -> None:
        self.process, self.pid_file, self.log_start = process, pid_file, log_start

    def result(self) -> int | None:
        """Returns torchrun's exit code, or None while it runs."""
        return self.process.poll()

    def cancel(self) -> None:
        """Ends the whole process group, and returns when it is gone."""
        if self.process.poll() is None:
            end_family(psutil.Process(self.process.pid))
        self.process.wait()
        self.pid_file.unlink(missing_ok=True)


def _threads(job: Job) -> dict[str, str]:
    """Returns torchrun's own default of one thread for each of several processes. Set here, torchrun does not warn."""
    return {"OMP_NUM_THREADS": "1"} if job.compute.nproc_per_node > 1 else {}


class LocalLauncher:
    """Runs jobs on this machine."""

    def submit(self, job: Job) -> LocalJob:
        """Starts torchrun. A file beside the log has its pid, so that a later process can end a job that was left."""
        job.progress_file.unlink(missing_ok=True)
        # Both scripts run by path: as modules they would first import the package and Prefect's defaults. With -P,
        # Python does not search the script's directory for modules.
        torchrun = [sys.executable, "-P", str(Path(__file__).with_name("torchrun.py")), "--standalone"]
        command = [sys.executable, "-P", parent_guard.__file__, str(os.getpid()), *torchrun]
        command.append(f"--nproc-per-node={job.compute.nproc_per_node}")
        with job.log_file.open("ab") as sink:
            log_start = sink.tell()
            process = subprocess.Popen(
                [*command, "-m", job.module, *job.arguments],
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_threads(job) | os.environ | job.environment(),
            )
        submitted = LocalJob(process, job.log_file.with_suffix(".pid"), log_start)
        try:
            write_pid_file(submitted.pid_file, process.pid)
        except BaseException:
            submitted.cancel()
            raise
        return submitted
