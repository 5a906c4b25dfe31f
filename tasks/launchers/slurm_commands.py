"""Slurm's own commands, asked and told."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_ANSWER = 120.0
# In these a job is over; in all others it waits, runs, or is being cleared away.
SUCCESS = "COMPLETED"
OVER = frozenset(
    (SUCCESS, "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED")
) | {"TIMEOUT"}
# Reasons of a pending job that no waiting ends.
HOPELESS = frozenset(("AccountNotAllowed", "InvalidAccount", "InvalidQOS", "PartitionTimeLimit", "QOSNotAllowed"))


class SlurmUnreachableError(RuntimeError):
    """Slurm did not answer: a controller that is started anew, a network that is down."""


@dataclass(frozen=True)
class Status:
    """What Slurm says of a job; UNKNOWN where it has forgotten it."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, as far as anybody knows."""
        return self.state in OVER or self.state == UNKNOWN

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for what will never be: a limit of its partition, account or quality of service."""
        endless = self.reason in HOPELESS or self.reason.endswith(("PerJob", "PerJobLimit"))
        return self.state == "PENDING" and endless

    def __str__(self) -> str:
        return self.state + (f" ({self.reason})" if self.reason not in ("", "None") else "")


UNKNOWN = "UNKNOWN"


def submit(script: Path) -> int:
    """Returns the id of a new job; raises ValueError with Slurm's own reason where it is refused."""
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode:
        raise ValueError(
            f"Slurm refuses {script}: {_reason(done)}; change compute.nodes or compute.cluster accordingly, or wait "
            "where a limit of the queue is reached"
        )
    return int(done.stdout.split(";")[0])


def job_of(script: Path) -> int | None:
    """Returns the id of your job that waits or runs with `script`, None where there is none.

    Raises SlurmUnreachableError: there may be one.
    """
    done = _run("squeue", "--noheader", "--me", "--format=%A|%o")
    if done.returncode:
        raise SlurmUnreachableError(_reason(done))
    found = dict(line.split("|", 1)[::-1] for line in done.stdout.splitlines())
    return int(found[str(script)]) if str(script) in found else None


def status_of(job_id: int) -> Status:
    """Returns the status of a job: the queue's, or after minutes the accounting's, where a cluster has one.

    Raises SlurmUnreachableError.
    """
    done = _run("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%r")
    if done.stdout.strip():
        return Status(*done.stdout.strip().split("|", 1))
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmUnreachableError(_reason(done))
    accounted = _run("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job_id}", "--format=State")
    words = accounted.stdout.split()  # `CANCELLED by 1000`; nothing without accounting
    return Status(words[0] if words and not accounted.returncode else UNKNOWN)


def cancel(job_id: int) -> None:
    """Tells a job to end: SIGTERM to its processes, SIGKILL after the cluster's KillWait.

    Raises SlurmUnreachableError.
    """
    done = _run("scancel", str(job_id))
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmUnreachableError(f"{_reason(done)}; the job may go on: scancel {job_id}")


def partitions() -> dict[str, int]:
    """Returns the nodes of each partition, by name; the default one has the name "" too.

    Raises ValueError where there is no Slurm here, or where it does not answer.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "compute.launcher=slurm, and there is no sbatch here: start the flow (or its worker) on a machine that "
            "submits to Slurm, or set compute.launcher=local"
        )
    done = _run("sinfo", "--noheader", "--format=%P|%D")
    if done.returncode:
        raise ValueError(f"compute.launcher=slurm, and Slurm does not answer: {_reason(done)}; see `sinfo`")
    found: dict[str, int] = {}
    for line in done.stdout.splitlines():  # a line for each state of a partition's nodes
        name, _, nodes = line.strip().partition("|")
        for key in {name.rstrip("*"), "" if name.endswith("*") else name}:
            found[key] = found.get(key, 0) + int(nodes)
    return found


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachableError(f"{command[0]} has no answer within {SECONDS_TO_ANSWER:.0f} s") from error


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    return "; ".join(done.stderr.strip().splitlines()[-2:]) or f"{done.args[0]} ended with code {done.returncode}"
