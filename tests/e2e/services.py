"""What tests with real servers and workers share: commands, processes, waiting."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.base import PrefectHttpxSyncClient

ROOT = Path(__file__).parents[2]
SOON = timedelta(seconds=20)
SCHEDULER = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3"}  # of 60: a test moves schedules to SOON


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


def trainings_of(home: Path) -> list[psutil.Process]:
    """Returns the processes of trainings whose MEDPIX_HOME is `home`."""
    return [process for process in processes_of(home) if "vlm_core.finetune" in " ".join(process.cmdline())]


def started_process(*arguments: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m ...` in the project's directory as a service manager does.

    It gets its own process group and the default action for SIGINT: a shell makes background processes ignore SIGINT,
    and their children do too. A Prefect worker then never ends, since it turns SIGTERM into SIGINT.
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


class Prefect:
    """The API of the Prefect server that an environment names.

    The client is Prefect's own. It repeats a request that the server answers with 503, as while SQLite is locked.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.url = environment["PREFECT_API_URL"]
        user, _, password = environment.get("PREFECT_API_AUTH_STRING", "").partition(":")
        self.auth = (user, password) if user else None

    def request(self, method: str, path: str, body: Any = None) -> Any:
        with PrefectHttpxSyncClient(auth=self.auth, timeout=60) as client:
            reply = client.request(method, f"{self.url}{path}", json=body)
        return reply.json() if reply.content else None

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def post(self, path: str, **body: Any) -> Any:
        return self.request("POST", path, body)

    def deployment(self, name: str) -> dict[str, Any]:
        """Returns the deployment of a flow that has its name."""
        return self.get(f"/deployments/name/{name}/{name}")

    def artifact(self, key: str) -> Any:
        """Returns the latest artifact of a key."""
        return self.get(f"/artifacts/{key}/latest")

    def run(self, flow_run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{flow_run}")

    def newest_run(self, **wanted: Any) -> dict[str, Any]:
        """Returns the run that was to start last, of those that a filter names."""
        return self.post("/flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1, **wanted)[0]

    def scheduled_runs(self, name: str) -> list[dict[str, Any]]:
        """Returns the runs that a schedule of a deployment gave, the latest one first."""
        runs = self.post(
            "/flow_runs/filter",
            deployments={"id": {"any_": [self.deployment(name)["id"]]}},
            sort="EXPECTED_START_TIME_DESC",
        )
        return [run for run in runs if run["created_by"] and run["created_by"]["type"] == "SCHEDULE"]

    def schedule_once(self, name: str, slug: str, parameters: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Moves a schedule to a moment that comes soon, and switches it on; returns what reads its run."""
        deployment = self.deployment(name)
        (schedule,) = (schedule for schedule in deployment["schedules"] if schedule["slug"] == slug)
        at = datetime.now(UTC) + SOON
        week = {"interval": timedelta(weeks=1).total_seconds(), "anchor_date": at.isoformat()}
        changed = {"active": True, "parameters": parameters, "schedule": week}
        path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
        self.request("PATCH", path, changed)

        def due() -> list[dict[str, Any]]:
            times = {run["id"]: datetime.fromisoformat(run["expected_start_time"]) for run in self.scheduled_runs(name)}
            return [{"id": run} for run, time in times.items() if abs(time - at) < timedelta(seconds=5)]

        wait_until(due, f"{name} has a run that is scheduled for {at}", 60)
        (run,) = due()
        return lambda: self.run(run["id"])

    def log(self, flow_run: str) -> list[dict[str, Any]]:
        """Returns the records of a run's log."""
        return self.post("/logs/filter", logs={"flow_run_id": {"any_": [flow_run]}}, limit=200, sort="TIMESTAMP_DESC")


def wait_for(read: Any, state: str, seconds: float = 120) -> dict[str, Any]:
    """Returns the flow run that `read` gives, once it is in `state`."""
    deadline = time.monotonic() + seconds
    while (run := read())["state_type"] != state:
        assert time.monotonic() < deadline, run["state_name"]
        time.sleep(0.5)
    return run
