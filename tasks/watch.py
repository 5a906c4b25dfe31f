"""Finds new revisions on the hub that no registered version of a model was trained on, and announces them."""

from pathlib import Path
from typing import Any

import mlflow
from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.registry.register import registered_name
from vlm_core.config import Config
from vlm_core.hub import RepositoryKind, current_commit, download, is_repository_id
from vlm_core.models.base_model import fetch_model

EVENT = "medpix.revision-changed"


@task(tags=["watch"], persist_result=False)
def find_changes(config: Config) -> dict[str, str]:
    """Returns the current `{"dataset.revision": commit, "model.revision": commit}`, or {} if a version has all of them.

    Of several datasets, each that is on the hub has its key, such as `more_datasets.NAME.revision`.

    All versions count, not only the champion: otherwise a run on new data that did not become the champion would start
    again every night. Raises ValueError if neither the dataset nor the base model is on the hub.
    """
    model = config.model
    sources: dict[str, tuple[str, RepositoryKind, str | None]] = {
        "model.revision": (model.pretrained_model_name_or_path, "model", model.revision)
    }
    for name, dataset in config.datasets.items():
        sources[f"{config.key_of(name)}.revision"] = (dataset.path_or_dataset, "dataset", dataset.revision)
    commits = {key: current_commit(*source) for key, source in sources.items() if is_repository_id(source[0])}
    if not commits:
        raise ValueError(
            "neither the dataset nor the base model of this recipe is on the hub, so there is nothing to watch; "
            "choose a recipe that uses the hub"
        )
    name = watched_name(config)
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    known = [v.version for v in versions if all(v.tags.get(key) == commit for key, commit in commits.items())]
    get_run_logger().info("%s: %s; versions trained on it: %s", name, commits, known or "none")
    return {} if known else commits


def watched_name(config: Config) -> str:
    """Returns the registered name of a recipe's models; downloads only config.json of a base model on the hub."""
    model = config.model
    if is_repository_id(model.pretrained_model_name_or_path):
        directory = download(model.pretrained_model_name_or_path, "model", model.revision, ["config.json"])
    else:
        directory = fetch_model(model)
    return registered_name(config, directory)


@task(tags=["watch"], persist_result=False)
def announce(recipe: str, overrides: dict[str, Any]) -> None:
    """Emits the event that starts medpix-finetune with this recipe and these overrides."""
    resource = {"prefect.resource.id": f"medpix.recipe.{Path(recipe).stem}", "prefect.resource.name": recipe}
    emit_event(EVENT, resource=resource, payload={"recipe": recipe, "overrides": overrides})
