"""The likelihood of given answers: teacher forcing over rows in which an image's questions share its prefix."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from vlm_core.data.batches import ImageInputs, shown_images
from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.data.packing import pack
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.generation.chunks import few_rows_at_once
from vlm_core.models.forward import hidden_states, on_device, tokens_at_once
from vlm_core.models.last_layer import only_at
from vlm_core.models.load import unwrapped


class Likelihood(NamedTuple):
    """The natural logarithm of an answer's probability, end of turn included, and its number of tokens."""

    logprob: float
    tokens: int


@torch.no_grad()
def likelihoods(
    model: Any, chat: ChatModel, rows: Sequence[Sequence[TokenizedExample]], images: ImageInputs
) -> list[Likelihood]:
    """Returns the likelihood of the supervised tokens of each example, row by row.

    The examples of a row share a prefix with the same images; see `vlm_core.generation.decode.generate_ids`.
    """
    core, packed = unwrapped(model), [[row] for row in rows]
    batch = on_device(pack(packed, chat) | images([shown_images(packed)]), core)
    hidden = []
    for part in few_rows_at_once(batch, chat.family):
        chosen = part["targets"] != IGNORE_INDEX
        with only_at(chosen, core):
            hidden.append(hidden_states(core, part, chat.family)[chosen])
    return branch_likelihoods(core, chat, torch.cat(hidden), batch)


def branch_likelihoods(model: Any, chat: ChatModel, hidden: torch.Tensor, batch: Batch) -> list[Likelihood]:
    """Returns the likelihood of each branch of a packed batch with one group a row, row by row.

    `hidden` (N, hidden size) are the hidden states at the N positions that have a target, row by row.
    """
    targets = batch["targets"]
    at, column = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    logprobs = _logprobs(model, chat, hidden, targets[at, column])
    branches = batch["branch_ids"].amax(dim=1)  # a row numbers its branches from 1
    example = (branches.cumsum(0) - branches)[at] + batch["branch_ids"][at, column] - 1
    total = int(branches.sum())
    sums = torch.zeros(total, dtype=torch.float64, device=hidden.device).index_add(0, example, logprobs.double())
    counts = torch.bincount(example, minlength=total)
    return [Likelihood(*pair) for pair in zip(sums.tolist(), counts.tolist(), strict=True)]


def _logprobs(model: Any, chat: ChatModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    size = tokens_at_once(model)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    losses = [functional.cross_entropy(chat.logits(model, h).float(), t, reduction="none") for h, t in chunks]
    return -torch.cat(losses)
