"""`deployments/prefect.yaml` registers on a real server, and a worker runs it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def prefect(*arguments: str, environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefect", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a client of a Prefect server with a process worker on the pool `medpix`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment = kept | {
        "MEDPIX_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    start = [sys.executable, "-m", "prefect"]
    quiet = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*start, "server", "start", "--port", str(port)], **quiet)]
    try:
        deadline = time.monotonic() + 120
        while not _healthy(api) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert prefect("work-pool", "create", "--type", "process", "medpix", environment=environment).returncode == 0
        processes.append(subprocess.Popen([*start, "worker", "start", "--pool", "medpix"], **quiet))
        yield environment
    finally:
        for process in reversed(processes):
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates a service; one that does not end in good time is killed with all that it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    process.terminate()
    for survivor in psutil.wait_procs(family, timeout=30)[1]:
        survivor.kill()
    process.wait(10)


def _healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health").is_success
    except httpx.TransportError:
        return False


def test_a_worker_runs_the_deployment(served: dict[str, str], tmp_path: Path) -> None:
    file = ["--prefect-file", "deployments/prefect.yaml", "--all"]
    deployed = prefect("--no-prompt", "deploy", *file, environment=served)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    overrides = {
        "dataset.path_or_dataset": "builtin:phantom?images=40",
        "step_scheduler.max_steps": 2,
        "evaluation.limit": 10,
    }
    parameters = ["-p", "recipe=demo", "-p", f"overrides={json.dumps(overrides)}"]
    run = prefect("deployment", "run", "medpix-finetune/medpix-finetune", *parameters, "--watch", environment=served)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads((tmp_path / "home" / "runs" / "latest" / "summary.json").read_text())
    assert (summary["training"]["steps"], summary["evaluation"]["examples"]) == (2, 10)
