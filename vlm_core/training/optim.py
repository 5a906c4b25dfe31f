"""The optimizer, its groups of parameters, and its learning-rate schedule."""

import importlib
import inspect
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from vlm_core.config import Config, LRSchedulerConfig, OptimizerConfig
from vlm_core.families import Family, part_of

logger = logging.getLogger(__name__)

# Optimizers with small states: the library of each, and how to install it.
SMALL_STATES: Final = {
    "bitsandbytes.optim": "'medpix-finetune[quantization]'",
    "torchao.optim": "torchao",  # not in an extra: transformers imports it in every process once it is installed
}
# LBFGS needs a closure, SparseAdam sparse gradients, and Muon takes matrices only.
UNSUPPORTED = ("LBFGS", "SparseAdam", "Muon")
PAGED: Final = "Paged"  # bitsandbytes' prefix of optimizers whose states move between GPU and host memory
NUMBERS: Final = ("lr", "betas", "eps", "weight_decay")
SAMPLE: Final = 512  # rows and columns of the matrix that an optimizer is tried on


def optimizer_class(target: str | None) -> type[torch.optim.Optimizer]:
    """Returns the optimizer class that `target` names (None: AdamW); raises ValueError if it is not a supported one."""
    library, _, name = (target or "torch.optim.AdamW").rpartition(".")
    library = library or "torch.optim"
    if library in SMALL_STATES:
        return _with_small_states(library, name, target)
    found = getattr(torch.optim, name, None) if library == "torch.optim" else None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)) or found is torch.optim.Optimizer:
        raise ValueError(
            f"optimizer._target_={target!r} is not a torch optimizer; use for example torch.optim.AdamW, or "
            "bitsandbytes.optim.AdamW8bit"
        )
    if found.__name__ in UNSUPPORTED:
        raise ValueError(
            f"optimizer._target_={target!r} is not supported (it needs a closure, sparse gradients or matrices only); "
            "use for example torch.optim.AdamW"
        )
    return found


def _with_small_states(library: str, name: str, target: str | None) -> type[torch.optim.Optimizer]:
    if find_spec(library.partition(".")[0]) is None:
        raise ValueError(
            f"optimizer._target_={target!r} needs pip install {SMALL_STATES[library]}; install that, or use "
            "torch.optim.AdamW"
        )
    found = getattr(importlib.import_module(library), name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"{library} has no optimizer {name!r}; use for example {library}.AdamW8bit")
    return found


def require_optimizer(config: Config, device: torch.device) -> None:
    """Raises ValueError if the configured optimizer does not exist or cannot train this run."""
    target, kind = config.optimizer.target, optimizer_class(config.optimizer.target)
    if kind.__name__.startswith(PAGED) and device.type == "cpu":
        raise ValueError(
            f"optimizer._target_={target} moves its states between GPU and host memory, so it needs a GPU; on a CPU "
            f"use {(target or '').replace(PAGED, '')}"
        )
    if config.compute.strategy == "fsdp2" and not kind.__module__.startswith("torch."):
        raise ValueError(
            f"compute.strategy=fsdp2: {target} does not take sharded weights; use compute.strategy=ddp, or "
            "torch.optim.AdamW, whose states are sharded"
        )
    _tried(config.optimizer)


def _tried(config: OptimizerConfig) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """Returns a matrix and its optimizer after one step; raises ValueError if the optimizer cannot make one."""
    parameter = nn.Parameter(torch.zeros(SAMPLE, SAMPLE))
    parameter.grad = torch.zeros_like(parameter)
    kind = _unpaged(optimizer_class(config.target))
    try:
        optimizer = kind([parameter], **_settings(kind, config))
        compiles = kind.__module__.startswith("torchao")  # for seconds, and only on the first step
        with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            optimizer.step()
    except Exception as error:  # of any library
        raise ValueError(
            f"optimizer._target_={config.target} cannot train with these settings ({error}); use for example "
            "torch.optim.AdamW"
        ) from error
    return parameter, optimizer


def _unpaged(kind: Any) -> Any:
    """Returns the optimizer with the same states that works on a CPU too."""
    name = kind.__name__
    return getattr(importlib.import_module("bitsandbytes.optim"), name.removeprefix(PAGED)) if PAGED in name else kind


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, family: Family | None = None, loraplus_lr_ratio: float | None = None
) -> torch.optim.Optimizer:
    """Returns the optimizer over the trainable parameters of `model`.

    `family` names the parts of the model for `lr_by_part`. Warns about each configured setting that the optimizer does
    not take.
    """
    kind = optimizer_class(config.target)
    settings = _settings(kind, config)
    for name in NUMBERS:
        if name not in settings and getattr(config, name) != type(config).model_fields[name].default:
            logger.warning("optimizer.%s has no effect: %s does not take it", name, kind.__name__)
    return kind(list(_groups(model, config, family, loraplus_lr_ratio or 1.0)), **settings)


def _settings(kind: Any, config: OptimizerConfig) -> dict[str, Any]:
    """Returns the numbers of `config` that an optimizer takes."""
    parameters = inspect.signature(kind).parameters
    return {
        name: getattr(config, name)
        for name in NUMBERS
        if name in parameters and _is_like(parameters[name].default, getattr(config, name))
    }


def _is_like(default: Any, value: Any) -> bool:
    """Returns whether a setting is meant by the parameter of its name: Adafactor's eps is a pair, not a float."""
    if default is inspect.Parameter.empty:
        return True
    if isinstance(default, tuple | list) and isinstance(value, tuple | list):
        return len(default) == len(value)
    return isinstance(default, int | float) and isinstance(value, int | float)


def _groups(model: nn.Module, config: OptimizerConfig, family: Family | None, ratio: float) -> Iterator[dict[str, Any]]:
    """Yields groups of parameters with one learning rate and weight decay each, the one with `lr` itself first."""
    rates, used = config.lr_by_part.given, set[str]()
    found: dict[tuple[float, float], list[nn.Parameter]] = {(config.lr, config.weight_decay): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name.removeprefix("base_model.model."), family) if family else None
        used |= {part} if part else set()
        lr = rates.get(part or "", config.lr) * (ratio if ".lora_B." in name else 1.0)
        decays = config.decay_norms_and_biases or parameter.ndim > 1
        found.setdefault((lr, config.weight_decay if decays else 0.0), []).append(parameter)
    for part in rates.keys() - used:
        logger.warning("optimizer.lr_by_part.%s has no effect: nothing of this part trains", part)
    held = {group: parameters for group, parameters in found.items() if parameters}
    if len(held) > 1:
        sizes = {group: sum(p.numel() for p in own) for group, own in held.items()}
        lines = [f"lr {lr:g}, weight decay {decay:g}: {size:,} parameters" for (lr, decay), size in sizes.items()]
        logger.info("groups of the optimizer:\n%s", "\n".join(lines))
    for (lr, decay), own in held.items():
        yield {"params": own, "lr": lr, "weight_decay": decay}


@lru_cache
def state_bytes(config: OptimizerConfig) -> float:
    """Returns how many bytes of state the optimizer keeps for each parameter of a large matrix: AdamW 8."""
    parameter, optimizer = _tried(config)
    held = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    return round(sum(map(_bytes, held)) / parameter.numel(), 1)


def _bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])  # torchao's packed states


def build_scheduler(optimizer: torch.optim.Optimizer, config: LRSchedulerConfig, total_steps: int) -> LRScheduler:
    """Returns the schedule: linear warm-up, then constant or the configured decay to zero at `total_steps`."""
    style = "constant_with_warmup" if config.lr_decay_style == "constant" else config.lr_decay_style
    return get_scheduler(style, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps)
