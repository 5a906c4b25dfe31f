"""Answers and likelihoods of models that cannot share prefixes: their own `generate` and `forward`."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_core.data.batches import ImageInputs
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import IGNORE_INDEX, collate_tokens, pad_prompts
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.generation.likelihood import Likelihood
from vlm_core.generation.sampling import Choose, Decoding
from vlm_core.models.forward import on_device, targets_of
from vlm_core.models.load import unwrapped


class _Chosen(LogitsProcessor):
    """Leaves one token per row: the one that `choose` chooses by its logits."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor(self.choose(scores, range(len(scores))), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


@torch.no_grad()
def generate_answers(
    model: Any,
    chat: ChatModel,
    rows: Sequence[Sequence[TokenizedExample]],
    images: ImageInputs,
    decoding: Decoding,
) -> list[list[int]]:
    """Returns the generated ids of each prompt, row by row; see `vlm_core.generation.decode.generate_ids`."""
    prompts, core = list(chain.from_iterable(rows)), unwrapped(model)
    batch = pad_prompts([prompt.input_ids for prompt in prompts], chat)
    output = core.generate(
        **on_device(batch | images([prompt.images for prompt in prompts]), core),
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(decoding.stops),
        pad_token_id=chat.processor.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([_Chosen(decoding.choose)]),
    )
    generated = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = [next((i for i, token in enumerate(ids, start=1) if token in decoding.stops), len(ids)) for ids in generated]
    return [ids[:end] for ids, end in zip(generated, ends, strict=True)]


@torch.no_grad()
def answer_likelihoods(
    model: Any, chat: ChatModel, rows: Sequence[Sequence[TokenizedExample]], images: ImageInputs
) -> list[Likelihood]:
    """Returns the likelihood of the supervised tokens of each example, row by row."""
    examples, core = list(chain.from_iterable(rows)), unwrapped(model)
    batch = on_device(collate_tokens(examples, chat) | images([example.images for example in examples]), core)
    targets = targets_of(batch)
    chosen = targets != IGNORE_INDEX
    logits = chat.logits(core, chat.target_states(core, batch, chosen)).float()
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    losses[chosen] = functional.cross_entropy(logits, targets[chosen], reduction="none").double()
    return [Likelihood(-loss, int(n)) for loss, n in zip(losses.sum(1).tolist(), chosen.sum(1).tolist(), strict=True)]
