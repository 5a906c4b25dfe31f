"""Stops a run in every way, with a real server and worker: no rank survives, no step is lost, MLflow has the end.

The tests share a flow run: each start but the first retries it, and it resumes where it was stopped before.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from tests.conftest import fresh_home
from tests.e2e.services import (
    ROOT,
    Prefect,
    answers,
    command,
    free_port,
    started_process,
    trainings_of,
    wait_for,
    wait_until,
)
from vlm_core.files import read_json, read_json_lines
from vlm_core.run_directory import LATEST, METRICS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("MEDPIX_KILLS" not in os.environ, reason="a quarter of an hour: make stress runs it"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Prefect server that has the deployments, and of MLflow on a SQLite file."""
    home = fresh_home(tmp_path_factory.mktemp("stops") / "home")
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"MEDPIX_HOME": str(home), "PWD": str(ROOT)}
    environment |= {"PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow/mlflow.db", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    words = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    server = started_process(*words, environment=environment, log=home / "server.log")
    try:
        wait_until(lambda: answers(f"{environment['PREFECT_API_URL']}/health"), "the server answers")
        deployed = command("tasks.services.deploy", environment=environment)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        yield environment
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def worker(served: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with its own process group, as a service manager starts it."""
    words, log = ("prefect", "worker", "start", "--pool", "medpix"), Path(served["MEDPIX_HOME"]) / "worker.log"
    process = started_process(*words, environment=served, log=log)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait()


ENDLESS = {
    "dataset.path_or_dataset": "builtin:phantom?images=40",
    "compute.nproc_per_node": 2,
    "vision_cache.enabled": False,  # one job less to wait for
    "step_scheduler.num_epochs": 100000,
    "step_scheduler.max_steps": None,
    "step_scheduler.val_every_steps": None,
    "step_scheduler.ckpt_every_steps": 1000,  # what is there was saved when the run was stopped
}


class Stopped:
    """A run that has come as far as a few steps of training: the first one, or a retry of it."""

    def __init__(self, served: dict[str, str]) -> None:
        self.served, self.prefect, self.home = served, Prefect(served), Path(served["MEDPIX_HOME"])
        self.before = len(self.records())
        self.start()
        wait_until(lambda: len(self.records()) > self.before + 7, "a few steps of training")
        self.job = self.processes()
        assert len(self.job) == 4
        self.mlflow_run = read_json(self.directory / "mlflow_run.json")["run_id"]

    def start(self) -> None:
        known = self.prefect.post("/flow_runs/filter")
        words = ["deployment", "run", "medpix-finetune", "-p", "recipe=demo", "-p", f"overrides={json.dumps(ENDLESS)}"]
        done = command("prefect", *(["flow-run", "retry", known[0]["id"]] if known else words), environment=self.served)
        assert done.returncode == 0, done.stdout + done.stderr
        self.flow_run = self.prefect.post("/flow_runs/filter")[0]["id"]

    @property
    def directory(self) -> Path:
        return next((self.home / "runs").glob("demo-*"), self.home / "none")

    def records(self) -> list[dict[str, Any]]:
        return read_json_lines(self.directory / METRICS)[0]

    def processes(self) -> list[psutil.Process]:
        """Returns what the engine started for the job, torchrun, and its ranks."""
        guard = str(ROOT / "tasks" / "launchers" / "parent_guard.py")
        return sorted(trainings_of(self.home), key=lambda process: guard not in process.cmdline())

    @property
    def engine(self) -> psutil.Process:
        return psutil.Process(self.job[0].ppid())

    def state(self) -> dict[str, Any]:
        return self.prefect.run(self.flow_run)

    def require_nothing_lost(self) -> None:
        """No process is left, the step of the moment is saved, and MLflow has each step once."""
        assert psutil.wait_procs(self.job, timeout=25)[1] == []
        steps = [record["step"] for record in self.records()]
        assert read_json(self.directory / LATEST / "progress.json")["step"] == steps[-1] > self.before
        assert steps == list(range(1, steps[-1] + 1))
        history = mlflow.MlflowClient(self.served["MLFLOW_TRACKING_URI"]).get_metric_history(
            self.mlflow_run, "train/loss"
        )
        known = [metric.step for metric in history]
        assert known == list(range(1, len(known) + 1))
        assert steps[-1] - 100 < known[-1] <= steps[-1]  # the process that sends the last steps was killed too

    def status(self) -> str:
        return mlflow.MlflowClient(self.served["MLFLOW_TRACKING_URI"]).get_run(self.mlflow_run).info.status


def test_sigkill_of_the_engine(served: dict[str, str], worker: subprocess.Popen[bytes]) -> None:
    run = Stopped(served)
    assert run.status() == "RUNNING"
    run.engine.kill()
    run.require_nothing_lost()
    wait_for(run.state, "CRASHED")
    wait_until(lambda: run.status() == "KILLED", "the worker's hook tells MLflow", 60)


def test_cancel_from_the_command_line_of_a_run_that_goes_on(
    served: dict[str, str], worker: subprocess.Popen[bytes]
) -> None:
    (before,) = Path(served["MEDPIX_HOME"]).glob("runs/*/mlflow_run.json")
    first = read_json(before)
    run = Stopped(served)
    assert "resumed from" in (run.directory / "finetune.log").read_text()
    assert (run.status(), {"run_id": run.mlflow_run}) == ("RUNNING", first)
    cancel = command("prefect", "flow-run", "cancel", run.flow_run, environment=served)
    assert cancel.returncode == 0, cancel.stdout + cancel.stderr
    wait_for(run.state, "CANCELLED")
    run.require_nothing_lost()
    # Quietly, with the checkpoint and the way to resume.
    records = Prefect(served).log(run.flow_run)
    (said,) = (record["message"] for record in records if record["message"].startswith("Stopped: "))
    latest = (run.directory / LATEST).resolve()
    assert f"step {read_json(latest / 'progress.json')['step']:,} is saved in {latest}. Retry on this page" in said
    assert [record["message"] for record in records if "Crash detected" in record["message"]] == []
    assert "SignalException" not in (run.directory / "finetune.log").read_text()
    assert run.status() == "KILLED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_worker_that_is_stopped(
    served: dict[str, str], worker: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    run = Stopped(served)
    worker.send_signal(number)
    worker.wait(60)
    run.require_nothing_lost()
    wait_until(lambda: not run.processes(), "no process of the job", 5)
    # No process is left to update MLflow and Prefect. `make up` does, and the next start of any run on this machine.
    assert (run.status(), run.state()["state_type"]) == ("RUNNING", "RUNNING")
    reaped = command("tasks.ownership", environment=served)
    assert reaped.returncode == 0, reaped.stdout + reaped.stderr
    assert (run.status(), run.state()["state_type"]) == ("KILLED", "CRASHED")


class OutOfTime(Stopped):
    """A run by hand, of the flow with a timeout."""

    def start(self) -> None:
        overrides = ENDLESS | {"checkpoint.checkpoint_dir": str(self.directory)}
        code = "from pipelines.finetune import medpix_finetune as flow\n" + (
            f"flow.with_options(timeout_seconds=3600)('demo', overrides={overrides!r})"
        )
        with (self.home / "timeout.log").open("wb") as log:
            self.caller = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, env=self.served, stdout=log, stderr=log
            )


def test_a_flow_that_runs_out_of_its_time(served: dict[str, str]) -> None:
    run = OutOfTime(served)
    run.caller.send_signal(signal.SIGALRM)  # what the kernel does when the timer is through
    assert run.caller.wait(60) == 1
    run.require_nothing_lost()
    log = (run.home / "timeout.log").read_text()
    assert "exceeded timeout of 3600.0 second(s)" in log
    assert run.status() == "KILLED"
