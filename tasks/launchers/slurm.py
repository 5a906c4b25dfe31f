"""Runs jobs on a Slurm cluster: submits a script, keeps the job's id in the run directory, and follows the job's log.

A job outlives the flow that submitted it. If the flow was killed, its next attempt finds the job and follows it again.
"""

import time
from pathlib import Path

from tasks.launchers import slurm_commands
from tasks.launchers.follow import Logger
from tasks.launchers.job import SECONDS_TO_SAVE, Job
from tasks.launchers.slurm_commands import SUCCESS, UNKNOWN, SlurmUnreachableError, Status
from tasks.launchers.slurm_script import slurm_script
from vlm_core.config import ComputeConfig
from vlm_core.files import read_json, write_json, write_text

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two polls of Slurm
SUBMITTED = "SUBMITTED"  # our own state, until the first poll
SECONDS_TO_END = 90.0  # A cancelled job must be gone by then: Slurm kills it after its KillWait, 30 s by default.


class SlurmJob:
    """A job on a cluster."""

    def __init__(self, job: Job, job_id: int, log_start: int, logger: Logger) -> None:
        self.job, self.job_id, self.log_start, self.logger = job, job_id, log_start, logger
        self.status = Status(SUBMITTED)
        self.pause, self.next_poll, self.ended_by_itself = SHORTEST_PAUSE, 0.0, False

    def result(self) -> int | None:
        """Returns the job's exit code, or None while it waits or runs; raises ValueError if it would never start."""
        if exit_file(self.job).exists() and not self.ended_by_itself:
            self.ended_by_itself, self.next_poll, self.pause = True, 0.0, SHORTEST_PAUSE
        if time.monotonic() < self.next_poll:
            return None
        self._poll()
        if self.status.is_hopeless:
            raise ValueError(
                f"Slurm would never start job {self.job_id}: {self.status.reason}; change compute.nodes or "
                "compute.cluster to fit this limit"
            )
        return self._exit_code() if self.status.is_over else None

    def _poll(self) -> None:
        """Reads the job's status from Slurm, less often the longer it stays the same; keeps trying if Slurm is down."""
        try:
            status = slurm_commands.status_of(self.job_id)
        except SlurmUnreachableError as error:
            status = Status("UNREACHABLE", str(error))
        if status != self.status:
            self.logger.info("Slurm job %d is %s", self.job_id, status)
            self.status, self.pause = status, SHORTEST_PAUSE
        self.next_poll = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def _exit_code(self) -> int:
        """Returns the exit code that Slurm reports, or the one in the script's exit file if Slurm has none."""
        if self.status.state == SUCCESS:
            return 0
        file = exit_file(self.job)
        if self.status.state in ("FAILED", UNKNOWN) and file.exists():
            return int(file.read_text())
        return 1

    @property
    def failure_detail(self) -> str:
        """The job's status in Slurm, with a remedy if the job wrote no log at all."""
        status = f"Slurm job {self.job_id} is {self.status}"
        if self.job.log_file.stat().st_size > self.log_start:
            return status
        return (
            f"{status} and wrote no log: {self.job.log_file.parent} may be missing on its node; set MEDPIX_HOME (or "
            "checkpoint.checkpoint_dir) to a directory that all nodes share"
        )

    def cancel(self) -> None:
        """Cancels the job and waits until it is gone; raises SlurmUnreachableError if it does not end."""
        if not self.status.is_over and not slurm_commands.status_of(self.job_id).is_over:
            slurm_commands.cancel(self.job_id)
            deadline = time.monotonic() + SECONDS_TO_END
            while not slurm_commands.status_of(self.job_id).is_over:
                if time.monotonic() > deadline:
                    raise SlurmUnreachableError(f"Slurm job {self.job_id} has not ended: see `squeue`")
                time.sleep(SHORTEST_PAUSE)
        for path in (record_file(self.job), exit_file(self.job)):
            path.unlink(missing_ok=True)


class SlurmLauncher:
    """Runs jobs on the cluster to which this machine submits."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def submit(self, job: Job) -> SlurmJob:
        """Returns the job that a killed flow submitted for the same work, or submits a new one."""
        script = slurm_script(job, exit_file(job))
        left = self._left(job)
        if left is not None:
            if script_file(job).read_text(encoding="utf-8") == script and _is_usable(left):
                self.logger.info("follows Slurm job %d, which was submitted earlier", left.job_id)
                return left
            left.cancel()
        job.progress_file.unlink(missing_ok=True)
        write_text(script_file(job), script)
        log_start = job.log_file.stat().st_size
        submitted = SlurmJob(job, slurm_commands.submit(script_file(job)), log_start, self.logger)
        try:
            write_json(record_file(job), {"job_id": submitted.job_id, "log_start": log_start})
        except BaseException:
            submitted.cancel()
            raise
        self.logger.info("submitted Slurm job %d: %s", submitted.job_id, script_file(job))
        return submitted

    def _left(self, job: Job) -> SlurmJob | None:
        """Returns the job that an earlier flow submitted for this step, or None."""
        if record_file(job).exists():
            return SlurmJob(job, **read_json(record_file(job)), logger=self.logger)
        # A flow that was killed before it read sbatch's answer has written no id: look for its script in the queue.
        job_id = slurm_commands.job_of(script_file(job)) if script_file(job).exists() else None
        return None if job_id is None else SlurmJob(job, job_id, log_start=0, logger=self.logger)


def _is_usable(left: SlurmJob) -> bool:
    """Whether a job still waits or runs, or has succeeded after its flow was killed."""
    status = slurm_commands.status_of(left.job_id)
    return not status.is_over or status.state == SUCCESS


def record_file(job: Job) -> Path:
    """Returns the file with the id of the Slurm job; it exists only as long as the job."""
    return job.log_file.with_suffix(".slurm.json")


def script_file(job: Job) -> Path:
    """Returns the file with the script that was submitted to Slurm."""
    return job.log_file.with_suffix(".slurm.sh")


def exit_file(job: Job) -> Path:
    """Returns the file to which the script writes its exit code, for clusters without accounting."""
    return job.log_file.with_suffix(".slurm.exit")


def require_slurm(compute: ComputeConfig) -> None:
    """Raises ValueError if this machine cannot submit to Slurm, or if a job of `compute` could never run or finish."""
    limit = compute.cluster.time_limit
    if limit and _seconds(limit) < 2 * SECONDS_TO_SAVE:
        raise ValueError(
            f"compute.cluster.time_limit={limit} is too short: a job gets SIGTERM {SECONDS_TO_SAVE} s before it, saves "
            f"and is queued again, so it would make no progress; give it {2 * SECONDS_TO_SAVE // 60} minutes or more"
        )
    known = slurm_commands.partitions()
    partition = compute.cluster.partition or ""
    names = sorted(name for name in known if name)
    for name in partition.split(","):
        if name not in known:
            raise ValueError(f"compute.cluster.partition={name!r} does not exist; use one of {', '.join(names)}")
    nodes = max(known[name] for name in partition.split(","))
    if compute.nodes > nodes:
        raise ValueError(f"compute.nodes={compute.nodes}, but the partition has {nodes}: ask for fewer")


def _seconds(time_limit: str) -> int:
    """Returns the seconds of a Slurm limit: `minutes[:seconds]`, `hours:minutes:seconds`, `days-hours[:minutes...]`."""
    days, _, clock = time_limit.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    if not days and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
