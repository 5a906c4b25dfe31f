"""Any process of a whole flow is killed at any moment: the same command, run again, ends as if nothing had happened.

Six kills of each run, MEDPIX_FAULTS in all; MEDPIX_SEED chooses other moments. The victims are the flow, its server,
the guard of a job, the trainer, the evaluator, and whatever else has the home as its own.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from filelock import FileLock

from tasks.ownership import DIRECTORY
from tasks.trackers.mlflow_run import EXPERIMENT
from tests.conftest import fresh_home
from tests.e2e.services import ROOT, processes_of, wait_until
from tests.kills import FAULTS
from vlm_core.files import read_json_lines
from vlm_core.run_directory import METRICS

KILLS_OF_A_RUN = 6
STEPS = 12
SECONDS = 420.0  # that a flow may take to end after a kill
SETTINGS = {
    "dataset.path_or_dataset": "builtin:phantom?images=20",
    "dataloader.num_workers": 0,
    "step_scheduler.max_steps": STEPS,
    "step_scheduler.ckpt_every_steps": 3,
    "step_scheduler.global_batch_size": 20,
    "evaluation.max_new_tokens": 4,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200 + 240 * FAULTS),
    pytest.mark.skipif(not FAULTS, reason="a minute a kill: make stress runs it"),
]


class Flows:
    """Runs of the flow by hand in one home, with one seeded source of moments and victims."""

    def __init__(self, home: Path) -> None:
        self.home, self.chosen = home, random.Random(int(os.environ.get("MEDPIX_SEED", "3")))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        self.environment |= {"MEDPIX_HOME": str(home)}
        self.client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow/mlflow.db")
        self.seconds = 60.0  # of an undisturbed flow

    def start(self, directory: Path) -> "subprocess.Popen[bytes]":
        words = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "pipelines.finetune", "--recipe", "demo", *words]
        with (self.home / "flow.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--checkpoint.checkpoint_dir", str(directory)],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def finish(self, directory: Path) -> None:
        begun = time.monotonic()
        assert self.start(directory).wait(SECONDS) == 0, self.log()
        self.seconds = time.monotonic() - begun

    def kill_once(self, directory: Path) -> str:
        """Starts the flow and kills a process of it; returns which. Waits until all others have ended by themselves."""
        flow = self.start(directory)
        time.sleep(self.chosen.uniform(1, self.seconds))
        victims = sorted(processes_of(self.home), key=lambda process: process.create_time())
        if not victims:
            assert flow.wait(SECONDS) == 0, self.log()
            return "none: it had ended"
        victim = self.chosen.choice(victims)
        try:
            name = " ".join(victim.cmdline())
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            name = "none: it had just ended"
        flow.wait(SECONDS)
        wait_until(lambda: processes_of(self.home) == [], f"all processes end after a kill of {name}", 40)
        return name

    def log(self) -> str:
        return (self.home / "flow.log").read_text(errors="replace")[-3000:]

    def runs_of(self, directory: Path) -> list[Any]:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        wanted = f"tags.`{DIRECTORY}` = '{directory}'"
        return list(self.client.search_runs([experiment.experiment_id], wanted))

    def require_all_once(self, directory: Path) -> None:
        """Each step is once in the records and in MLflow, which has one run and one version of it."""
        steps = list(range(1, STEPS + 1))
        assert [record["step"] for record in read_json_lines(directory / METRICS)[0]] == steps
        (run,) = self.runs_of(directory)
        assert run.info.status == "FINISHED"
        history = self.client.get_metric_history(run.info.run_id, "train/loss")
        assert [metric.step for metric in history] == steps
        versions = self.client.search_model_versions(f"run_id = '{run.info.run_id}'")
        assert len(versions) == 1, versions
        aliased = self.client.get_model_version_by_alias(versions[0].name, "challenger")
        assert aliased.version == versions[0].version

    def require_nothing_left(self) -> None:
        """No process, no held lock, and no temporary file is left."""
        assert processes_of(self.home) == []
        host = socket.gethostname().replace(".", "-")
        files = [path for path in self.home.rglob(".*") if "prefect" not in path.parts]
        assert [path for path in files if f".{host}-" in path.name] == []
        assert list(self.home.rglob("*.pid")) == []
        for path in self.home.rglob("*.lock"):
            with FileLock(path, timeout=0):  # raises Timeout if a process holds it
                pass


def test_a_flow_whose_processes_are_killed_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    flows = Flows(fresh_home(tmp_path / "home"))
    flows.finish(flows.home / "runs" / "undisturbed")
    flows.require_all_once(flows.home / "runs" / "undisturbed")
    for first in range(0, FAULTS, KILLS_OF_A_RUN):
        directory = flows.home / "runs" / f"killed-{first}"
        for number in range(first, min(first + KILLS_OF_A_RUN, FAULTS)):
            print(f"kill {number}: {flows.kill_once(directory)[-120:]}", flush=True)
        flows.finish(directory)
        flows.require_all_once(directory)
        flows.require_nothing_left()
