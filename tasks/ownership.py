"""Which process an MLflow run belongs to, and the end of those runs whose process was killed and could not end them."""

import logging
import os
import socket
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from tasks.processes import end_left_jobs, find_process, identity
from tasks.tracking import EXPERIMENT, end_mlflow_run
from vlm_core.files import read_json, write_json

logger = logging.getLogger(__name__)

# Tags of an MLflow run.
HOST, PID, STARTED, DIRECTORY = (f"owner.{name}" for name in ("host", "pid", "started", "directory"))
MLFLOW_RUN = "mlflow_run.json"  # in a run directory: the MLflow run that it belongs to


def owner_tags(directory: Path) -> dict[str, str]:
    """Returns tags that name this process as the owner of an MLflow run, and the run's directory."""
    process = identity(os.getpid())
    return {
        HOST: socket.gethostname(),
        PID: str(process["pid"]),
        STARTED: str(process["started"]),
        DIRECTORY: str(directory),
    }


def reap_dead_runs() -> None:
    """Ends what runs of this machine left whose process was killed: their jobs, and their MLflow runs as KILLED."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    ours = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    for run in mlflow.MlflowClient().search_runs([experiment.experiment_id], ours):
        if _owner(run.data.tags) is None:
            logger.warning("the process of run %s is gone: MLflow has it as KILLED", run.info.run_name)
            end_left_jobs(Path(run.data.tags[DIRECTORY]))
            end_mlflow_run(run.info.run_id, "KILLED")


def reap_after_crash(flow: Any, flow_run: Any, state: Any) -> None:
    """The hook of a flow whose process was killed: the worker runs it, once it has noticed."""
    reap_dead_runs()


def mlflow_run_of(directory: Path) -> str | None:
    """Returns the MLflow run that a run directory belongs to, None where there is none (any more).

    Raises ValueError where the process that it belongs to is at work.
    """
    if not (directory / MLFLOW_RUN).is_file():
        return None
    try:
        run = mlflow.MlflowClient().get_run(read_json(directory / MLFLOW_RUN)["run_id"])
    except MlflowException:  # of another tracking server, or deleted for good
        return None
    if run.info.lifecycle_stage != "active":
        return None
    running = run.info.status == RunStatus.to_string(RunStatus.RUNNING)
    if running and run.data.tags.get(HOST) == socket.gethostname():
        owner = _owner(run.data.tags)
        if owner is not None:
            raise ValueError(
                f"{directory} belongs to a run that is at work, process {owner.pid}: wait for it, cancel it, or give "
                "checkpoint.checkpoint_dir another directory"
            )
    return run.info.run_id


def remember_mlflow_run(directory: Path, run_id: str) -> None:
    """Notes in a run directory the MLflow run that whoever goes on in it goes on with."""
    write_json(directory / MLFLOW_RUN, {"run_id": run_id})


def _owner(tags: dict[str, str]) -> Any:
    """Returns the process that an MLflow run of this machine belongs to, None where it has ended."""
    return find_process(int(tags[PID]), float(tags[STARTED]))
