"""What a token costs in floating-point operations, and which share of a GPU's peak a step reached."""

import torch

from vlm_core.models.freeze import PartCounts

# FLOP/s in dense bfloat16, of the makers' data sheets, by words of torch.cuda.get_device_name.
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


PARTIAL = {"MIG", "Laptop"}  # in the name of what has less than the GPU that it is named after


def flops_per_token(parts: PartCounts) -> float:
    """Returns the operations of a token's forward and backward pass through the layers of the language model.

    Two a weight forward and two for the gradient of its input, which what lies before it needs, frozen or not; two more
    where the weight itself trains. Neither attention scores, nor the head (most positions skip it), nor the vision
    tower, nor what gradient checkpointing computes again are counted.
    """
    trained, frozen = parts["language_model"]
    return 4.0 * (trained + frozen) + 2.0 * trained


def peak_flops(device_name: str) -> float | None:
    """Returns the peak of a GPU by its name; None for one that is not known, and for a slice of one (MIG).

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    words = set(device_name.replace("-", " ").split())
    known = [name for name in PEAK_FLOPS if words.issuperset(name.split())]
    return PEAK_FLOPS[max(known, key=len)] if known and words.isdisjoint(PARTIAL) else None


def peak_of(device: torch.device) -> float | None:
    """Returns the peak of a device, None where it is not known, as of a CPU."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def model_flops_utilisation(flops: float, seconds: float, peak: float | None, processes: int) -> dict[str, float]:
    """Returns `{"model_flops_utilisation": share}` of the peak of all processes' devices; nothing without a `peak`."""
    return {} if peak is None else {"model_flops_utilisation": round(flops / (seconds * peak * processes), 4)}
