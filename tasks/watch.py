"""What is on the hub that no version of a model was trained on."""

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
    """Returns `{"dataset.revision": commit, "model.revision": commit}` as they are now, nothing where they are known.

    Known is what any version of the model was trained on, and not the champion alone: a run on new data that did not
    become the champion would be started again every night. Raises ValueError where nothing of the recipe is on the hub.
    """
    sources: dict[str, tuple[str, RepositoryKind, str | None]] = {
        "dataset.revision": (config.dataset.path_or_dataset, "dataset", config.dataset.revision),
        "model.revision": (config.model.pretrained_model_name_or_path, "model", config.model.revision),
    }
    commits = {key: current_commit(*source) for key, source in sources.items() if is_repository_id(source[0])}
    if not commits:
        raise ValueError(
            "neither the dataset nor the base model of this recipe is on the hub: nothing can change there"
        )
    name = watched_name(config)
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    known = [v.version for v in versions if all(v.tags.get(key) == commit for key, commit in commits.items())]
    get_run_logger().info("%s: %s; versions trained on it: %s", name, commits, known or "none")
    return {} if known else commits


def watched_name(config: Config) -> str:
    """Returns the name that the models of a recipe have; of a base model on the hub, its config alone is fetched."""
    model = config.model
    if is_repository_id(model.pretrained_model_name_or_path):
        directory = download(model.pretrained_model_name_or_path, "model", model.revision, ["config.json"])
    else:
        directory = fetch_model(model)
    return registered_name(config, directory)


@task(tags=["watch"], persist_result=False)
def announce(recipe: str, overrides: dict[str, Any]) -> None:
    """Emits the event that a trigger of medpix-finetune waits for; its run takes the recipe and the overrides."""
    resource = {"prefect.resource.id": f"medpix.recipe.{Path(recipe).stem}", "prefect.resource.name": recipe}
    emit_event(EVENT, resource=resource, payload={"recipe": recipe, "overrides": overrides})
