"""AdamW and its learning-rate schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from vlm_core.config import LRSchedulerConfig, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters of `model`."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, config: LRSchedulerConfig, total_steps: int) -> LRScheduler:
    """Returns the schedule: linear warm-up, then the configured decay to zero at `total_steps` (or none)."""
    style = "constant_with_warmup" if config.lr_decay_style == "constant" else config.lr_decay_style
    return get_scheduler(style, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=total_steps)
