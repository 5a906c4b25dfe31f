"""Jobs on this machine: torchrun as a subprocess, in a process group of its own.

The job writes into a file and not into a pipe: it does not wait for its follower.
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
    """A torchrun of this machine; it ends with the process that started it (`tasks.launchers.parent_guard`)."""

    remark = ""

    def __init__(self, process: subprocess.Popen[bytes], pid_file: Path, log_start: int) -> None:
        self.process, self.pid_file, self.log_start = process, pid_file, log_start

    def result(self) -> int | None:
        """Returns torchrun's exit code, None while it runs."""
        return self.process.poll()

    def cancel(self) -> None:
        """Ends the whole process group; returns when it is gone."""
        if self.process.poll() is None:
            end_family(psutil.Process(self.process.pid))
        self.process.wait()
        self.pid_file.unlink(missing_ok=True)


def _threads(job: Job) -> dict[str, str]:
    """Returns the threads that torchrun gives each of several processes; set here, it does not warn about them."""
    return {"OMP_NUM_THREADS": "1"} if job.compute.nproc_per_node > 1 else {}


class LocalLauncher:
    """Runs jobs on this machine."""

    def submit(self, job: Job) -> LocalJob:
        """Starts torchrun; its pid is in a file beside the log, for whoever finds it left behind."""
        job.progress_file.unlink(missing_ok=True)
        # By their paths: as modules they would import the package, and Prefect's defaults, first. -P: a script's
        # directory is not searched for modules.
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
