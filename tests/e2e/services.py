"""What tests with real servers and workers share: commands, processes, waiting."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]


def command(*arguments: str, environment: dict[str, str], seconds: float = 400) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` in the project's directory."""
    call = [sys.executable, "-m", *arguments]
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def processes_of(home: Path) -> list[psutil.Process]:
    """Returns the processes that have `home` as theirs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEDPIX_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def started_process(*arguments: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m ...` in the project's directory as a service manager does.

    That is in a process group of its own and with SIGINT's default: a shell has what it puts into the background
    ignore SIGINT, that is inherited, and a Prefect worker then never ends, since it passes SIGTERM on as SIGINT.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def answers(url: str) -> bool:
    """Returns whether a server is there."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 400) -> None:
    """Waits for a condition; the machine may be doing other things."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def wait_for(read: Any, state: str) -> dict[str, Any]:
    """Returns the flow run that `read` gives, once it is in `state`."""
    deadline = time.monotonic() + 120
    while (run := read())["state_type"] != state:
        assert time.monotonic() < deadline, run["state_name"]
        time.sleep(0.5)
    return run
