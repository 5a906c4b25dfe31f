"""Registration: the checkpoint as a version of a registered MLflow model, with an alias to find it by."""

import importlib.metadata
import os
import warnings
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from prefect import task
from prefect.cache_policies import NO_CACHE

import vlm_core
from tasks.card import model_card
from tasks.registry import look_up
from tasks.run import Run
from vlm_core.config import Config
from vlm_core.families import model_type_of
from vlm_core.hub import is_repository_id
from vlm_core.run_directory import CONSOLIDATED

REQUIREMENTS = ("torch", "torchvision", "timm", "transformers", "peft", "safetensors", "pillow", "pydantic", "datasets")


# Not retried: a version that was registered would be registered again. MLflow's client retries its own requests.
@task(tags=["registry"], cache_policy=NO_CACHE)
def register_model(run: Run, base_model: Path, checkpoint: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Returns `{name, version, alias, uri}` of the new version, as the registry answers when asked for the alias."""
    name, alias = registered_name(run.config, base_model), run.config.registry.alias
    card = model_card(run, base_model, scores)  # before there is a version that lacks one
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_id=run.mlflow_run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # it would load the model here
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            code_paths=[str(Path(vlm_core.__file__).parent)],
            artifacts={"checkpoint": str(_servable(Path(checkpoint) / "model"))},
            model_config={
                "model": _base_reference(run, base_model),
                "batch_size": run.config.evaluation.batch_size,
            },
            signature=_signature(run.config.evaluation.max_new_tokens),
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
            registered_model_name=name,
        )
    # The end of the block marked the run as finished; it goes on until its flow ends.
    client.update_run(run.mlflow_run_id, status="RUNNING")
    version = str(logged.registered_model_version)
    for key, value in (_tags(scores) | _revisions(run.config)).items():
        client.set_model_version_tag(name, version, key, str(value))
    client.update_model_version(name, version, description=card)
    # Last: whoever follows the alias finds a version that is complete.
    client.set_registered_model_alias(name, alias, version)
    return look_up(name, alias)


def _servable(weights: Path) -> Path:
    """Returns the directory that others can load: of a checkpoint that has its weights in two forms, the plain one."""
    plain = weights / CONSOLIDATED
    return plain if plain.is_dir() else weights


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
        **{metric: model[metric]["value"] for metric in ("token_f1", "rouge_l", "closed_accuracy", "perplexity")},
        "visual_reliance": result["visual_reliance"] and result["visual_reliance"]["token_f1"]["value"],
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
