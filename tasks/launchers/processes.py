"""Processes that are known by pid and start time, since the system gives a pid again, and how their families end."""

from pathlib import Path
from typing import Any

import psutil

from vlm_core.files import read_json, write_json

GRACE_SECONDS = 20  # below the 30 s after which torchrun and Prefect kill
CLOCK_SECONDS = 2.0  # a start time is counted from the boot, whose own time is corrected now and then


def identity(pid: int) -> dict[str, Any]:
    """Returns `{pid, started}`, which tells a process from a later one that has its pid; `started` in Unix seconds."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def find_process(pid: int, started: float) -> psutil.Process | None:
    """Returns the process of an `identity`, None where it has ended."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def write_pid_file(path: Path, pid: int) -> None:
    """Notes the identity of a process in a file."""
    write_json(path, identity(pid))


def end_left_jobs(directory: Path) -> None:
    """Ends the jobs that a run directory's pid files name, with their ranks; for a run whose own process is gone.

    Such a job was told to end when that process died, and may be saving its checkpoint: it is given the time for it.
    """
    for path in directory.glob("*.pid"):
        process = find_process(**read_json(path))
        if process is not None:
            end_family(process)
        path.unlink(missing_ok=True)


def end_family(process: psutil.Process) -> None:
    """Ends a process with all that comes from it: SIGTERM to itself, which passes it on, SIGKILL after 20 seconds."""
    # Listed before the signal: afterwards the ranks of a dead torchrun, sessions of their own, cannot be found.
    family = [*process.children(recursive=True), process]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for survivor in alive:
        survivor.kill()
