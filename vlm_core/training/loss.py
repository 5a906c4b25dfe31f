"""The loss: cross entropy of the supervised tokens, summed, so that it can be divided by their global number.

A mean per micro-batch would weight short answers more, and change with how a batch is divided.
"""

import torch
from torch import nn
from torch.nn import functional

from vlm_core.data.collate import IGNORE_INDEX


def supervised_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Returns the number of training targets in a batch: a first token has no position that predicts it."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def token_loss_sum(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the summed loss of the supervised tokens of `batch`, a float32 scalar.

    Computes `cross_entropy(model(...).logits[:, :-1].float(), labels[:, 1:], reduction="sum")`. Logits are computed
    only at positions that predict a supervised token in at least one row: a head of 262k words is most of the memory.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    if not len(positions):
        positions = torch.zeros(1, dtype=torch.long, device=targets.device)  # Keeps the graph, adds exactly 0.
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets[:, positions].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
