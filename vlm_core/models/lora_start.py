"""Adapters whose matrices start from the base weights (PiSSA, OLoRA) or from the training data (EVA).

The former are saved so that they fit the original base model: peft takes their initial product out of the base weights.
The change that training made is therefore the trained product less the initial one. Both together are one LoRA of twice
the rank over the original weights: that is what is saved. The first half of its rows are the trained matrices, with
which a run resumes. `vlm_core.training.data_start` computes the latter.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig

from vlm_core.files import read_json, write_json
from vlm_core.models.model_directory import read_object

_INITIAL = "initial_lora_matrices"


def from_data(config: LoraConfig, resumed: Path | None) -> LoraConfig:
    """Returns the config of an adapter that the training data starts, or of the one in the directory `resumed`.

    EVA divides the ranks by the data: some modules have higher ones, some no matrices at all.
    """
    if resumed is None:
        return replace(config, init_lora_weights="eva", eva_config=EvaConfig())
    stored = read_object(resumed / "adapter_config.json")
    return replace(config, **{key: stored[key] for key in ("target_modules", "rank_pattern", "alpha_pattern")})


def remember_initial_matrices(model: Any) -> None:
    """Keeps copies of the matrices that a new PeftModel starts with, on the CPU."""
    matrices = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    setattr(model, _INITIAL, {name: tensor.detach().to("cpu", copy=True) for name, tensor in matrices.items()})


def over_original_weights(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the matrices to save: `tensors` themselves, or with the initial ones as a second half."""
    initial = getattr(model, _INITIAL, None)
    if initial is None:
        return tensors
    joined = dict(tensors)
    for name, first in initial.items():
        trained = tensors[name].cpu()
        joined[name] = torch.cat([trained, first]) if ".lora_A." in name else torch.cat([trained, -first], dim=1)
    return joined


def describe_joined(model: Any, config_file: Path) -> None:
    """Corrects ranks and scales in the config of an adapter that `over_original_weights` has joined."""
    if getattr(model, _INITIAL, None) is None:
        return
    config = read_json(config_file)
    ranks, alphas, rank, alpha = config["rank_pattern"], config["alpha_pattern"], config["r"], config["lora_alpha"]

    def doubled(r: int, a: float) -> float:
        return 2 * (a * math.sqrt(r) if config["use_rslora"] else a)  # alpha, so that alpha / (2 r) is the scale

    named = {name: (ranks.get(name, rank), alphas.get(name, alpha)) for name in {**ranks, **alphas}}
    config |= {
        "r": 2 * rank,
        "lora_alpha": doubled(rank, alpha),
        "rank_pattern": {name: 2 * r for name, (r, _) in named.items()},
        "alpha_pattern": {name: doubled(r, a) for name, (r, a) in named.items()},
        "use_rslora": False,
        "init_lora_weights": True,
    }
    write_json(config_file, config)


def trained_half(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the trained matrices among those of an adapter file: all, or the first half of joined ones."""
    if getattr(model, _INITIAL, None) is None:
        return tensors

    def half(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if ".lora_A." in name:
            return tensor[: len(tensor) // 2]
        return tensor[:, : tensor.shape[1] // 2] if ".lora_B." in name else tensor

    return {name: half(name, tensor).contiguous() for name, tensor in tensors.items()}
