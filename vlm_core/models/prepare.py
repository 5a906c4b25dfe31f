"""The model to train: loaded in the right precision, then frozen in part or given LoRA matrices."""

import logging
from pathlib import Path
from typing import Any

import torch

from vlm_core.config import Config, ModelConfig
from vlm_core.families import Family
from vlm_core.models.freeze import count_parameters, freeze, frozen_parts, require_trainable
from vlm_core.models.load import compute_dtype, load_model
from vlm_core.models.lora import apply_lora
from vlm_core.models.weights import load_adapter_weights, load_trained, weights_directory

logger = logging.getLogger(__name__)


def prepare_model(config: Config, base: Path, family: Family, checkpoint: Path | None) -> Any:
    """Returns the model to train, with the weights of `checkpoint` if there is one.

    It is on the CPU, or on the device of this process if it is quantised.

    Trained weights are float32 and frozen ones have the dtype to compute in: at a learning rate of 1e-5, nearly every
    update of a bfloat16 weight would round to zero. Raises ValueError if nothing is left to train.
    """
    frozen = frozen_parts(config.freeze_config, family)
    dtype = compute_dtype(config.model, base)
    torch.manual_seed(config.rng.seed)  # Every rank draws the same LoRA matrices.
    if config.peft is not None:
        # peft keeps its matrices in float32 over a base of lower precision.
        loaded = load_model(base, _with_dtype(config.model, dtype))
        model: Any = apply_lora(loaded, config.peft, family, frozen, checkpoint and weights_directory(checkpoint))
        _warn_of_unadapted_parts(model, family, frozen)
        if checkpoint:
            load_adapter_weights(model, weights_directory(checkpoint))
    else:
        full = _with_dtype(config.model, torch.float32)
        model = load_trained(checkpoint, base, full) if checkpoint else load_model(base, full)
        freeze(model, frozen, family)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    require_trainable(model)
    if config.compute.gradient_checkpointing:
        # Reentrant checkpointing silently gives Gemma 3n wrong gradients, because its layers share keys and values.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _warn_of_unadapted_parts(model: Any, family: Family, frozen: set[str]) -> None:
    """Logs a warning for each part that should train, but has no adapter: LoRA freezes everything else."""
    for part, counts in count_parameters(model, family).items():
        if part in family.parts and part not in frozen and not counts.trainable:
            logger.warning(
                "freeze_config.freeze_%s=false has no effect: LoRA adapts no module of this part (%s). Set it to true, "
                "or let peft.target_modules, peft.exclude_modules or peft.modules_to_save select a module of it",
                part,
                ", ".join(family.parts[part]),
            )


def _with_dtype(config: ModelConfig, dtype: torch.dtype) -> ModelConfig:
    return config.model_copy(update={"torch_dtype": str(dtype).removeprefix("torch.")})
