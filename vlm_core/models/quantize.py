"""The quantised base model under LoRA, by bitsandbytes: which weights are quantised, and how many bytes they take.

Only the linear modules of the language model are quantised. Experts are parameters of three dimensions, which
bitsandbytes leaves as they are.
"""

from __future__ import annotations

import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlm_core.families import Family, part_of

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# nf4: 4 bits, and for 64 weights a scale of 8 bits, of which 256 share a scale of 32 bits. int8: 8 bits, and for each
# output a scale of 32 bits, which is less than 0.4 % of a row of 1024.
BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1 + 4 / 1024}

# Bytes that a module takes beside its weights while it computes: about what fits the peaks that benchmarks/quantized.py
# measured on a CPU, at one size of model. Not measured on a GPU.
COPIED_BYTES_PER_WEIGHT = {"nf4": 2 + 4, "int8": 4 * 4}


def require_bitsandbytes(quantization: str) -> None:
    """Raises ValueError if the library for `model.quantization` is not installed."""
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantization={quantization} needs pip install 'medpix-finetune[quantization]'; install that, or "
            "set model.quantization=none"
        )


def quantization_of(directory: Path, quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Returns transformers' settings to quantise the model in `directory` while it loads, to compute in `dtype`."""
    from transformers import BitsAndBytesConfig

    from vlm_core.models.derived_family import family_of  # not above: it imports the module that calls this one

    require_bitsandbytes(quantization)
    kept = _kept_modules(family_of(directory))
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # FSDP2 exchanges weights in the dtype of the computation
        llm_int8_skip_modules=kept,
    )


def keep_exact_on_cpu(model: nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit weights for a CPU at the first evaluation.

    That rounds their scales to bfloat16 for good, and fails for most sizes.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(name: str, module: nn.Module, family: Family) -> bool:
    """Returns whether the linear module `name` is quantised if `model.quantization` is set."""
    by_pattern = any(fnmatch.fnmatchcase(name, pattern) for pattern in family.not_adaptable)
    return isinstance(module, nn.Linear) and part_of(name, family) == "language_model" and not by_pattern


def number_of(parameter: torch.Tensor) -> int:
    """Returns how many weights a parameter holds; 4-bit weights are packed into fewer numbers."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _kept_modules(family: Family) -> list[str]:
    """Returns patterns of the modules that are not quantised: other parts, and those whose weights a model reads."""
    others = [name for part, names in family.parts.items() if part != "language_model" for name in names]
    return [*others, *(fnmatch.translate(pattern) for pattern in family.not_adaptable)]


def quantized_weights(model: nn.Module, family: Family) -> list[int]:
    """Returns how many weights each module of a model has that is not quantised yet, but would be."""
    found: Any = (module.weight for name, module in model.named_modules() if is_quantized(name, module, family))
    return [weight.numel() for weight in found]
