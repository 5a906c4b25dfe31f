"""Loads a model and its processor, and puts them on a device; `weights` loads what was trained on top of it."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from vlm_core.config import ModelConfig
from vlm_core.hub import is_repository_id

logger = logging.getLogger(__name__)


def load_processor(directory: Path) -> ProcessorMixin:
    """Returns the processor in `directory`; raises ValueError if it needs a package that is not installed."""
    try:
        processor: Any = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    except ImportError as error:
        raise ValueError(f"the processor of {directory} needs another package: {error}") from error
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # masked and without a target
    return processor


def load_model(directory: Path, config: ModelConfig) -> Any:
    """Returns the model in `directory` on the CPU, in the dtype and with the attention of `config`."""
    logger.info("loading the weights in %s", directory)
    attention: Any = config.attn_implementation
    if attention == "flex_attention":  # for packed rows, which only the language model has
        attention = {"text_config": attention}
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=config.torch_dtype, attn_implementation=attention, trust_remote_code=False
    )
    if is_repository_id(config.pretrained_model_name_or_path):
        # An adapter names its base model: by the hub's id, which others can resolve, not by this machine's cache.
        model.name_or_path = config.pretrained_model_name_or_path
    return model


def unwrapped(model: Any) -> Any:
    """Returns the transformers model itself, with its LoRA matrices if it has any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def device_of(local_rank: int) -> torch.device:
    """Returns the GPU of this rank, or the CPU if there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
