"""A run of the pipeline: its directory on disk and its MLflow run, from the moment that all input was checked."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run

from tasks.audit import audit
from tasks.launchers.choice import require_launchable, say_what_has_no_effect
from tasks.ownership import mlflow_run_of, owner_tags, reap_dead_runs, remember_mlflow_run
from tasks.services.databases import require_databases
from tasks.services.temporary_server import guard_temporary_server
from tasks.stops import STOPS, say_how_it_resumes
from tasks.trackers.mlflow_run import end_mlflow_run, log_files, run_tags, start_mlflow_run
from vlm_core.cache import read_manifest
from vlm_core.config import Config, DatasetConfig
from vlm_core.data.splits import TRAIN, VALIDATION, Splits, resolved_config, revisions
from vlm_core.files import write_text
from vlm_core.form import form_overrides
from vlm_core.home import medpix_home, require_writable
from vlm_core.hub import is_repository_id
from vlm_core.recipe import load_config
from vlm_core.run_directory import CONFIG, checkpoint_to_resume, run_root
from vlm_core.training.run_length import decide_length

guard_temporary_server()  # before a flow has Prefect start one


@dataclass(frozen=True)
class Run:
    """Where a run keeps its files, and what MLflow knows it by."""

    config: Config  # with checkpoint.checkpoint_dir set to the run's directory
    directory: Path
    mlflow_run_id: str

    @property
    def run_id(self) -> str:
        """The run's name: that of its directory and of its MLflow run."""
        return self.directory.name


def checked_config(recipe: str, overrides: Mapping[str, Any] | None) -> Config:
    """Returns the config of a run.

    Raises ValueError for wrong values, a place that cannot be written to, a database that cannot be used, and a
    launcher that is not there.
    """
    config = load_config(recipe, overrides)
    if not config.checkpoint.enabled:
        raise ValueError("checkpoint.enabled=false: the flow evaluates and registers the checkpoint; set it to true")
    require_writable(medpix_home())
    require_writable(_directory(config))
    require_databases()
    require_launchable(config.compute)
    return config


def flow_run_name() -> str:
    """Returns what tells the flow run at hand from others: `demo lora-r8 lr=0.004 phantom?images=40 retry 1`.

    Wrong parameters give the recipe's name: what is wrong is said by the run itself.
    """
    parameters = dict(flow_run.parameters)
    recipe, overrides = parameters.pop("recipe"), parameters.pop("overrides") or {}
    try:
        config = load_config(recipe, form_overrides(recipe, parameters.pop("tuning"), parameters) | overrides)
    except ValueError:
        return str(recipe)
    tuning = f"lora-r{config.peft.dim}" if config.peft else "full"
    name = f"{config.name} {tuning} lr={config.optimizer.lr:g} {_data_name(config.dataset)}"
    earlier = flow_run.run_count  # attempts before this one
    return f"{name} retry {earlier}" if earlier else name


def _data_name(dataset: DatasetConfig) -> str:
    """Returns the dataset's own name, and its split where that takes a part of the rows."""
    name = Path(dataset.path_or_dataset.removeprefix("builtin:")).name
    return f"{name} {dataset.split}" if "[" in dataset.split else name


@contextmanager
def tracked_run(
    config: Config, base_model: Path, splits: Splits, conversations: Path, evaluated: str | None = None
) -> Iterator[Run]:
    """Yields a run with what was resolved for it; its MLflow run ends FINISHED, FAILED, or KILLED by a cancellation.

    `evaluated` is the model that the run evaluates without training one.

    In a directory that a run was interrupted in, that run goes on, in MLflow too.
    Raises ValueError where the configured directory holds another run, or one that is at work.
    """
    say_what_has_no_effect(config.compute)
    reap_dead_runs()  # first: a job that was left may be saving the checkpoint to go on from
    directory = _directory(config)
    config = _resolved(config, directory, base_model, splits)
    checkpoint = checkpoint_to_resume(directory, config.checkpoint.restore_from)
    questions = read_manifest(conversations)["rows"][TRAIN]
    config = decide_length(config, checkpoint, questions, config.compute.processes)
    # First what can fail for reasons outside: a tracker that cannot be reached leaves no half-made run directory.
    known = mlflow_run_of(directory)
    tags = run_tags(config, evaluated) | owner_tags(directory)
    run = Run(config, directory, start_mlflow_run(config, directory.name, conversations, tags, known))
    remember_mlflow_run(directory, run.mlflow_run_id)
    write_text(directory / CONFIG, config.to_yaml())
    facts = {"run": run.run_id, "mlflow_run_id": run.mlflow_run_id}
    audit("run begins", **facts, data=read_manifest(conversations)["fingerprint"], evaluated=evaluated,
          parameters=config.model_dump(mode="json"))  # fmt: skip
    status = "KILLED"
    try:
        log_files(run.mlflow_run_id, [directory / CONFIG])
        yield run
        status = "FINISHED"
    except (CancelledRun, *STOPS) as error:
        say_how_it_resumes(directory, error)
    except Exception:
        status = "FAILED"
        raise
    finally:
        end_mlflow_run(run.mlflow_run_id, status)
        audit("run ends", **facts, status=status)


def _resolved(config: Config, directory: Path, base_model: Path, splits: Splits) -> Config:
    """Returns `config` with its directory, the hub's commits and what the data told: no later step asks again."""
    tree = resolved_config(config, splits).model_dump(mode="json")
    tree["checkpoint"]["checkpoint_dir"] = str(directory)
    if is_repository_id(config.model.pretrained_model_name_or_path):
        tree["model"]["revision"] = base_model.name
    commits = revisions(splits)
    tree["dataset"]["revision"] = commits[TRAIN]
    tree["validation_dataset"]["revision"] = commits.get(VALIDATION)
    return Config.model_validate(tree)


def _directory(config: Config) -> Path:
    """Returns the configured directory, or one of the flow run's own: a flow run that is retried finds it again."""
    if config.checkpoint.checkpoint_dir:
        return Path(config.checkpoint.checkpoint_dir).absolute()
    mark = (flow_run.id or secrets.token_hex(4))[-8:]
    for earlier in run_root().glob(f"{config.name}-*-{mark}"):
        return earlier
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return run_root() / f"{config.name}-{started}-{mark}"
