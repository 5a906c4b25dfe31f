"""Resolves `models:/name@alias` and `models:/name/version` to a checkpoint directory on this machine, for vlm_core.

vlm_core finds this module through its entry point (see `pyproject.toml`) and does not import MLflow.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tasks.ownership import MLFLOW_RUN
from tasks.registry.trust import require_trusted
from vlm_core.cache import cached_directory, require_unchanged
from vlm_core.files import read_json, stays_inside
from vlm_core.home import medpix_home
from vlm_core.plain_text import printable
from vlm_core.run_directory import require_registered

# What MLflow and the lines below raise for a version whose files are missing, damaged or of another kind.
UNUSABLE = (MlflowException, OSError, yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError)


def resolve_model(uri: str) -> tuple[Path, dict[str, Any]]:
    """Returns (the directory of a registered checkpoint, the `model` section of its base model).

    A version is downloaded once. Raises ValueError if the version does not exist, was not registered by this project,
    or has changed since it was registered.
    """
    try:
        version = find_version(uri)
        directory = local_copy(version)
        require_trusted(version.name, str(version.version), directory)
        flavor = Model.load(str(directory)).flavors["python_function"]
        settings, artifacts = flavor["config"], flavor.get("artifacts", {})
        checkpoint = (
            _referenced_weights(settings["weights"], version.run_id)
            if "weights" in settings
            else _downloaded_weights(directory, artifacts["checkpoint"]["path"])
        )
        return checkpoint, settings["model"]
    except UNUSABLE as error:
        raise ValueError(printable(f"no model {uri!r} at {mlflow.get_tracking_uri()}: {error}")) from None


def local_copy(version: Any) -> Path:
    """Returns the directory with the files of a model version on this machine; downloads them once.

    Raises ValueError if the version is not a model: its source could be any directory. Compiled code is removed, since
    Python would run it in place of the source code.
    """
    source = f"models:/{version.name}/{version.version}"

    def fetch(directory: Path) -> dict[str, Any]:
        if all(entry.path != "MLmodel" for entry in mlflow.artifacts.list_artifacts(artifact_uri=source)):
            raise ValueError(f"{source} is not a model: its files have no MLmodel")
        mlflow.artifacts.download_artifacts(source, dst_path=str(directory))
        for compiled in list(directory.rglob("__pycache__")):
            shutil.rmtree(compiled)
        return {"source": source}

    # A version never changes. The model id distinguishes versions of different tracking servers.
    key = re.sub(r"[^\w.-]", "_", f"{version.name}-{version.version}-{version.model_id or version.run_id}")
    return cached_directory(medpix_home() / "cache" / "registered", key, fetch)[0]


def _referenced_weights(weights: dict[str, Any], run_id: str | None) -> Path:
    """Returns the directory of weights that a version refers to by path.

    Raises ValueError unless it belongs to the version's run and holds exactly the registered files.
    """
    directory = Path(weights["path"]).resolve()
    require_registered(directory)
    mark = directory.parents[1] / MLFLOW_RUN
    if not mark.is_file() or read_json(mark)["run_id"] != run_id:
        raise ValueError(f"{directory} does not belong to the version's MLflow run {run_id}: register the model again")
    require_unchanged(directory, weights["sha256"])
    return directory


def _downloaded_weights(directory: Path, path: str) -> Path:
    """Returns the weights directory inside a downloaded version; raises ValueError for a path outside of it."""
    found = directory / path
    if not found.is_dir() or not stays_inside(directory, found):
        raise ValueError(f"the version's MLmodel names {path!r} as its weights: not a directory of the version")
    return found


def find_version(uri: str) -> Any:
    """Returns MLflow's version for `models:/name@alias` or `models:/name/version`; raises MlflowException for none."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    client = mlflow.MlflowClient()
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = name.rpartition("/")
    return client.get_model_version(name, number)
