"""Finds processes by pid and start time, since the system reuses pids, and ends them with their children."""

from pathlib import Path
from typing import Any

import psutil

from vlm_core.files import read_json, write_json

GRACE_SECONDS = 20  # less than the 30 s after which torchrun and Prefect kill
CLOCK_SECONDS = 2.0  # Start times count from the boot time, which the clock's corrections move.


def identity(pid: int) -> dict[str, Any]:
    """Returns `{pid, started}` (Unix seconds), which identifies a process even if its pid is reused later."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def find_process(pid: int, started: float) -> psutil.Process | None:
    """Returns the process with this identity, or None if it has ended."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def write_pid_file(path: Path, pid: int) -> None:
    """Writes the identity of a process to a file."""
    write_json(path, identity(pid))


def end_left_jobs(directory: Path) -> None:
    """Ends the jobs that the pid files of a run directory name, with their ranks. For runs whose own process is gone.

    Such a job got SIGTERM when that process died, and may still be saving a checkpoint: it gets time to finish.
    """
    for path in directory.glob("*.pid"):
        process = find_process(**read_json(path))
        if process is not None:
            end_family(process)
        path.unlink(missing_ok=True)


def end_family(process: psutil.Process) -> None:
    """Ends a process and its descendants: SIGTERM to the process, which passes it on, and SIGKILL to all after 20 s."""
    # List them before the signal: the ranks have their own sessions, and cannot be found once torchrun is dead.
    family = [*process.children(recursive=True), process]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for survivor in alive:
        survivor.kill()
