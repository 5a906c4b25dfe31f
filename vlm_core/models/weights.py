"""How trained weights lie on disk: as an adapter, as shards of torch's DCP, or as a plain transformers directory.

Each format is a class here that reads and writes it, and an entry of `FORMATS`. To add a format, add both.
Torch is imported by the functions that read or write tensors: its import takes seconds, and finding a model needs none.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from vlm_core.config import ModelConfig
from vlm_core.models.model_directory import read_object
from vlm_core.run_directory import CONSOLIDATED, WEIGHTS

if TYPE_CHECKING:
    import torch

    from vlm_core.models.shard_metadata import ShardReader

ADAPTER_CONFIG = "adapter_config.json"


class WeightsFormat(Protocol):
    """One way to store the weights of a trained model in a directory."""

    marker: str  # the file that only a directory of this format has
    tensors: tuple[str, ...]  # patterns of the files that hold the weights
    is_model: bool  # whether the directory loads without the base model

    def load(self, weights: Path, base: Path, config: ModelConfig) -> Any:
        """Returns the trained model on the CPU, in the dtype of `config`; `base` is the base model's directory."""

    def save(self, model: Any, directory: Path, tensors: dict[str, torch.Tensor]) -> None:
        """Writes `tensors`, which `weights_to_save` took from `model`, into `directory`."""


class Adapter:
    """The matrices of LoRA in peft's format; they are laid over the base model."""

    marker = ADAPTER_CONFIG
    tensors: tuple[str, ...] = ("*.safetensors", "*.bin")
    is_model = False

    def load(self, weights: Path, base: Path, config: ModelConfig) -> Any:
        from peft import PeftModel

        from vlm_core.models.load import load_model

        _require_lora(weights)
        return PeftModel.from_pretrained(load_model(base, config), weights)

    def save(self, model: Any, directory: Path, tensors: dict[str, torch.Tensor]) -> None:
        from vlm_core.models.lora_start import describe_joined, over_original_weights

        tensors = over_original_weights(model, tensors)
        # LoRA never adapts the embeddings. peft's own check for that would ask the hub for the base model's vocabulary.
        model.save_pretrained(str(directory), state_dict=tensors, save_embedding_layers=False)
        describe_joined(model, directory / ADAPTER_CONFIG)


class Sharded:
    """All weights as torch.distributed.checkpoint writes them; config and processor come from the base model."""

    marker = ".metadata"
    tensors: tuple[str, ...] = ("*.distcp",)
    is_model = False

    def load(self, weights: Path, base: Path, config: ModelConfig) -> Any:
        from vlm_core.models.load import load_model
        from vlm_core.models.shard_metadata import ShardReader

        if config.quantization != "none":
            raise ValueError(
                f"{weights} holds shards, which do not load quantised: give its {CONSOLIDATED}/, or set "
                "model.quantization=none"
            )
        reader = ShardReader(weights)  # first: it may be refused
        model = load_model(base, config)
        _fill_from_shards(model, reader)
        return model

    def save(self, model: Any, directory: Path, tensors: dict[str, torch.Tensor]) -> None:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # given although no_dist is set
            dcp.save(tensors, checkpoint_id=directory, no_dist=True)
        model.config.save_pretrained(directory)


class Plain:
    """All weights in safetensors with their config, as transformers loads them."""

    marker = "config.json"
    tensors: tuple[str, ...] = ("*.safetensors", "*.bin")
    is_model = True

    def load(self, weights: Path, base: Path, config: ModelConfig) -> Any:
        from vlm_core.models.load import load_model

        return load_model(weights, config)

    def save(self, model: Any, directory: Path, tensors: dict[str, torch.Tensor]) -> None:
        model.save_pretrained(directory, state_dict=tensors)


ADAPTER, SHARDED, PLAIN = Adapter(), Sharded(), Plain()
FORMATS: Final[tuple[WeightsFormat, ...]] = (ADAPTER, SHARDED, PLAIN)  # shards have a config.json beside them
TENSOR_FILES: Final = tuple(sorted({pattern for known in FORMATS for pattern in known.tensors}))


def format_of(weights: Path) -> WeightsFormat | None:
    """Returns the format of a directory of weights, None if it holds none."""
    return next((known for known in FORMATS if (weights / known.marker).is_file()), None)


def weights_directory(checkpoint: Path) -> Path:
    """Returns the directory that holds the weights of `checkpoint`: its `model/`, or itself.

    Raises ValueError if neither holds weights.
    """
    for directory in (checkpoint / WEIGHTS, checkpoint):
        if format_of(directory):
            return directory
    markers = ", ".join(known.marker for known in FORMATS)
    raise ValueError(f"{checkpoint} is not a checkpoint: neither it nor its {WEIGHTS}/ has one of {markers}")


def is_adapter(weights: Path) -> bool:
    """Returns whether a directory holds a peft adapter, and no full weights."""
    return format_of(weights) is ADAPTER


def load_trained(checkpoint: Path, base: Path, config: ModelConfig) -> Any:
    """Returns the model of a checkpoint on the CPU, in the dtype and with the attention of `config`.

    `checkpoint` is a directory `epoch_E_step_S`, or one that transformers, peft or torch's DCP wrote. `base` is the
    directory of the base model, which completes an adapter or shards. Raises ValueError if there are no weights.
    """
    weights = weights_directory(checkpoint)
    found = format_of(weights)
    assert found
    return found.load(weights, base, config)


def _require_lora(weights: Path) -> None:
    """Raises ValueError for an adapter of another kind than LoRA: some import modules that their config names."""
    config = read_object(weights / ADAPTER_CONFIG)
    kind, megatron = config.get("peft_type"), config.get("megatron_config")
    if kind != "LORA" or megatron is not None:
        raise ValueError(f"{weights} holds a {'Megatron' if megatron else kind} adapter: only plain LoRA is supported")


def load_adapter_weights(model: Any, adapter: Path) -> None:
    """Sets the adapter of the PeftModel `model` to the one that is stored in the directory `adapter`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from vlm_core.models.lora_start import trained_half

    set_peft_model_state_dict(model, trained_half(model, load_file(adapter / "adapter_model.safetensors")))


def weights_to_save(model: Any) -> dict[str, torch.Tensor]:
    """Returns what a checkpoint stores: an adapter, or all weights but those tied to others."""
    from peft import PeftModel

    tensors = model.state_dict()
    if isinstance(model, PeftModel):
        return {name: tensor for name, tensor in tensors.items() if "lora_" in name or ".modules_to_save." in name}
    tied = set(model.all_tied_weights_keys)
    return {name: tensor for name, tensor in tensors.items() if name not in tied}


def save_weights(
    model: Any,
    directory: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    sharded: bool = False,
    consolidated: bool = True,
) -> None:
    """Writes the weights of `model` into `directory`: an adapter, or all weights in safetensors.

    `tensors` are what `weights_to_save` returned; by default they are taken from the model now. `sharded` writes full
    weights as shards instead; `consolidated` then adds a plain transformers directory of that name.
    """
    from peft import PeftModel

    tensors = weights_to_save(model) if tensors is None else tensors
    if isinstance(model, PeftModel):
        ADAPTER.save(model, directory, tensors)
    elif sharded:
        SHARDED.save(model, directory, tensors)
        if consolidated:
            PLAIN.save(model, directory / CONSOLIDATED, tensors)
    else:
        PLAIN.save(model, directory, tensors)


def _fill_from_shards(model: Any, reader: ShardReader) -> None:
    """Sets the weights of `model` to those of shards, however many processes wrote them.

    Raises ValueError if the shards are damaged, or lack a weight of this model.
    """
    stored = reader.metadata.state_dict_metadata
    own = model.state_dict()
    # A training script saves the model itself, or under the name `model`; tied weights are stored once.
    prefix = next((p for p in ("", "model.") if f"{p}{next(iter(own))}" in stored), "")
    wanted = {prefix + name: tensor for name, tensor in own.items() if prefix + name in stored}
    tied = set(model.all_tied_weights_keys)
    missing = [name for name in own if prefix + name not in stored and name not in tied]
    if missing:
        raise ValueError(f"{reader.path} lacks {len(missing)} weights of this model, among them {missing[0]}")
    reader.fill(wanted)
    model.tie_weights()
