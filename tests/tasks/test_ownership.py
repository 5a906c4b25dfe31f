"""Runs whose process was killed end as KILLED, together with their jobs; other runs stay as they are."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Running
from prefect.testing.utilities import prefect_test_harness

from tasks.launchers.processes import find_process, identity, write_pid_file
from tasks.ownership import (
    ATTEMPT,
    FLOW_RUN,
    HOST,
    PID,
    STARTED,
    mlflow_run_of,
    owner_tags,
    reap_dead_runs,
    remember_mlflow_run,
)
from tasks.trackers.mlflow_run import EXPERIMENT
from tests.conftest import new_mlflow_store

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    return mlflow.MlflowClient()


def new_run(client: mlflow.MlflowClient, tags: dict[str, str]) -> str:
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    return client.create_run(experiment, tags=tags).info.run_id


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


def test_a_process_is_known_by_pid_and_start_time() -> None:
    me = identity(os.getpid())
    assert find_process(**me) == psutil.Process()
    assert find_process(me["pid"], me["started"] - 60) is None  # an earlier process had the same pid
    child = sleeper()
    theirs = identity(child.pid)
    child.kill()
    time.sleep(0.2)
    assert find_process(**theirs) is None  # a zombie also counts as ended
    child.wait()
    assert find_process(**theirs) is None


def test_dead_runs_are_reaped_with_their_jobs(
    client: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reap_dead_runs()  # must not fail without an experiment
    monkeypatch.setattr("tasks.launchers.processes.GRACE_SECONDS", 1)
    engine, job = sleeper(), sleeper()
    mine = owner_tags(tmp_path)
    dead = new_run(client, mine | {PID: str(engine.pid), STARTED: str(identity(engine.pid)["started"])})
    reused = new_run(client, mine | {STARTED: "1.0"})  # the owner has ended, and this process reuses its pid
    alive, foreign, unknown = (new_run(client, tags) for tags in (mine, mine | {HOST: "elsewhere", STARTED: "1.0"}, {}))
    write_pid_file(tmp_path / "finetune.pid", job.pid)
    reap_dead_runs()
    assert {client.get_run(run).info.status for run in (dead, alive, foreign, unknown)} == {"RUNNING"}
    assert client.get_run(reused).info.status == "KILLED"
    job.wait(10)  # the job ended with the run of this directory
    assert list(tmp_path.glob("*.pid")) == []
    engine.kill()
    engine.wait()
    reap_dead_runs()
    assert client.get_run(dead).info.status == "KILLED"
    assert {client.get_run(run).info.status for run in (alive, foreign, unknown)} == {"RUNNING"}


def test_the_flow_run_of_a_dead_run_releases_its_slot(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    @flow
    def left() -> None:
        """A flow whose process was killed, as Prefect sees it."""

    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as prefect:
        for attempt, state_type in (("1", StateType.CRASHED), ("0", StateType.RUNNING)):
            flow_run = prefect.create_flow_run(left)
            prefect.set_flow_run_state(flow_run.id, Running(), force=True)  # the first attempt
            tags = owner_tags(tmp_path) | {STARTED: "1.0", FLOW_RUN: str(flow_run.id), ATTEMPT: attempt}
            run = new_run(client, tags)
            reap_dead_runs()
            assert client.get_run(run).info.status == "KILLED"
            state = prefect.read_flow_run(flow_run.id).state
            assert state is not None
            assert state.type == state_type  # a later attempt than the one in the tags is running


def test_a_directory_knows_its_run(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    assert mlflow_run_of(tmp_path) is None
    run = new_run(client, owner_tags(tmp_path))
    assert mlflow_run_of(tmp_path) is None
    client.set_terminated(run, "KILLED")
    assert mlflow_run_of(tmp_path) == run  # its process was killed before the file was written
    client.log_metric(run, "train/loss", 1.0)
    assert mlflow_run_of(tmp_path) is None  # a person has deleted its directory
    client.update_run(run, "RUNNING")
    remember_mlflow_run(tmp_path, run)
    with pytest.raises(ValueError, match=f"belongs to an active run, process {os.getpid()}: wait for it"):
        mlflow_run_of(tmp_path)
    client.set_terminated(run, "KILLED")
    assert mlflow_run_of(tmp_path) == run
    client.delete_run(run)
    assert mlflow_run_of(tmp_path) is None
    remember_mlflow_run(tmp_path, "f" * 32)  # a run of another tracking server
    assert mlflow_run_of(tmp_path) is None
