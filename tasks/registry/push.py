"""Pushes a registered version to the Hugging Face hub, with its model card: `python -m tasks.registry push`.

The repository is private unless the user says otherwise, since a model can repeat what it was trained on.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from tasks.registry.resolve import local_copy, resolve_model
from tasks.registry.trust import verify
from vlm_core.files import read_json
from vlm_core.hub import is_repository_id

ADAPTER_CONFIG, README = "adapter_config.json", "README.md"


def push(name: str, version: str, repository: str, *, public: bool = False) -> str:
    """Uploads the weights of a version, verified first, in one commit; returns the commit's address.

    Creates the repository if it does not exist. Raises ValueError if nobody else could load the version, if the version
    is not as it was registered, or if the hub refuses.
    """
    registered: Any = mlflow.MlflowClient().get_model_version(name, version)
    verify(name, version, local_copy(registered))
    weights, model = resolve_model(f"models:/{name}/{version}")
    base = str(model["pretrained_model_name_or_path"])
    is_adapter = (weights / ADAPTER_CONFIG).is_file()
    if is_adapter and not is_repository_id(base):
        raise ValueError(
            f"version {version} of {name} is an adapter over {base}, which others do not have: merge it with "
            "python -m vlm_core.export merge, or train over a model of the hub"
        )
    files = {str(path.relative_to(weights)): path for path in sorted(weights.rglob("*")) if path.is_file()}
    operations = [CommitOperationAdd(path, _content(file, base)) for path, file in files.items() if path != README]
    api = HfApi()
    try:
        card = _card(registered, base if is_repository_id(base) else None, api, is_adapter=is_adapter)
        operations.append(CommitOperationAdd(README, card.encode()))
        api.create_repo(repository, private=not public, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=f"{name}, version {version}")
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub refused {repository}: {error}. Log in with `hf auth login` and a token that may write there"
        ) from error
    return done.commit_url


def _content(file: Path, base: str) -> str | bytes:
    """Returns the path of a file, or its content if it names a directory of this machine: an adapter's base model."""
    if file.name != ADAPTER_CONFIG:
        return str(file)
    return json.dumps(read_json(file) | {"base_model_name_or_path": base}, indent=2).encode()


def _card(registered: Any, base: str | None, api: HfApi, *, is_adapter: bool) -> str:
    """Returns the version's model card with the metadata that the hub reads."""
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if is_adapter else "finetune") if base else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["medical", "visual-question-answering"],
        license=_licence_of(base, api) or "other",
    )
    title = f"# {registered.name}, version {registered.version}"
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{registered.description}\n"))


def _licence_of(base: str | None, api: HfApi) -> str | None:
    """Returns the licence that the base model's card on the hub names."""
    if base is None:
        return None
    try:
        return ModelCard.load(api.hf_hub_download(base, README)).data.get("license")
    except EntryNotFoundError:
        return None
