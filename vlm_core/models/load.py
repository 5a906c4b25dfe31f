"""Loads a model and its processor, and puts them on a device; `weights` loads what was trained on top of it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.processing_utils import ImagesKwargs

from vlm_core.config import ModelConfig
from vlm_core.hub import is_repository_id
from vlm_core.models.quantize import keep_exact_on_cpu, quantization_of

logger = logging.getLogger(__name__)


# Settings of image processors that follow from a model's weights.
FIXED = {"patch_size", "merge_size", "temporal_patch_size", "pooling_kernel_size", "image_seq_length"}


def load_processor(directory: Path, images: Mapping[str, Any] | None = None) -> ProcessorMixin:
    """Returns the processor in `directory`; its image processor gets the settings `images` (`model.image_processor`).

    Raises ValueError for a setting that the image processor does not have, for a value that it refuses, and for a
    processor that needs a package that is not installed.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    except ImportError as error:
        raise ValueError(f"the processor of {directory} needs another package: {error}") from error
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # masked and without a target
    if images:
        _change_images(processor, directory, images)
    return processor


def _change_images(processor: Any, directory: Path, settings: Mapping[str, Any]) -> None:
    kind = type(processor.image_processor)
    known = _budget_settings(processor.image_processor)
    for name in settings.keys() - known:
        raise ValueError(
            f"model.image_processor.{name}: {kind.__name__} cannot change that; it has {', '.join(sorted(known))}"
        )
    try:
        processor.image_processor = kind.from_pretrained(directory, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.image_processor={dict(settings)}: {error}") from None
    # Gemma 3's processor stores some settings too, which override those of its image processor.
    own = getattr(processor, "images_kwargs", {})
    processor.images_kwargs = {name: settings.get(name, value) for name, value in own.items()}


def _budget_settings(image_processor: Any) -> set[str]:
    """Returns the names of the settings that say how many tokens an image gets: those of this processor alone."""
    accepted = getattr(image_processor, "valid_kwargs", ImagesKwargs).__annotations__
    size = {"size"} if image_processor.size is not None else set()
    return (accepted.keys() - ImagesKwargs.__annotations__.keys() - FIXED) | size


def load_model(directory: Path, config: ModelConfig) -> Any:
    """Returns the model in `directory` on the CPU, in the dtype and with the attention of `config`.

    A quantised model is on the device of this process instead: each weight goes there and is quantised before the next
    one, so that the device never holds them in full precision.
    """
    logger.info("loading the weights in %s", directory)
    attention: Any = config.attn_implementation
    if attention == "flex_attention":  # for packed rows, which only the language model has
        attention = {"text_config": attention}
    quantized = {}
    if config.quantization != "none":
        quantized["quantization_config"] = quantization_of(
            directory, config.quantization, compute_dtype(config, directory)
        )
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=config.torch_dtype, attn_implementation=attention, trust_remote_code=False, **quantized
    )
    keep_exact_on_cpu(model)
    if is_repository_id(config.pretrained_model_name_or_path):
        # An adapter names its base model: by the hub's id, which others can resolve, not by this machine's cache.
        model.name_or_path = config.pretrained_model_name_or_path
    return model


def compute_dtype(config: ModelConfig, base: Path) -> torch.dtype:
    """Returns the configured dtype, or for `auto` that of the stored base model."""
    if config.torch_dtype == "auto":
        stored: Any = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype
        return stored or torch.float32
    return getattr(torch, config.torch_dtype)


def unwrapped(model: Any) -> Any:
    """Returns the transformers model itself, with its LoRA matrices if it has any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def device_of(local_rank: int) -> torch.device:
    """Returns the GPU of this rank, or the CPU if there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
