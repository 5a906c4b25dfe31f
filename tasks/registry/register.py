"""Registers a checkpoint as a version of an MLflow model and points an alias to it."""

import hashlib
import importlib.metadata
import json
import logging
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
from tasks.registry.trust import TAG, lock_version
from tasks.registry.versions import look_up
from tasks.run import Run
from vlm_core.cache import FILES, cached_directory, checksums
from vlm_core.config import Config
from vlm_core.data.medical.settings import PACKAGES as MEDICAL_PACKAGES
from vlm_core.evaluation.metrics import PRIMARY, Use, metrics_in
from vlm_core.evaluation.result_names import VISUAL_RELIANCE
from vlm_core.evaluation.served_confidence import served_confidence
from vlm_core.families import model_type_of
from vlm_core.hub import is_repository_id
from vlm_core.run_directory import CONFIG, CONSOLIDATED, EVALUATION, REGISTERED, RESULT

# Version tags: rows and cases of both splits; the watch counts what was added since.
ROWS, CASES = "dataset_rows", "dataset_cases"
IDENTITY = "registered.sha256"  # version tag: of its weights and its other tags
FINGERPRINT = "dataset_fingerprint"  # version tag: the name of the cache of conversations
logger = logging.getLogger(__name__)
REQUIREMENTS = ("torch", "torchvision", "timm", "transformers", "peft", "safetensors", "pillow", "pydantic", "datasets")


# No retries: a retry could register a second version. MLflow's client retries its own requests.
@task(tags=["registry"], persist_result=False)
def register_model(run: Run, base_model: Path, checkpoint: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Registers the checkpoint; returns `{name, version, alias, uri}` of the new version, looked up by its alias.

    If a process of this run was killed after it had registered the same weights and scores, its version is used.
    """
    name, alias = registered_name(run.config, base_model), run.config.registry.alias
    weights = _servable(Path(checkpoint) / "model")
    found = _tags(scores) | _revisions(run.config)
    tags = {key: str(value) for key, value in found.items() if value is not None}
    tags = {IDENTITY: _identity(weights, tags)} | tags  # first: it tells a version that is not complete
    client = mlflow.MlflowClient()
    version = _left_by_killed(client, name, run.mlflow_run_id, tags[IDENTITY])
    if version is None:
        card = model_card(run, base_model, scores)  # first, so that no version exists without a card
        version = _new_version(run, base_model, weights, name, scores)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        client.update_model_version(name, version, description=card)
        if not client.get_registered_model(name).description:  # keep a description that a person wrote
            client.update_registered_model(name, model_description(name, alias))
        evaluation = run.directory / EVALUATION / RESULT
        lock_version(name, version, run.mlflow_run_id, run.directory / CONFIG, evaluation, weights)
    # Set the alias last, so that it never points to an incomplete version.
    client.set_registered_model_alias(name, alias, version)
    return look_up(name, alias)


def _identity(weights: Path, tags: dict[str, str]) -> str:
    """Returns a checksum of what is registered: the files of the weights, and the tags."""
    return hashlib.sha256(json.dumps([checksums(weights), tags], sort_keys=True).encode()).hexdigest()


def _left_by_killed(client: mlflow.MlflowClient, name: str, run_id: str, identity: str) -> str | None:
    """Returns the version with this identity that an earlier process of the run registered, None if there is none.

    Deletes a version that the process did not complete, as its lock is missing.
    """
    complete = None
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        # Versions of older releases have no identity, and perhaps no lock.
        is_ours = version.name == name and (IDENTITY in version.tags or FINGERPRINT not in version.tags)
        if is_ours and TAG not in version.tags:
            logger.warning("version %s of %s is deleted: its process was killed meanwhile", version.version, name)
            client.delete_model_version(name, str(version.version))
        elif is_ours and version.tags.get(IDENTITY) == identity:
            complete = str(version.version)
    return complete


def _new_version(run: Run, base_model: Path, weights: Path, name: str, scores: dict[str, Any]) -> str:
    """Registers the files of a version, and returns its number."""
    artifacts, reference = _weights(run, weights)
    with mlflow.start_run(run_id=run.mlflow_run_id, log_system_metrics=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # an input example would load the model here
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            code_paths=[str(Path(vlm_core.__file__).parent)],
            artifacts=artifacts,
            model_config={
                **reference,
                "model": _base_reference(run, base_model),
                "batch_size": run.config.evaluation.batch_size,
                "confidence": served_confidence(scores),
            },
            signature=_signature(run.config.evaluation.max_new_tokens),
            pip_requirements=_requirements(run.config),
            registered_model_name=name,
        )
    # Leaving the block marked the MLflow run as finished, but it runs until its flow ends.
    mlflow.MlflowClient().update_run(run.mlflow_run_id, status="RUNNING")
    return str(logged.registered_model_version)


def _requirements(config: Config) -> list[str]:
    """Returns the requirements of a server, pinned to the installed versions."""
    quantizers = [] if config.model.quantization == "none" else ["bitsandbytes"]
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    wanted = [*REQUIREMENTS, *quantizers, *(name for name in MEDICAL_PACKAGES if name in installed)]
    return [f"{package}=={importlib.metadata.version(package)}" for package in wanted]


def _servable(weights: Path) -> Path:
    """Returns the directory to register: the plain weights, if a checkpoint has sharded ones too."""
    plain = weights / CONSOLIDATED
    return plain if plain.is_dir() else weights


def _weights(run: Run, weights: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns (the artifacts of a version, the config entry for weights that are referenced instead of copied).

    Adapters are small and always copied. A remote store needs a copy of full weights too, because other machines load
    from it. In a local store, the version refers to full weights by path and sha256.
    """
    store = mlflow.MlflowClient().get_run(run.mlflow_run_id).info.artifact_uri or ""
    if run.config.peft is not None or urlparse(store).scheme not in ("", "file"):
        return {"checkpoint": str(weights)}, {}
    sha256 = checksums(weights)
    key = hashlib.sha256(json.dumps(sha256).encode()).hexdigest()[:16]

    def link(directory: Path) -> dict[str, Any]:
        shutil.copytree(weights, directory, copy_function=_link, dirs_exist_ok=True)
        return {"checkpoint": weights.parent.name, FILES: sha256}

    # Hard links next to the checkpoints take no extra space. They survive when a resumed run removes old checkpoints.
    directory, _ = cached_directory(run.directory / REGISTERED, key, link)
    return {}, {"weights": {"path": str(directory), "sha256": sha256}}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)


def registered_name(config: Config, base_model: Path) -> str:
    """Returns the registered model name of a run."""
    return config.registry.model_name or f"medpix-{model_type_of(base_model)}"


def _revisions(config: Config) -> dict[str, str]:
    """Returns the hub commits that a version was trained on; the watch flow compares them with the current ones."""
    found = {f"{config.key_of(name)}.revision": dataset.revision for name, dataset in config.datasets.items()}
    found["model.revision"] = config.model.revision
    return {key: revision for key, revision in found.items() if revision}


def _tags(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the tags of a version: its scores, and the data that they were measured on."""
    model = result["scores"]["model"]
    return {
        **{key: result[key] for key in (FINGERPRINT, "examples", "complete", "limit")},
        **{key: result.get(key) for key in (ROWS, CASES)},  # older evaluations have none
        **{metric.name: model[metric.name]["value"] for metric in metrics_in(model, Use.TAG)},
        VISUAL_RELIANCE: result["visual_reliance"] and result["visual_reliance"][PRIMARY]["value"],
    }


def _base_reference(run: Run, base_model: Path) -> dict[str, Any]:
    """Returns the `model` section of the base model: a hub id is unchanged, a path becomes absolute."""
    model = run.config.model.model_dump(mode="json")
    if not is_repository_id(model["pretrained_model_name_or_path"]):
        model["pretrained_model_name_or_path"] = os.fspath(base_model)
    return model


def _signature(max_new_tokens: int) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string, "answer"), ColSpec(DataType.double, "confidence", required=False)]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.integer, max_new_tokens)]),
    )
