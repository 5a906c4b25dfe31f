"""Counts the floating-point operations per token, and the model FLOPs utilisation (MFU) of a step."""

import torch

from vlm_core.models.freeze import PartCounts

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


# A device with one of these words in its name is slower than the GPU that the name mentions.
PARTIAL = {"MIG", "Laptop"}


def flops_per_token(parts: PartCounts) -> float:
    """Returns the FLOPs per token of the forward and backward pass through the language model's layers.

    Each weight costs two operations in the forward pass and two for the gradient of its input, which earlier layers
    need even if the weight is frozen. A trained weight costs two more. The count leaves out attention scores, the head
    (most positions skip it), the vision tower, and the recomputation of gradient checkpointing.
    """
    trained, frozen = parts["language_model"]
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
