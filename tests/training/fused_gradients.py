"""`python -m tests.training.fused_gradients`: compares liger's loss with the plain path's, one line per family.

It runs in its own process: without a GPU, triton must be told before its import to run kernels in Python.
"""

import json
from typing import Any

import torch
from liger_kernel.ops import cross_entropy
from triton import language

from tests.conftest import small_config, tiny_directory
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.families import FAMILIES, Family
from vlm_core.models.chat import load_chat
from vlm_core.models.load import load_model
from vlm_core.training.loss import TokenLoss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Scalar(float):
    """A number as a compiled kernel sees it: the interpreter passes a float, which has no dtype."""

    def to(self, dtype: Any) -> float:
        return float(self)


def hyperbolic_tangent(x: Any) -> Any:
    """Replaces CUDA's function, which the interpreter does not have."""
    return 1.0 - 2.0 / (language.exp(2.0 * x) + 1.0)


def loss_and_gradients(model: Any, chat: ChatModel, batch: Any, *, fused: bool) -> tuple[float, dict[str, Any]]:
    """Returns the loss of a batch, and the gradient of each parameter."""
    objective = TokenLoss(model, chat, fused=fused)
    if objective.fused is not None and objective.fused.kernel.softcap and DEVICE == "cpu":
        objective.fused.kernel.softcap = Scalar(objective.fused.kernel.softcap)
        cross_entropy.tanh = hyperbolic_tangent
    model.zero_grad()
    loss = objective(batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def difference(family: Family) -> dict[str, Any]:
    """Returns `{losses, parameters, gradients}`: both losses, and the largest relative difference of a gradient."""
    base = tiny_directory(family.model_type)
    chat = load_chat(base)
    dataset = ConversationDataset(prepare_conversations(small_config())[0], "train")
    batch = collate([dataset[i] for i in range(2)], chat)
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    model = load_model(base, small_config().model).to(DEVICE)
    plain, expected = loss_and_gradients(model, chat, batch, fused=False)
    ours, found = loss_and_gradients(model, chat, batch, fused=True)
    assert found.keys() == expected.keys()
    overall = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    # Skip tensors whose gradient is only rounding noise, such as a bias of the keys, which softmax cancels.
    relevant = [name for name in expected if expected[name].norm() > 1e-6 * overall]
    largest = max(((found[n] - expected[n]).norm() / expected[n].norm()).item() for n in relevant)
    return {"losses": [plain, ours], "parameters": len(found), "gradients": largest}


if __name__ == "__main__":
    for row in FAMILIES.values():
        print(json.dumps({row.model_type: difference(row)}))
