"""Calls Slurm's commands (sbatch, squeue, sacct, scancel, sinfo) and parses what they print."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_ANSWER = 120.0
SUCCESS, UNKNOWN = "COMPLETED", "UNKNOWN"  # UNKNOWN is ours: Slurm has forgotten the job
FAILURES = {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
# A job in one of these states has ended. In all other states it waits, runs, or completes.
FINAL_STATES = {SUCCESS, UNKNOWN} | FAILURES
# A pending job with one of these reasons never starts.
NEVER_STARTS = frozenset(("AccountNotAllowed", "InvalidAccount", "InvalidQOS", "PartitionTimeLimit", "QOSNotAllowed"))


class SlurmUnreachableError(RuntimeError):
    """Slurm did not answer: its controller restarts, or the network is down."""


@dataclass(frozen=True)
class Status:
    """The state of a job in Slurm, with Slurm's reason while the job is pending."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, or Slurm no longer knows it."""
        return self.state in FINAL_STATES

    @property
    def is_hopeless(self) -> bool:
        """Whether it can never start: it exceeds a limit of its partition, account or quality of service."""
        never_starts = self.reason in NEVER_STARTS or self.reason.endswith(("PerJob", "PerJobLimit"))
        return self.state == "PENDING" and never_starts

    def __str__(self) -> str:
        return self.state + (f" ({self.reason})" if self.reason not in ("", "None") else "")


def submit(script: Path) -> int:
    """Submits a script and returns the id of its job; raises ValueError with Slurm's reason if Slurm refuses it."""
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode:
        raise ValueError(
            f"Slurm refuses {script}: {_reason(done)}; change compute.nodes or compute.cluster to fit, or wait if the "
            "queue is full"
        )
    return int(done.stdout.split(";")[0])


def job_of(script: Path) -> int | None:
    """Returns the id of this user's waiting or running job with `script`, or None.

    Raises SlurmUnreachableError if Slurm does not answer, since there may be such a job.
    """
    done = _run("squeue", "--noheader", "--me", "--format=%A|%o")
    if done.returncode:
        raise SlurmUnreachableError(_reason(done))
    for line in done.stdout.splitlines():
        job_id, command = line.split("|", 1)
        if command == str(script):
            return int(job_id)
    return None


def status_of(job_id: int) -> Status:
    """Returns the status of a job: from the queue, or from accounting once the queue has dropped the job.

    The queue drops a job minutes after its end; without accounting the status is then UNKNOWN.
    Raises SlurmUnreachableError.
    """
    done = _run("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%r")
    if done.stdout.strip():
        return Status(*done.stdout.strip().split("|", 1))
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmUnreachableError(_reason(done))
    accounted = _run("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job_id}", "--format=State")
    words = accounted.stdout.split()  # such as `CANCELLED by 1000`; empty without accounting
    return Status(words[0] if words and not accounted.returncode else UNKNOWN)


def cancel(job_id: int) -> None:
    """Cancels a job: Slurm sends SIGTERM to its processes, and SIGKILL after the cluster's KillWait.

    Raises SlurmUnreachableError.
    """
    done = _run("scancel", str(job_id))
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmUnreachableError(f"{_reason(done)}; the job may still run; end it with `scancel {job_id}`")


def partitions() -> dict[str, int]:
    """Returns the number of nodes of each partition by name; the default partition is also listed as "".

    Raises ValueError if Slurm is not installed here, or does not answer.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "compute.launcher=slurm, but this machine has no sbatch: start the flow (or its worker) on a machine that "
            "submits to Slurm, or set compute.launcher=local"
        )
    done = _run("sinfo", "--noheader", "--format=%P|%D")
    if done.returncode:
        raise ValueError(f"compute.launcher=slurm, but Slurm does not answer: {_reason(done)}; check `sinfo`")
    found: dict[str, int] = {}
    for line in done.stdout.splitlines():  # one line for each state of a partition's nodes
        name, _, nodes = line.strip().partition("|")
        for key in {name.rstrip("*"), "" if name.endswith("*") else name}:
            found[key] = found.get(key, 0) + int(nodes)
    return found


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachableError(f"{command[0]} did not answer within {SECONDS_TO_ANSWER:.0f} s") from error


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    return "; ".join(done.stderr.strip().splitlines()[-2:]) or f"{done.args[0]} ended with code {done.returncode}"
