"""Resolves a model reference (a directory, a hub id or a registry URI) to files on disk, with a fingerprint.

Installed packages resolve URIs such as `models:/name@alias`. They register a function for the scheme in the entry-point
group `medpix_finetune.models`. The function takes the URI and returns (directory, `model` section of the base model).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlm_core.config import ModelConfig
from vlm_core.hub import download, is_repository_id
from vlm_core.models.base_model import PATTERNS, TINY_MODELS, fetch_model
from vlm_core.models.model_directory import PROCESSOR_FILES, read_object, require_whole_model, require_whole_weights
from vlm_core.models.weights import ADAPTER_CONFIG, SHARDED, TENSOR_FILES, format_of, is_adapter, weights_directory
from vlm_core.run_directory import CONFIG

if TYPE_CHECKING:
    from vlm_core.data.chat_model import ChatModel

logger = logging.getLogger(__name__)

RESOLVERS = "medpix_finetune.models"
# Keys of an adapter's config that say where it was made; they do not change what it computes.
NOT_IDENTITY = ("base_model_name_or_path", "inference_mode", "revision")


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: `weights` is what transformers or peft loads, `base` has the processor and the family."""

    weights: Path
    base: Path  # the base model of an adapter or of bare weights; else the same directory
    config: ModelConfig  # of the base model: name, revision, dtype and attention

    @cached_property
    def chat(self) -> ChatModel:
        """The chat model, which loads the processor on first use."""
        from vlm_core.models.chat import load_chat  # lazy: importing torch takes seconds

        return load_chat(self.base, self.config.image_processor.settings)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and the settings that affect the result: equal fingerprints give equal answers."""
        parts = [_directory_digest(self.weights), self.config.torch_dtype, self.config.attn_implementation]
        if self.base != self.weights:
            parts.append(_directory_digest(self.base))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def find_model(reference: str | Path | None, base: ModelConfig | None = None) -> ModelFiles:
    """Returns the files of the model `reference`; if it is None, the files of the base model itself.

    `base` overrides the base model that a checkpoint names. Raises ValueError if the model does not exist.
    """
    if reference is None:
        assert base is not None
        directory = fetch_model(base)
        return ModelFiles(directory, directory, base)
    checkpoint, named = _resolve(str(reference))
    weights = weights_directory(checkpoint)
    config = base or named or _base_of(checkpoint, weights)
    has_processor = any((weights / name).is_file() for name in PROCESSOR_FILES)
    stored = format_of(weights)
    if stored and not (stored.is_model and has_processor):
        if stored is not SHARDED:
            require_whole_weights(weights)
        return ModelFiles(weights, fetch_model(config), config)  # config and processor come from the base model
    require_whole_model(weights, str(reference))
    return ModelFiles(weights, weights, config)


def is_uri(reference: str) -> bool:
    """Returns whether a reference has a scheme, as `models:/name@alias` has."""
    return re.match(r"[a-z]+:/", reference) is not None


def _resolve(reference: str) -> tuple[Path, ModelConfig | None]:
    """Returns (the directory of a reference, its base model; None unless a registry URI names it)."""
    if Path(reference).is_dir():
        return Path(reference).absolute(), None
    if reference in TINY_MODELS:
        return fetch_model(ModelConfig(pretrained_model_name_or_path=reference)), None
    if is_repository_id(reference):
        return download(reference, "model", None, PATTERNS), None
    scheme = reference.partition(":")[0]
    for entry in entry_points(group=RESOLVERS, name=scheme):
        resolve: Callable[[str], tuple[Path, dict[str, Any]]] = entry.load()
        directory, model = resolve(reference)
        return directory, ModelConfig(**model)
    raise ValueError(
        f"no model {reference!r}: neither a directory, nor a hub id owner/name, nor {', '.join(TINY_MODELS)}, nor a "
        "URI such as models:/name@alias"
    )


def _base_of(checkpoint: Path, weights: Path) -> ModelConfig:
    """Returns the base model that a checkpoint was trained from, read from the checkpoint's own files."""
    if (checkpoint / CONFIG).is_file():  # written by this project: it has dtype and revision too
        return ModelConfig(**yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8"))["model"])
    name = _base_of_adapter(weights) if is_adapter(weights) else str(weights)
    return ModelConfig(pretrained_model_name_or_path=name, torch_dtype="auto")


def _base_of_adapter(adapter: Path) -> str:
    name = read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{adapter / ADAPTER_CONFIG} does not name the base model: write its hub id or directory there, as "
            "base_model_name_or_path"
        )
    return name


def _directory_digest(directory: Path) -> str:
    if directory.parent.name == "snapshots":  # in the hub's cache, the commit identifies the content
        return f"{directory.parent.parent.name} {directory.name}"
    settings: dict[str, Any] = {}
    for name in ("config.json", ADAPTER_CONFIG):
        if (directory / name).is_file():
            settings |= {key: value for key, value in read_object(directory / name).items() if key not in NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    weights = sorted(path for pattern in TENSOR_FILES for path in directory.glob(pattern))
    if not weights:
        raise ValueError(f"{directory} has no weights ({', '.join(TENSOR_FILES)})")
    for path in weights:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
