"""Registration: the checkpoint as a version of a registered MLflow model, with an alias to find it by."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from prefect import task

import vlm_core
from tasks.registry.card import model_card, model_description
from tasks.registry.trust import lock_version
from tasks.registry.versions import look_up
from tasks.run import Run
from vlm_core.cache import cached_directory, checksums
from vlm_core.config import Config
from vlm_core.data.medical.settings import PACKAGES as MEDICAL_PACKAGES
from vlm_core.evaluation.metrics import PRIMARY, Use, names
from vlm_core.evaluation.result_names import VISUAL_RELIANCE
from vlm_core.families import model_type_of
from vlm_core.hub import is_repository_id
from vlm_core.run_directory import CONFIG, CONSOLIDATED, EVALUATION, REGISTERED, RESULT

REQUIREMENTS = ("torch", "torchvision", "timm", "transformers", "peft", "safetensors", "pillow", "pydantic", "datasets")


# Not retried: a version that was registered would be registered again. MLflow's client retries its own requests.
@task(tags=["registry"], persist_result=False)
def register_model(run: Run, base_model: Path, checkpoint: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Returns `{name, version, alias, uri}` of the new version, as the registry answers when asked for the alias."""
    name, alias = registered_name(run.config, base_model), run.config.registry.alias
    card = model_card(run, base_model, scores)  # before there is a version that lacks one
    client = mlflow.MlflowClient()
    weights = _servable(Path(checkpoint) / "model")
    artifacts, reference = _weights(run, weights)
    with mlflow.start_run(run_id=run.mlflow_run_id, log_system_metrics=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # it would load the model here
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            code_paths=[str(Path(vlm_core.__file__).parent)],
            artifacts=artifacts,
            model_config={
                **reference,
                "model": _base_reference(run, base_model),
                "batch_size": run.config.evaluation.batch_size,
            },
            signature=_signature(run.config.evaluation.max_new_tokens),
            pip_requirements=_requirements(),
            registered_model_name=name,
        )
    # The end of the block marked the run as finished; it goes on until its flow ends.
    client.update_run(run.mlflow_run_id, status="RUNNING")
    version = str(logged.registered_model_version)
    for key, value in (_tags(scores) | _revisions(run.config)).items():
        if value is not None:
            client.set_model_version_tag(name, version, key, str(value))
    client.update_model_version(name, version, description=card)
    if not client.get_registered_model(name).description:  # people may have written their own
        client.update_registered_model(name, model_description(name, alias))
    evaluation = run.directory / EVALUATION / RESULT
    lock_version(name, version, run.mlflow_run_id, run.directory / CONFIG, evaluation, weights)
    # Last: whoever follows the alias finds a version that is complete.
    client.set_registered_model_alias(name, alias, version)
    return look_up(name, alias)


def _requirements() -> list[str]:
    """Returns the packages that a server needs, in the versions that are installed here."""
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    wanted = [*REQUIREMENTS, *(name for name in MEDICAL_PACKAGES if name in installed)]
    return [f"{package}=={importlib.metadata.version(package)}" for package in wanted]


def _servable(weights: Path) -> Path:
    """Returns the directory that others can load: of a checkpoint that has its weights in two forms, the plain one."""
    plain = weights / CONSOLIDATED
    return plain if plain.is_dir() else weights


def _weights(run: Run, weights: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the artifacts of a version, and what its config says of weights that are not among them.

    An adapter is small, and a store behind a server must have the files: other machines load from there. But full
    weights are not copied into a store of this very machine: the version names a directory by path and sha256.
    """
    store = mlflow.MlflowClient().get_run(run.mlflow_run_id).info.artifact_uri or ""
    if run.config.peft is not None or urlparse(store).scheme not in ("", "file"):
        return {"checkpoint": str(weights)}, {}
    sha256 = checksums(weights)
    key = hashlib.sha256(json.dumps(sha256).encode()).hexdigest()[:16]

    def link(directory: Path) -> dict[str, Any]:
        shutil.copytree(weights, directory, copy_function=_link, dirs_exist_ok=True)
        return {"checkpoint": weights.parent.name}

    # Links beside the checkpoints: a run that goes on removes old checkpoints, and takes no space twice.
    directory, _ = cached_directory(run.directory / REGISTERED, key, link)
    return {}, {"weights": {"path": str(directory), "sha256": sha256}}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def registered_name(config: Config, base_model: Path) -> str:
    """Returns the name that a run's model is registered under."""
    return config.registry.model_name or f"medpix-{model_type_of(base_model)}"


def _revisions(config: Config) -> dict[str, str]:
    """Returns the commits that a version was trained on, which the watch compares with the hub's."""
    found = {"dataset.revision": config.dataset.revision, "model.revision": config.model.revision}
    return {key: revision for key, revision in found.items() if revision}


def _tags(result: dict[str, Any]) -> dict[str, Any]:
    """Returns what says of a version how good it is, and on which questions that was found."""
    model = result["scores"]["model"]
    return {
        **{key: result[key] for key in ("dataset_fingerprint", "examples", "complete", "limit")},
        **{metric: model[metric]["value"] for metric in names(Use.TAG)},
        VISUAL_RELIANCE: result["visual_reliance"] and result["visual_reliance"][PRIMARY]["value"],
    }


def _base_reference(run: Run, base_model: Path) -> dict[str, Any]:
    """Returns the model section to load from: a hub id as it is, anything else by its absolute path."""
    model = run.config.model.model_dump(mode="json")
    if not is_repository_id(model["pretrained_model_name_or_path"]):
        model["pretrained_model_name_or_path"] = os.fspath(base_model)
    return model


def _signature(max_new_tokens: int) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.integer, max_new_tokens)]),
    )
