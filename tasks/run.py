"""The lifecycle of a run: its checked config, its directory on disk, and its MLflow run from start to end."""

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
from tasks.launchers.choice import require_launchable, warn_of_unused_settings
from tasks.ownership import mlflow_run_of, owner_tags, reap_dead_runs, remember_mlflow_run
from tasks.services.databases import require_databases
from tasks.services.temporary_server import guard_temporary_server
from tasks.stops import STOPS, report_stop
from tasks.trackers.mlflow_run import end_mlflow_run, log_files, run_tags, start_mlflow_run
from vlm_core.cache import read_manifest
from vlm_core.config import Config, DatasetConfig
from vlm_core.data.splits import TRAIN, VALIDATION, Splits, more_revisions, resolved_config, revisions
from vlm_core.files import write_text
from vlm_core.form import form_overrides
from vlm_core.home import medpix_home, require_writable
from vlm_core.hub import is_repository_id
from vlm_core.recipe import load_config
from vlm_core.resume import checkpoint_to_resume
from vlm_core.run_directory import CONFIG, run_root
from vlm_core.training.run_length import decide_length

guard_temporary_server()  # before a flow has Prefect start one


@dataclass(frozen=True)
class Run:
    """A run's config, its directory, and the id of its MLflow run."""

    config: Config  # checkpoint.checkpoint_dir is the run's directory
    directory: Path
    mlflow_run_id: str

    @property
    def run_id(self) -> str:
        """The name of the run, of its directory and of its MLflow run."""
        return self.directory.name


def checked_config(recipe: str, overrides: Mapping[str, Any] | None) -> Config:
    """Loads the config of a run, and checks everything that can fail before the run starts.

    Raises ValueError for wrong values, a directory that cannot be written to, a database that cannot be used, and a
    launcher that cannot run here.
    """
    config = load_config(recipe, overrides)
    if not config.checkpoint.enabled:
        raise ValueError("checkpoint.enabled=false: the flow needs a checkpoint to evaluate and register; set true")
    require_writable(medpix_home())
    require_writable(_directory(config))
    require_databases()
    require_launchable(config.compute)
    return config


def flow_run_name() -> str:
    """Returns a name for the current flow run: `demo lora-r8 lr=0.004 phantom?images=40 retry 1`.

    With invalid parameters it is the recipe's name alone; the run itself then reports the error.
    """
    parameters = dict(flow_run.parameters)
    recipe, overrides = parameters.pop("recipe"), parameters.pop("overrides")
    try:
        config = load_config(recipe, form_overrides(recipe, parameters.pop("tuning"), parameters) | overrides)
    except ValueError:
        return str(recipe)
    tuning = f"lora-r{config.peft.dim}" if config.peft else "full"
    data = "+".join(config.datasets) if config.more_datasets else _data_name(config.dataset)
    name = f"{config.name} {tuning} lr={config.optimizer.lr:g} {data}"
    earlier = flow_run.run_count  # the number of earlier attempts
    return f"{name} retry {earlier}" if earlier else name


def _data_name(dataset: DatasetConfig) -> str:
    """Returns the dataset's short name, with the split if it takes only part of the rows."""
    name = Path(dataset.path_or_dataset.removeprefix("builtin:")).name
    return f"{name} {dataset.split}" if "[" in dataset.split else name


@contextmanager
def tracked_run(
    config: Config,
    base_model: Path,
    splits: Splits,
    conversations: Path,
    evaluated: str | None = None,
    tags: Mapping[str, str] = {},
) -> Iterator[Run]:
    """Starts a run and yields it; when the block ends, the MLflow run becomes FINISHED, FAILED, or KILLED (cancelled).

    If the directory holds an interrupted run, that run resumes, in MLflow too. `evaluated` names the model of an
    evaluation without a training. `tags` are further tags of the MLflow run.
    Raises ValueError if the configured directory holds a different run, or an active one.
    """
    warn_of_unused_settings(config.compute)
    reap_dead_runs()  # first: a job of a dead run may still be saving the checkpoint to resume from
    directory = _directory(config)
    config = _resolved(config, directory, base_model, splits)
    checkpoint = checkpoint_to_resume(directory, config.checkpoint.restore_from)
    questions = read_manifest(conversations)["rows"][TRAIN]
    config = decide_length(config, checkpoint, questions, config.compute.processes)
    # MLflow comes before the first file: if its server cannot be reached, no incomplete run directory is left.
    known = mlflow_run_of(directory)
    tags = run_tags(config, evaluated) | owner_tags(directory) | dict(tags)
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
        report_stop(directory, error)
    except Exception:
        status = "FAILED"
        raise
    finally:
        end_mlflow_run(run.mlflow_run_id, status)
        audit("run ends", **facts, status=status)


def _resolved(config: Config, directory: Path, base_model: Path, splits: Splits) -> Config:
    """Returns `config` with its directory, the hub's commits and the facts read from the data, fixed for all steps."""
    tree = resolved_config(config, splits).model_dump(mode="json")
    tree["checkpoint"]["checkpoint_dir"] = str(directory)
    if is_repository_id(config.model.pretrained_model_name_or_path):
        tree["model"]["revision"] = base_model.name
    commits = revisions(splits)
    tree["dataset"]["revision"] = commits[TRAIN]
    tree["validation_dataset"]["revision"] = commits.get(VALIDATION)
    for name, commit in more_revisions(splits).items():
        tree["more_datasets"][name]["revision"] = commit
    return Config.model_validate(tree)


def _directory(config: Config) -> Path:
    """Returns the configured directory, or one named after the flow run, so that a retry finds it again."""
    if config.checkpoint.checkpoint_dir:
        return Path(config.checkpoint.checkpoint_dir).absolute()
    mark = (flow_run.id or secrets.token_hex(4))[-8:]
    for earlier in run_root().glob(f"{config.name}-*-{mark}"):
        return earlier
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return run_root() / f"{config.name}-{started}-{mark}"
