"""LoRA matrices added to the weights: a model that only answers needs no separate products."""

import logging
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

logger = logging.getLogger(__name__)


def merged(model: Any, wanted: bool | None) -> Any:
    """Returns `model` with its LoRA matrices added to its weights, or as it is.

    In float32, answers and likelihoods then differ by rounding only. In a lower precision the sum loses a part of the
    matrices, so None merges float32 weights only. Quantised weights are never merged: the sum would be quantised again.
    """
    if not isinstance(model, PeftModel) or wanted is False:
        return model
    layers = (module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer))
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    if any(map(_is_quantised, weights)):
        if wanted:
            logger.warning("evaluation.merge_lora=true has no effect: the base model is quantised")
        return model
    if not wanted and any(weight.dtype != torch.float32 for weight in weights):
        return model
    return model.merge_and_unload()


def _is_quantised(weight: torch.nn.Parameter) -> bool:
    """Returns whether a weight is of a library's own class, or holds codes. 4-bit codes may be stored as floats."""
    is_plain = type(weight) is torch.nn.Parameter and type(weight.data) is torch.Tensor
    return not (is_plain and weight.is_floating_point())
