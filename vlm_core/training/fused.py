"""Head and loss in one kernel of liger's (arXiv:2410.10989, liger-kernel 0.8), which keeps no logits."""

from typing import Any

import torch
from torch import nn

from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.models.forward import softcap


class FusedLoss(nn.Module):
    """`forward(model, hidden, targets)` is the summed loss of (N, hidden size) states and (N,) targets, in float32.

    Raises ValueError unless the head is a linear layer of its own.
    """

    def __init__(self, model: Any, chat: ChatModel) -> None:
        super().__init__()
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # an extra

        if not chat.splits_head or type(model.lm_head) is not nn.Linear:
            raise ValueError(
                "loss_fn._target_: liger's fused loss needs lm_head to be a plain nn.Linear, and here it is not (LoRA, "
                "or a model type without a row); leave the key out, or the head out of peft.match_all_linear"
            )
        self.kernel = LigerFusedLinearCrossEntropyLoss(
            ignore_index=IGNORE_INDEX, reduction="sum", softcap=softcap(model, chat.family)
        )

    def forward(self, model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss; the model is given anew, since its head may be gathered for this forward pass alone."""
        return self.kernel(model.lm_head.weight, hidden, targets)
