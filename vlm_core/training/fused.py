"""Computes head and loss in one Liger kernel (arXiv:2410.10989, liger-kernel 0.8) without storing the logits."""

from typing import Any

import torch
from torch import nn

from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.models.forward import softcap


class FusedLoss(nn.Module):
    """`forward(model, hidden, targets)` is the summed loss of (N, hidden size) states and (N,) targets, in float32.

    Raises ValueError unless the head is a plain linear layer.
    """

    def __init__(self, model: Any, chat: ChatModel) -> None:
        super().__init__()
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # an optional extra

        if not chat.returns_hidden_states or type(model.lm_head) is not nn.Linear:
            raise ValueError(
                "loss_fn._target_: Liger's fused loss needs lm_head to be a plain nn.Linear. Here LoRA adapts it, or "
                "the model type is not in vlm_core/families.py. Remove loss_fn._target_, or exclude lm_head from LoRA "
                "with peft.exclude_modules"
            )
        self.kernel = LigerFusedLinearCrossEntropyLoss(
            ignore_index=IGNORE_INDEX, reduction="sum", softcap=softcap(model, chat.family)
        )

    def forward(self, model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss. The model is an argument because FSDP2 may gather its head for this forward pass only."""
        return self.kernel(model.lm_head.weight, hidden, targets)
