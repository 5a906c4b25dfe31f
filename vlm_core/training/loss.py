"""The loss: cross entropy of the supervised tokens, summed, so that it can be divided by their global number.

A mean per micro-batch would weight short answers more, and change with how a batch is divided.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlm_core.data.collate import IGNORE_INDEX, Batch
from vlm_core.families import Family, part_of
from vlm_core.models.forward import head_logits, hidden_states, target_logits, tokens_at_once
from vlm_core.models.load import unwrapped
from vlm_core.training.fused import FusedLoss


def targets_of(batch: Batch) -> torch.Tensor:
    """Returns (B, T) int64: the token that each position has to predict, -100 where none is supervised."""
    if "targets" in batch:
        return batch["targets"]
    return functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)


def supervised_tokens(batch: Batch) -> int:
    """Returns the number of training targets in a batch: a first token has no position that predicts it."""
    return int((targets_of(batch) != IGNORE_INDEX).sum())


def supervised_examples(batch: Batch) -> int:
    """Returns the number of examples in a batch that have a target."""
    rows, columns = (targets_of(batch) != IGNORE_INDEX).nonzero(as_tuple=True)
    places = [rows] + [batch[name][rows, columns] for name in ("group_ids", "branch_ids") if name in batch]
    return len(torch.unique(torch.stack(places), dim=1)[0])


class TokenLoss(nn.Module):
    """`forward(batch)` is the summed loss of the supervised tokens of a plain or packed batch, a float32 scalar.

    Computes `cross_entropy(model(...).logits.float(), targets, reduction="sum")` with logits only where there is a
    target, and of few of them at a time: a head of 262k words is most of the memory of a plain step. `fused` leaves
    this to liger's kernel; it raises ValueError where that cannot be.
    """

    def __init__(self, model: nn.Module, family: Family, *, fused: bool = False) -> None:
        super().__init__()
        self.model, self.family = model, family
        self.fused = FusedLoss(unwrapped(model), family) if fused else None

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of a batch.

        Without an image, what trains of tower and projector gets a gradient of zeros: other ranks wait for it.
        """
        loss = self._loss(batch)
        if "pixel_values" not in batch:
            loss = loss + sum(0.0 * parameter.sum() for parameter in self._trained_on_images())
        return loss

    def _trained_on_images(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.model.named_parameters():
            part = part_of(name.removeprefix("base_model.model."), self.family)
            if parameter.requires_grad and part in ("vision_tower", "projector"):
                yield parameter

    def _loss(self, batch: Batch) -> torch.Tensor:
        model: Any = unwrapped(self.model)
        targets = targets_of(batch)
        chosen = targets != IGNORE_INDEX
        if not chosen.any():
            chosen[0, 0] = True  # Keeps the graph, adds exactly 0.
        if self.family.plain_only:
            return _summed_loss(target_logits(model, batch, chosen), targets[chosen])
        hidden, targets = hidden_states(model, batch, self.family)[chosen], targets[chosen]
        if self.fused is not None:
            return self.fused(model, hidden, targets)
        size = tokens_at_once(model)
        chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(chunks) == 1:
            return self._chunk_loss(hidden, targets)
        # Logits are computed again in the backward pass: those of one chunk at a time are kept.
        return torch.stack([checkpoint(self._chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _chunk_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head_logits(unwrapped(self.model), hidden, self.family)
        return _summed_loss(logits, targets)


def _summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
