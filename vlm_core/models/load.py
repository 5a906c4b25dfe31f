"""Loading a base model, its processor, and what was trained on top of it."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from vlm_core.config import ModelConfig
from vlm_core.hub import is_repository_id
from vlm_core.models.layout import is_adapter, is_distributed_checkpoint, weights_directory
from vlm_core.run_directory import CONSOLIDATED

logger = logging.getLogger(__name__)


def load_processor(directory: Path) -> ProcessorMixin:
    """Returns the processor in `directory`."""
    processor: Any = AutoProcessor.from_pretrained(directory)
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # no token sees padding, and it has no target
    return processor


def load_model(directory: Path, config: ModelConfig) -> Any:
    """Returns the model in `directory` on the CPU, in the dtype and with the attention of `config`."""
    logger.info("loading the weights in %s", directory)
    attention: Any = config.attn_implementation
    if attention == "flex_attention":  # a tower has no packed rows
        attention = {"text_config": attention}
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=config.torch_dtype, attn_implementation=attention
    )
    if is_repository_id(config.pretrained_model_name_or_path):
        # An adapter names its base model: by the hub's id, which others can resolve, not by this machine's cache.
        model.name_or_path = config.pretrained_model_name_or_path
    return model


def unwrapped(model: Any) -> Any:
    """Returns the transformers model itself, with its LoRA matrices where it has some."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def weights_to_save(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """Returns the state dictionary of all weights but those tied to others, or of the LoRA matrices alone."""
    weights = model.state_dict()
    if isinstance(model, PeftModel):
        return {name: tensor for name, tensor in weights.items() if "lora_" in name}
    tied = set(model.all_tied_weights_keys)
    return {name: tensor for name, tensor in weights.items() if name not in tied}


def save_weights(
    model: PreTrainedModel | PeftModel,
    directory: Path,
    weights: dict[str, torch.Tensor] | None = None,
    *,
    distributed: bool = False,
    consolidated: bool = True,
) -> None:
    """Writes the weights, or the adapter alone, in safetensors.

    `weights` are what `weights_to_save` returned, by default now; `distributed` writes full weights as torch's DCP, and
    `consolidated` a transformers directory of that name too.
    """
    weights = weights_to_save(model) if weights is None else weights
    if isinstance(model, PeftModel):
        # The embeddings are never adapted; peft's own check would ask the hub for the base model's vocabulary.
        model.save_pretrained(str(directory), state_dict=weights, save_embedding_layers=False)
        return
    if distributed:
        directory.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # off, even where that was asked for
            dcp.save(weights, checkpoint_id=directory, no_dist=True)
        model.config.save_pretrained(directory)
    if consolidated or not distributed:
        model.save_pretrained(directory / CONSOLIDATED if distributed else directory, state_dict=weights)


def load_trained(checkpoint: Path, base: Path, config: ModelConfig) -> Any:
    """Returns the model of a checkpoint: full weights, or the adapter over the base model in `base`.

    `checkpoint` is a directory `epoch_E_step_S`, or one that transformers, peft or torch's DCP wrote; a DCP checkpoint
    takes its configuration from `base`. Raises ValueError for a directory with none of them.
    """
    weights = weights_directory(checkpoint)
    if is_distributed_checkpoint(weights):
        model = load_model(base, config)
        load_distributed_checkpoint(model, weights)
        return model
    if is_adapter(weights):
        return PeftModel.from_pretrained(load_model(base, config), weights)
    return load_model(weights, config)


def load_adapter_weights(model: PeftModel, adapter: Path) -> None:
    """Sets the adapter of `model` to the one that was saved in the directory `adapter`."""
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))


def load_distributed_checkpoint(model: PreTrainedModel, weights: Path) -> None:
    """Sets the weights of `model` to those of a DCP checkpoint, whatever number of processes wrote it.

    Raises ValueError where a weight is missing: the checkpoint is of another model.
    """
    stored = dcp.FileSystemReader(weights).read_metadata().state_dict_metadata
    own = model.state_dict()
    # A training script saves the model itself, or under the name `model`; tied weights are stored once.
    prefix = next((p for p in ("", "model.") if f"{p}{next(iter(own))}" in stored), "")
    wanted = {prefix + name: tensor for name, tensor in own.items() if prefix + name in stored}
    tied = set(model.all_tied_weights_keys)
    missing = [name for name in own if prefix + name not in stored and name not in tied]
    if missing:
        raise ValueError(f"{weights} lacks {len(missing)} weights of this model, among them {missing[0]}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # even where that was asked for
        dcp.load(wanted, checkpoint_id=weights, no_dist=True)  # in place
    model.tie_weights()


def device_of(local_rank: int) -> torch.device:
    """Returns the GPU of this rank, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
