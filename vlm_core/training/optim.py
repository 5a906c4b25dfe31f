"""The optimizer and its learning-rate schedule."""

import inspect
import logging

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from vlm_core.config import LRSchedulerConfig, OptimizerConfig

logger = logging.getLogger(__name__)

# LBFGS needs a closure, SparseAdam sparse gradients, and Muon takes matrices only.
UNSUPPORTED = ("LBFGS", "SparseAdam", "Muon")


def optimizer_class(target: str | None) -> type[torch.optim.Optimizer]:
    """Returns the optimizer class `torch.optim.NAME` (None: AdamW); raises ValueError if it is not a supported one."""
    found = getattr(torch.optim, (target or "torch.optim.AdamW").removeprefix("torch.optim."), None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)) or found is torch.optim.Optimizer:
        raise ValueError(f"optimizer._target_={target!r} is not a torch optimizer; use for example torch.optim.AdamW")
    if found.__name__ in UNSUPPORTED:
        raise ValueError(
            f"optimizer._target_={target!r} is not supported (it needs a closure, sparse gradients or matrices only); "
            "use for example torch.optim.AdamW"
        )
    return found


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns the optimizer over the trainable parameters of `model`.

    Warns about each configured setting that the optimizer does not take.
    """
    kind = optimizer_class(config.target)
    settings = config.model_dump(exclude={"target"})
    # A setting counts as taken only if its type matches: Adafactor's eps is a pair, not a float.
    taken = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in settings or isinstance(parameter.default, float) is isinstance(settings[name], float)
    }
    for name in settings.keys() - taken.keys():
        if getattr(config, name) != type(config).model_fields[name].default:
            logger.warning("optimizer.%s has no effect: %s does not take it", name, kind.__name__)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return kind(parameters, **{name: value for name, value in settings.items() if name in taken})


def build_scheduler(optimizer: torch.optim.Optimizer, config: LRSchedulerConfig, total_steps: int) -> LRScheduler:
    """Returns the schedule: linear warm-up, then constant or the configured decay to zero at `total_steps`."""
    style = "constant_with_warmup" if config.lr_decay_style == "constant" else config.lr_decay_style
    return get_scheduler(style, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps)
