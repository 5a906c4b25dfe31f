"""Jobs on a Slurm cluster: submitted as a script, known by their id in the run directory, followed through their log.

A job does not end with the flow that submitted it: a flow that was killed finds it again, and follows on.
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

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two questions to Slurm
SUBMITTED = "SUBMITTED"  # before Slurm was asked
SECONDS_TO_END = 90.0  # of a cancelled job; Slurm kills after its KillWait, 30 s by default


class SlurmJob:
    """A job of a cluster."""

    def __init__(self, job: Job, job_id: int, log_start: int, logger: Logger) -> None:
        self.job, self.job_id, self.log_start, self.logger = job, job_id, log_start, logger
        self.status = Status(SUBMITTED)
        self.pause, self.next_question, self.ended_by_itself = SHORTEST_PAUSE, 0.0, False

    def result(self) -> int | None:
        """Returns the job's exit code, None until it has ended; raises ValueError where it would never start."""
        if exit_file(self.job).exists() and not self.ended_by_itself:
            self.ended_by_itself, self.next_question, self.pause = True, 0.0, SHORTEST_PAUSE
        if time.monotonic() < self.next_question:
            return None
        self._ask()
        if self.status.is_hopeless:
            raise ValueError(
                f"Slurm would never start job {self.job_id}: {self.status.reason}; change compute.nodes or "
                "compute.cluster accordingly"
            )
        return self._exit_code() if self.status.is_over else None

    def _ask(self) -> None:
        """Asks Slurm; the longer nothing happens, the rarer. One that does not answer is asked again."""
        try:
            status = slurm_commands.status_of(self.job_id)
        except SlurmUnreachableError as error:
            status = Status("UNREACHABLE", str(error))
        if status != self.status:
            self.logger.info("Slurm job %d is %s", self.job_id, status)
            self.status, self.pause = status, SHORTEST_PAUSE
        self.next_question = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def _exit_code(self) -> int:
        """Returns what the script left behind where Slurm does not know better."""
        if self.status.state == SUCCESS:
            return 0
        file = exit_file(self.job)
        if self.status.state in ("FAILED", UNKNOWN) and file.exists():
            return int(file.read_text())
        return 1

    @property
    def remark(self) -> str:
        """What Slurm says of a job that failed, and of one that said nothing."""
        said = f"Slurm job {self.job_id} is {self.status}"
        if self.job.log_file.stat().st_size > self.log_start:
            return said
        return (
            f"{said} and wrote no log: {self.job.log_file.parent} may be missing on its node; set MEDPIX_HOME (or "
            "checkpoint.checkpoint_dir) to a directory that all nodes share"
        )

    def cancel(self) -> None:
        """Has Slurm end the job, and waits until it is gone. Raises RuntimeError where it does not go."""
        if not self.status.is_over and not slurm_commands.status_of(self.job_id).is_over:
            slurm_commands.cancel(self.job_id)
            deadline = time.monotonic() + SECONDS_TO_END
            while not slurm_commands.status_of(self.job_id).is_over:
                if time.monotonic() > deadline:
                    raise SlurmUnreachableError(f"Slurm job {self.job_id} does not end: see `squeue`")
                time.sleep(SHORTEST_PAUSE)
        for path in (record_file(self.job), exit_file(self.job)):
            path.unlink(missing_ok=True)


class SlurmLauncher:
    """Runs jobs on the cluster that this machine submits to."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def submit(self, job: Job) -> SlurmJob:
        """Returns the job that a flow which was killed left at work on the same, or else a new one."""
        script = slurm_script(job, exit_file(job))
        left = self._left(job)
        if left is not None:
            if script_file(job).read_text(encoding="utf-8") == script and _goes_on(left):
                self.logger.info("goes on with Slurm job %d, which was submitted before", left.job_id)
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
        if record_file(job).exists():
            return SlurmJob(job, **read_json(record_file(job)), logger=self.logger)
        # A flow that was killed between sbatch and its answer has written no id.
        job_id = slurm_commands.job_of(script_file(job)) if script_file(job).exists() else None
        return None if job_id is None else SlurmJob(job, job_id, log_start=0, logger=self.logger)


def _goes_on(left: SlurmJob) -> bool:
    """Whether a job is at work, or has ended well with nobody there to see it."""
    status = slurm_commands.status_of(left.job_id)
    return not status.is_over or status.state == SUCCESS


def record_file(job: Job) -> Path:
    """Returns where the id of the Slurm job lies, as long as there is one."""
    return job.log_file.with_suffix(".slurm.json")


def script_file(job: Job) -> Path:
    """Returns where the script lies that Slurm got."""
    return job.log_file.with_suffix(".slurm.sh")


def exit_file(job: Job) -> Path:
    """Returns where the script leaves its exit code, for clusters without accounting."""
    return job.log_file.with_suffix(".slurm.exit")


def require_slurm(compute: ComputeConfig) -> None:
    """Raises ValueError where no job of `compute` could be submitted from here."""
    limit = compute.cluster.time_limit
    if limit and _seconds(limit) < 2 * SECONDS_TO_SAVE:
        raise ValueError(
            f"compute.cluster.time_limit={limit} is too short: a job is told to end {SECONDS_TO_SAVE} s before it and "
            f"queued again, and would never come far; give it {2 * SECONDS_TO_SAVE // 60} minutes or more"
        )
    known = slurm_commands.partitions()
    partition = compute.cluster.partition or ""
    names = sorted(name for name in known if name)
    for name in partition.split(","):
        if name not in known:
            raise ValueError(f"compute.cluster.partition={name!r} is no partition of this cluster: {', '.join(names)}")
    nodes = max(known[name] for name in partition.split(","))
    if compute.nodes > nodes:
        raise ValueError(f"compute.nodes={compute.nodes} is more than the {nodes} of the partition: ask for fewer")


def _seconds(time_limit: str) -> int:
    """Returns what a limit of Slurm's says: `minutes[:seconds]`, `hours:minutes:seconds`, `days-hours[:minutes...]`."""
    days, _, clock = time_limit.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    if not days and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
