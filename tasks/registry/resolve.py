"""`models:/name@alias` and `models:/name/version` for vlm_core: where the registered checkpoint lies on this machine.

vlm_core finds this by its entry point (see `pyproject.toml`) and knows no MLflow.
"""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from vlm_core.cache import cached_directory, require_unchanged
from vlm_core.home import medpix_home
from vlm_core.plain_text import printable


def resolve_model(uri: str) -> tuple[Path, dict[str, Any]]:
    """Returns the directory of a registered checkpoint, and the `model` section of the base model to put it over.

    A version is downloaded once. Raises ValueError for a version that is not there or was not registered here.
    """
    try:
        version = _version(uri)
        source = f"models:/{version.name}/{version.version}"

        def fetch(directory: Path) -> dict[str, Any]:
            mlflow.artifacts.download_artifacts(source, dst_path=str(directory))
            return {"source": source}

        # A version never changes; its model id keeps those of two tracking servers apart.
        key = f"{version.name}-{version.version}-{version.model_id or version.run_id}"
        directory, _ = cached_directory(medpix_home() / "cache" / "registered", key, fetch)
        flavor = Model.load(str(directory)).flavors["python_function"]
        weights = flavor["config"].get("weights")
        checkpoint = Path(weights["path"]) if weights else directory / flavor["artifacts"]["checkpoint"]["path"]
    except (MlflowException, KeyError) as error:
        raise ValueError(printable(f"no model {uri!r} at {mlflow.get_tracking_uri()}: {error}")) from None
    if weights:
        require_unchanged(checkpoint, weights["sha256"])
    return checkpoint, flavor["config"]["model"]


def _version(uri: str) -> Any:
    name, at, alias = uri.removeprefix("models:/").partition("@")
    client = mlflow.MlflowClient()
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = name.rpartition("/")
    return client.get_model_version(name, number)
