"""Finds the base model's directory (hub, disk, or a tiny model made locally) and checks it before use."""

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vlm_core.cache import cached_directory
from vlm_core.config import DatasetConfig, ModelConfig
from vlm_core.data.source import fetch_split
from vlm_core.home import medpix_home
from vlm_core.hub import download, is_repository_id
from vlm_core.models.model_directory import require_whole_model

logger = logging.getLogger(__name__)

# Part of the cache key of a tiny model. Increase it if equal arguments must give other weights.
TINY_VERSION: Final = 1
TINY_WRITERS = {  # module and function
    "tiny-gemma3": ("vlm_core.models.tiny", "write_tiny_gemma3"),
    "tiny-gemma3n": ("vlm_core.models.tiny_gemma3n", "write_tiny_gemma3n"),
    "tiny-gemma4": ("vlm_core.models.tiny_gemma4", "write_tiny_gemma4"),
    "tiny-gemma4_26b": ("vlm_core.models.tiny_gemma4", "write_tiny_gemma4_26b"),
    "tiny-gemma4_unified": ("vlm_core.models.tiny_gemma4", "write_tiny_gemma4_unified"),
    "tiny-qwen2_5_vl": ("vlm_core.models.tiny_qwen", "write_tiny_qwen2_5_vl"),
    "tiny-qwen3_vl": ("vlm_core.models.tiny_qwen3", "write_tiny_qwen3_vl"),
    "tiny-qwen3_vl_moe": ("vlm_core.models.tiny_qwen3", "write_tiny_qwen3_vl_moe"),
}
TINY_MODELS = tuple(f"builtin:{name}" for name in TINY_WRITERS)
PATTERNS = ["README.md", "*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
WITHOUT_WEIGHTS = [pattern for pattern in PATTERNS if pattern != "*.safetensors"]


def fetch_model(config: ModelConfig, *, weights: bool = True) -> Path:
    """Returns the directory of the base model; downloads or makes it if it is missing.

    If `weights` is false, the weight files are not fetched. Raises ValueError if the model cannot be found or its
    directory is incomplete.
    """
    name = config.pretrained_model_name_or_path
    directory = _locate(name, config.revision, PATTERNS if weights else WITHOUT_WEIGHTS)
    require_whole_model(directory, name, weights=weights)
    return directory


def _locate(name: str, revision: str | None, patterns: list[str]) -> Path:
    if name in TINY_MODELS:
        return _tiny(name.partition(":")[2])
    if Path(name).is_dir():
        return Path(name).absolute()
    if is_repository_id(name):
        return download(name, "model", revision, patterns)
    raise ValueError(f"no model {name!r}: neither a directory, nor a hub id owner/name, nor {', '.join(TINY_MODELS)}")


def _tiny(name: str) -> Path:
    def build(directory: Path) -> dict[str, Any]:
        module, write = TINY_WRITERS[name]
        # Lazy: importing torch and the model classes takes seconds.
        getattr(importlib.import_module(module), write)(directory, _phantom_texts())
        return {"name": name, "version": TINY_VERSION}

    directory, reused = cached_directory(medpix_home() / "cache" / "models", f"{name}-v{TINY_VERSION}", build)
    logger.info("%s %s", name, "reused" if reused else "made")
    return directory


def _phantom_texts() -> Iterator[str]:
    """Yields the questions and answers that the tiny tokenizers are trained on."""
    source = fetch_split(DatasetConfig(path_or_dataset="builtin:phantom", split="train"))
    for column in ("question", "answer"):
        for _, rows in source.rows.batches([column], source.start, source.stop):
            yield from (row[column] for row in rows)
