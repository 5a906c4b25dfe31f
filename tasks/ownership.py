"""Records which process owns a run, and closes the runs whose process was killed.

`python -m tasks.ownership` closes them on this machine, as `make up` and every start of a run do.
"""

import argparse

if __name__ == "__main__":  # before the imports below, which take seconds
    argparse.ArgumentParser(prog="python -m tasks.ownership", description=__doc__).parse_args()

import logging
import os
import socket
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from tasks.launchers.processes import end_left_jobs, find_process, identity
from tasks.trackers.mlflow_run import EXPERIMENT, end_mlflow_run
from vlm_core.files import read_json, write_json

logger = logging.getLogger(__name__)

# Tags of an MLflow run.
HOST = "owner.host"
PID = "owner.pid"
STARTED = "owner.started"
DIRECTORY = "owner.directory"
FLOW_RUN = "owner.flow_run"
ATTEMPT = "owner.attempt"
MLFLOW_RUN = "mlflow_run.json"  # the file in a run directory that has the id of its MLflow run


def owner_tags(directory: Path) -> dict[str, str]:
    """Returns tags that name this process as the owner of an MLflow run, and the run's directory."""
    process = identity(os.getpid())
    return {
        HOST: socket.gethostname(),
        PID: str(process["pid"]),
        STARTED: str(process["started"]),
        DIRECTORY: str(directory),
        FLOW_RUN: flow_run.id or "",
        ATTEMPT: str(flow_run.run_count),
    }


def reap_dead_runs() -> None:
    """Closes this machine's runs whose process was killed: their jobs end, MLflow has KILLED, Prefect has Crashed."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    ours = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    for run in mlflow.MlflowClient().search_runs([experiment.experiment_id], ours):
        if _owner(run.data.tags) is None:
            logger.warning("the process of run %s is gone: the run is KILLED in MLflow", run.info.run_name)
            end_left_jobs(Path(run.data.tags[DIRECTORY]))
            end_mlflow_run(run.info.run_id, "KILLED")
            _end_flow_run(run.data.tags)


def _end_flow_run(tags: dict[str, str]) -> None:
    """Marks a flow run as Crashed if it still holds its concurrency slot: a stopped worker reports nothing."""
    if not tags.get(FLOW_RUN):
        return
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(tags[FLOW_RUN]))
        except ObjectNotFound:  # it belongs to another server, or was deleted
            return
        retried = found.run_count > int(tags[ATTEMPT])  # a later attempt runs, perhaps in this process
        if not retried and found.state is not None and not found.state.is_final():
            client.set_flow_run_state(found.id, Crashed(message="The run's process is gone."), force=True)


def reap_after_crash(flow: Any, flow_run: Any, state: Any) -> None:
    """Closes dead runs: the worker calls this hook when it notices that a flow's process was killed."""
    reap_dead_runs()


def mlflow_run_of(directory: Path) -> str | None:
    """Returns the id of a run directory's MLflow run, or None if it has none or that run was deleted.

    Raises ValueError if the run is active, that is, if the process that owns it still runs.
    """
    if not (directory / MLFLOW_RUN).is_file():
        return _run_without_file(directory)
    try:
        run = mlflow.MlflowClient().get_run(read_json(directory / MLFLOW_RUN)["run_id"])
    except MlflowException:  # it belongs to another tracking server, or was deleted
        return None
    if run.info.lifecycle_stage != "active":
        return None
    running = run.info.status == RunStatus.to_string(RunStatus.RUNNING)
    if running and run.data.tags.get(HOST) == socket.gethostname():
        owner = _owner(run.data.tags)
        if owner is not None:
            raise ValueError(
                f"{directory} belongs to an active run, process {owner.pid}: wait for it, cancel it, or set "
                "checkpoint.checkpoint_dir to another directory"
            )
    return run.info.run_id


def _run_without_file(directory: Path) -> str | None:
    """Returns the id of a run that was killed before its directory had a file with the id; None if there is none.

    Such a run has no metrics. Another run without the file may have had its directory deleted by a person.
    """
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    ours = f"attributes.status = 'KILLED' and tags.`{HOST}` = '{socket.gethostname()}'"
    for run in mlflow.MlflowClient().search_runs([experiment.experiment_id], ours):
        if run.data.tags.get(DIRECTORY) == str(directory) and not run.data.metrics:
            return run.info.run_id
    return None


def remember_mlflow_run(directory: Path, run_id: str) -> None:
    """Writes the MLflow run's id to the run directory, so that a resumed run resumes in MLflow too."""
    write_json(directory / MLFLOW_RUN, {"run_id": run_id})


def _owner(tags: dict[str, str]) -> Any:
    """Returns the process that owns an MLflow run of this machine, or None if it has ended."""
    return find_process(int(tags[PID]), float(tags[STARTED]))


if __name__ == "__main__":
    reap_dead_runs()
