"""Counts the floating-point operations per token, and the model FLOPs utilisation (MFU) of a step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlm_core.families import Family
from vlm_core.models.freeze import Counts, PartCounts
from vlm_core.models.load import unwrapped
from vlm_core.models.lora import expert_parameters

# Dense bfloat16 FLOP/s from the vendors' data sheets. The keys are words of torch.cuda.get_device_name.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L4": 121e12,
}


# The names that models' configs have for the number of a layer's experts, and of those that a token uses.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
USED_EXPERTS = ("num_experts_per_tok", "top_k_experts")
NONE = Counts(0, 0)

# A device with one of these words in its name is slower than the GPU that the name mentions.
PARTIAL = {"MIG", "Laptop"}


def idle_share(model: Any) -> float:
    """Returns the share of a layer's experts that a token does not use; 0 for a model without experts."""
    text = model.config.get_text_config()
    experts = _number(text, EXPERTS)
    return 1 - used_experts(text) / experts if experts else 0.0


def used_experts(text: Any) -> int:
    """Returns how many experts of a layer a token uses, 0 without experts. `text` is the language model's config."""
    experts = _number(text, EXPERTS)
    return experts and (_number(text, USED_EXPERTS) or experts)


def _number(text: Any, names: Sequence[str]) -> int:
    return next((value for name in names if (value := getattr(text, name, None))), 0)


def idle_parameters(model: nn.Module, family: Family) -> Counts:
    """Returns how many trained and frozen parameters of the experts compute nothing for a token."""
    core = unwrapped(model)
    # peft wraps the module that holds the experts, once for each adapted parameter.
    owners = {name.rpartition(".")[0].partition(".base_layer")[0] + "." for name in expert_parameters(core, family)}
    sizes = {True: 0, False: 0}
    for name, parameter in core.named_parameters():
        if name.startswith(tuple(owners)):
            sizes[parameter.requires_grad] += parameter.numel()
    share = idle_share(core)
    return Counts(round(share * sizes[True]), round(share * sizes[False]))


def flops_per_token(parts: PartCounts, idle: Counts = NONE) -> float:
    """Returns the FLOPs per token of the forward and backward pass through the language model's layers.

    The `idle` parameters of the language model belong to experts that a token does not use.

    Each weight costs two operations in the forward pass and two for the gradient of its input, which earlier layers
    need even if the weight is frozen. A trained weight costs two more. The count leaves out attention scores, the head
    (most positions skip it), the vision tower, and the recomputation of gradient checkpointing.
    """
    trained, frozen = (count - unused for count, unused in zip(parts["language_model"], idle, strict=True))
    return 4.0 * (trained + frozen) + 2.0 * trained


def peak_flops(device_name: str) -> float | None:
    """Returns the peak FLOP/s of a GPU by its name; None for an unknown GPU, and for a MIG slice.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    words = set(device_name.replace("-", " ").split())
    known = [name for name in PEAK_FLOPS if words.issuperset(name.split())]
    return PEAK_FLOPS[max(known, key=len)] if known and words.isdisjoint(PARTIAL) else None


def peak_of(device: torch.device) -> float | None:
    """Returns the peak FLOP/s of a device, None if it is unknown (always for a CPU)."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def model_flops_utilisation(flops: float, seconds: float, peak: float | None, processes: int) -> dict[str, float]:
    """Returns `{"model_flops_utilisation": MFU}`: achieved FLOP/s over the peak of all devices; {} without a `peak`."""
    return {} if peak is None else {"model_flops_utilisation": round(flops / (seconds * peak * processes), 4)}
