"""The loss: cross entropy of the supervised tokens, summed, so that it can be divided by their global number.

A mean per micro-batch would weight short answers more, and change with how a batch is divided.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import IGNORE_INDEX, shows_images
from vlm_core.families import part_of
from vlm_core.models.forward import tokens_at_once
from vlm_core.models.load import unwrapped
from vlm_core.training.fused import FusedLoss


def targets_of(batch: Batch) -> torch.Tensor:
    """Returns (B, T) int64: the token that each position has to predict, -100 if none is supervised."""
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
    """`forward(batch)` is the summed loss of the supervised tokens of a padded or packed batch, a float32 scalar.

    Computes `cross_entropy(model(...).logits.float(), targets, reduction="sum")`, with logits only at positions that
    have a target, and for few of these at a time: the logits of a head of 262k words are most of the memory of a plain
    step. With `fused`, liger's kernel does this; ValueError if it cannot.
    """

    def __init__(self, model: nn.Module, chat: ChatModel, *, fused: bool = False) -> None:
        super().__init__()
        self.model, self.chat = model, chat
        self.fused = FusedLoss(unwrapped(model), chat) if fused else None

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of a batch.

        Without an image, trained parameters of tower and projector get gradients of zero: other ranks wait for them.
        """
        loss = self._loss(batch)
        if not shows_images(batch):
            loss = loss + sum(0.0 * parameter.sum() for parameter in self._trained_on_images())
        return loss

    def _trained_on_images(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.model.named_parameters():
            part = part_of(name.removeprefix("base_model.model."), self.chat.family)
            if parameter.requires_grad and part in ("vision_tower", "projector"):
                yield parameter

    def _loss(self, batch: Batch) -> torch.Tensor:
        model: Any = unwrapped(self.model)
        targets = targets_of(batch)
        chosen = targets != IGNORE_INDEX
        if not chosen.any():
            chosen[0, 0] = True  # Keeps the graph, adds exactly 0.
        states, targets = self.chat.target_states(model, batch, chosen), targets[chosen]
        if self.fused is not None:
            return self.fused(model, states, targets)
        size = tokens_at_once(model) if self.chat.splits_head else len(targets)
        chunks = list(zip(states.split(size), targets.split(size), strict=True))
        if len(chunks) == 1:
            return self._chunk_loss(states, targets)
        # The backward pass computes the logits again, so that only one chunk of them is in memory at a time.
        return torch.stack([checkpoint(self._chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _chunk_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.chat.logits(unwrapped(self.model), states)
        return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
