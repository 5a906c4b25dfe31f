"""The model to train: loaded in the right precision, then frozen in part or given LoRA matrices."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from vlm_core.config import Config, ModelConfig
from vlm_core.families import Family
from vlm_core.models.freeze import freeze, frozen_parts, require_trainable
from vlm_core.models.layout import is_distributed_checkpoint, weights_directory
from vlm_core.models.load import load_adapter_weights, load_distributed_checkpoint, load_model
from vlm_core.models.lora import apply_lora


def prepare_model(config: Config, base: Path, family: Family, checkpoint: Path | None) -> Any:
    """Returns the model of `config` on the CPU, with the weights of `checkpoint` where there is one.

    Trained weights are float32 and frozen ones in the dtype to compute in: at a learning rate of 1e-5 nearly every
    update of a bfloat16 weight would round to nothing. Raises ValueError where nothing is left to train.
    """
    frozen = frozen_parts(config.freeze_config, family)
    dtype = compute_dtype(config.model, base)
    torch.manual_seed(config.rng.seed)  # The LoRA matrices are drawn from it, alike on every rank.
    if config.peft is not None:
        # peft keeps its matrices in float32 over a base of lower precision.
        model: Any = apply_lora(_load(base, config.model, dtype), config.peft, family, frozen)
        if checkpoint:
            load_adapter_weights(model, weights_directory(checkpoint))
    else:
        weights = weights_directory(checkpoint) if checkpoint else base
        shards = is_distributed_checkpoint(weights)
        model = _load(base if shards else weights, config.model, torch.float32)
        if shards:
            load_distributed_checkpoint(model, weights)
        freeze(model, frozen, family)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    require_trainable(model)
    if config.compute.gradient_checkpointing:
        # Reentrant checkpointing gives Gemma 3n wrong gradients without a word: its layers share keys and values.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def compute_dtype(config: ModelConfig, base: Path) -> torch.dtype:
    """Returns the configured dtype, or for `auto` that of the stored base model."""
    if config.torch_dtype == "auto":
        stored: Any = AutoConfig.from_pretrained(base).dtype
        return stored or torch.float32
    return getattr(torch, config.torch_dtype)


def _load(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Any:
    return load_model(directory, config.model_copy(update={"torch_dtype": str(dtype).removeprefix("torch.")}))
