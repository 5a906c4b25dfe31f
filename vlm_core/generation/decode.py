"""Answers to questions about images, generated greedily in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_core.data.collate import collate_prompts
from vlm_core.families import Family


@dataclass(frozen=True)
class Answer:
    """A generated answer, without special tokens and surrounding space."""

    text: str
    tokens: int  # generated, the end of turn included
    truncated: bool  # cut at max_new_tokens


def without_answer(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a conversation up to and without its last assistant turn."""
    return conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation


@torch.no_grad()
def generate_batch(
    model: Any, processor: Any, family: Family, conversations: Sequence[list[dict[str, Any]]], max_new_tokens: int
) -> list[Answer]:
    """Returns the answer to each conversation, all of which end with a user turn."""
    prompts = collate_prompts([{"conversation": conversation} for conversation in conversations], processor, family)
    inputs = {key: value.to(model.device) for key, value in prompts.items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    tokenizer = processor.tokenizer
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(family.end_of_turn)]
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [_answer(row, stops, tokenizer) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def _answer(generated: list[int], stops: list[int], tokenizer: Any) -> Answer:
    end = next((i for i, token in enumerate(generated) if token in stops), None)
    kept = generated if end is None else generated[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Answer(text, tokens=len(kept) + (end is not None), truncated=end is None)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of `lengths` in batches of similar length, longest first: memory shows its peak at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
