"""Finds new data or a new base model that no registered version of a model was trained on, and announces them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.entities.model_registry import ModelVersion
from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.registry.register import CASES, FINGERPRINT, ROWS, registered_name
from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.prepare import prepare_conversations
from vlm_core.hub import RepositoryKind, current_commit, download, is_repository_id
from vlm_core.models.base_model import fetch_model

EVENT = "medpix.revision-changed"


class Minimum(NamedTuple):
    """How much new data a training needs; each number that is not 0 must be reached."""

    rows: int = 0
    cases: int = 0


NOTHING = Minimum()


@task(tags=["watch"], persist_result=False)
def find_changes(config: Config, minimum: Minimum = NOTHING) -> dict[str, str]:
    """Returns what is new, `{"dataset.revision": commit, "model.revision": commit}`, or {} if a version has it all.

    Of several datasets, each that is on the hub has its key, such as `more_datasets.NAME.revision`.

    A local dataset has no revision: its change is `{"dataset_fingerprint": digest}`. All versions count, not only the
    champion: otherwise a run on new data that did not become the champion would start again every night. New data
    counts as a change only if it has so many rows and cases more than any version was trained on as `minimum` says.

    Raises ValueError if there is nothing to watch: neither a repository on the hub nor a local dataset.
    """
    if min(minimum) < 0:
        raise ValueError(f"{minimum}: a number of new rows or cases must be at least 0; 0 requires none")
    present = present_data(config)
    name = watched_name(config)
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    known = [v.version for v in versions if all(v.tags.get(key) == value for key, value in present.items())]
    get_run_logger().info("%s: %s; versions trained on it: %s", name, present, known or "none")
    if known or (any(minimum) and not _has_grown(config, versions, present, minimum)):
        return {}
    return present


def present_data(config: Config) -> dict[str, str]:
    """Returns the current revisions on the hub, or else the fingerprint of a local dataset."""
    model = config.model
    sources: dict[str, tuple[str, RepositoryKind, str | None]] = {
        "model.revision": (model.pretrained_model_name_or_path, "model", model.revision)
    }
    for name, dataset in config.datasets.items():
        sources[f"{config.key_of(name)}.revision"] = (dataset.path_or_dataset, "dataset", dataset.revision)
    found = {key: current_commit(*source) for key, source in sources.items() if is_repository_id(source[0])}
    if any(Path(dataset.path_or_dataset).exists() for dataset in config.datasets.values()):
        found[FINGERPRINT] = read_manifest(prepare_conversations(config)[0])["fingerprint"]
    if not found:
        raise ValueError(
            "neither the dataset nor the base model of this recipe is on the hub, and the dataset is not a local file "
            "or directory, so there is nothing to watch; choose a recipe that uses one of them"
        )
    return found


def _has_grown(config: Config, versions: Sequence[ModelVersion], present: dict[str, str], minimum: Minimum) -> bool:
    """Returns whether the data has enough new rows and cases, or the base model is new; reads the data to count."""
    model = "model.revision"
    if model in present and all(version.tags.get(model) != present[model] for version in versions):
        return True
    manifest = read_manifest(prepare_conversations(at_revisions(config, present))[0])
    now = {ROWS: sum(manifest["rows"].values()), CASES: manifest["cases"]}
    enough = []
    for (tag, count), needed in zip(now.items(), minimum, strict=True):
        trained = [int(version.tags[tag]) for version in versions if tag in version.tags]
        if needed and trained:  # without: no version, or older ones only, which did not record the number
            new = count - max(trained)
            get_run_logger().info("%d new %s; %d are needed", new, tag.removeprefix("dataset_"), needed)
            enough.append(new >= needed)
    return all(enough)


def at_revisions(config: Config, revisions: Mapping[str, str]) -> Config:
    """Returns the config with the datasets' revisions of `find_changes`."""
    tree = config.model_dump(mode="json")
    for name in config.datasets:
        section = tree["more_datasets"][name] if name in config.more_datasets else tree["dataset"]
        section["revision"] = revisions.get(f"{config.key_of(name)}.revision", section["revision"])
    return Config.model_validate(tree)


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
