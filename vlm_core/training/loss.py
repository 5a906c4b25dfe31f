"""The loss: cross entropy summed over the supervised tokens. The training loop divides it by their global number.

A mean per micro-batch would give short answers more weight, and would depend on the micro-batch size.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import IGNORE_INDEX, shows_images
from vlm_core.families import part_of
from vlm_core.models.forward import targets_of, tokens_at_once
from vlm_core.models.last_layer import only_at
from vlm_core.models.load import unwrapped
from vlm_core.training.fused import FusedLoss


def supervised_tokens(batch: Batch) -> int:
    """Returns the number of training targets in a batch. A first token is never one: no position predicts it."""
    return int((targets_of(batch) != IGNORE_INDEX).sum())


def supervised_examples(batch: Batch) -> int:
    """Returns the number of examples in a batch that have at least one target."""
    rows, columns = (targets_of(batch) != IGNORE_INDEX).nonzero(as_tuple=True)
    places = [rows] + [batch[name][rows, columns] for name in ("group_ids", "branch_ids") if name in batch]
    return len(torch.unique(torch.stack(places), dim=1)[0])


class TokenLoss(nn.Module):
    """`forward(batch)` is the summed loss of the supervised tokens of a padded or packed batch, a float32 scalar.

    Equals `cross_entropy(model(...).logits.float(), targets, reduction="sum")`, but computes logits only at positions
    that have a target, and in chunks: with a vocabulary of 262k, all logits at once would take most of a step's memory.
    With `skip_unused`, the last decoder layer of a listed family does the same. With `fused`, Liger's kernel computes
    the loss. Raises ValueError if the kernel does not support the model.
    """

    def __init__(self, model: nn.Module, chat: ChatModel, *, fused: bool = False, skip_unused: bool = False) -> None:
        super().__init__()
        self.skip_unused = skip_unused and chat.returns_hidden_states
        self.model, self.chat = model, chat
        self.fused = FusedLoss(unwrapped(model), chat) if fused else None

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of a batch.

        A batch without images gives zero gradients to the trained tower and projector, because the other ranks wait
        for these gradients.
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
            chosen[0, 0] = True  # keeps the autograd graph; an ignored target adds exactly 0 to the loss
        with only_at(chosen, model) if self.skip_unused else nullcontext():
            states, targets = self.chat.target_states(model, batch, chosen), targets[chosen]
        if self.fused is not None:
            return self.fused(model, states, targets)
        size = tokens_at_once(model) if self.chat.returns_hidden_states else len(targets)
        chunks = list(zip(states.split(size), targets.split(size), strict=True))
        if len(chunks) == 1:
            return self._chunk_loss(states, targets)
        # The backward pass recomputes the logits, so that only one chunk is in memory at a time.
        return torch.stack([checkpoint(self._chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _chunk_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.chat.logits(unwrapped(self.model), states)
        return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
