"""A run of the pipeline: its directory on disk and its MLflow run, from the moment that all input was checked."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.tracking import end_mlflow_run, start_mlflow_run
from vlm_core.config import Config
from vlm_core.files import point, write_text
from vlm_core.home import medpix_home, require_writable
from vlm_core.recipe import load_config
from vlm_core.run_directory import CONFIG


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
    """Returns the config of a run; raises ValueError for wrong values, and for a place that cannot be written to."""
    config = load_config(recipe, overrides)
    require_writable(medpix_home())
    require_writable(_directory(config))
    return config


@contextmanager
def tracked_run(config: Config, conversations: Path) -> Iterator[Run]:
    """Yields a new run; its MLflow run ends FINISHED, FAILED for an error, or KILLED for a cancellation."""
    directory = _directory(config)
    checkpoint = config.checkpoint.model_copy(update={"checkpoint_dir": str(directory)})
    config = config.model_copy(update={"checkpoint": checkpoint})
    # First what can fail for reasons outside: a tracker that cannot be reached leaves no half-made run directory.
    run = Run(config, directory, start_mlflow_run(config, directory.name, conversations))
    write_text(directory / CONFIG, config.to_yaml())
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        end_mlflow_run(run.mlflow_run_id, status)
    runs = medpix_home() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    point(runs / "latest", directory)


def _directory(config: Config) -> Path:
    if config.checkpoint.checkpoint_dir:
        return Path(config.checkpoint.checkpoint_dir).absolute()
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return medpix_home() / "runs" / f"{config.name}-{started}-{secrets.token_hex(2)}"
