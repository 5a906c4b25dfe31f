"""Which process a run belongs to, and the end of those whose process was killed and could not end them.

python -m tasks.ownership        ends what is left on this machine, as `make up` and every start of a run do
"""

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
HOST, PID, STARTED, DIRECTORY, FLOW_RUN, ATTEMPT = (
    f"owner.{name}" for name in ("host", "pid", "started", "directory", "flow_run", "attempt")
)
MLFLOW_RUN = "mlflow_run.json"  # in a run directory: the MLflow run that it belongs to


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
    """Ends what runs of this machine left whose process was killed: jobs, KILLED in MLflow, Crashed in Prefect."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    ours = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    for run in mlflow.MlflowClient().search_runs([experiment.experiment_id], ours):
        if _owner(run.data.tags) is None:
            logger.warning("the process of run %s is gone: MLflow has it as KILLED", run.info.run_name)
            end_left_jobs(Path(run.data.tags[DIRECTORY]))
            end_mlflow_run(run.info.run_id, "KILLED")
            _end_flow_run(run.data.tags)


def _end_flow_run(tags: dict[str, str]) -> None:
    """Marks a flow run Crashed that has its deployment's slot still: a worker that is stopped tells Prefect nothing."""
    if not tags.get(FLOW_RUN):
        return
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(tags[FLOW_RUN]))
        except ObjectNotFound:  # of another server, or deleted there
            return
        retried = found.run_count > int(tags[ATTEMPT])  # it may be this very process
        if not retried and found.state is not None and not found.state.is_final():
            client.set_flow_run_state(found.id, Crashed(message="The run's process is gone."), force=True)


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


if __name__ == "__main__":
    reap_dead_runs()
