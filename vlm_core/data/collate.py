"""From examples to the batch of tensors that a model takes.

Shapes: B examples, T tokens of the longest one, N images of all examples in their order, C x H x W the processor's.
"""

from collections.abc import Sequence
from typing import Any

import torch

from vlm_core.data.conversation import images_of
from vlm_core.data.tokenization import (
    TokenizedConversation,
    image_token_id,
    tokenize_conversation,
    tokenize_prompt,
)
from vlm_core.families import Family

IGNORE_INDEX = -100  # of torch's cross entropy
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # what tells image tokens from others, as models name it

Batch = dict[str, torch.Tensor]


def collate(examples: Sequence[dict[str, Any]], processor: Any, family: Family) -> Batch:
    """Returns a training batch, padded on the right.

    `input_ids`, `attention_mask`, `token_type_ids` and `labels` are int64 (B, T); `labels[b, t]` is `input_ids[b, t]`
    where that token is supervised and -100 elsewhere, NOT yet shifted; `token_type_ids` (Qwen2.5-VL:
    `mm_token_type_ids`) is 1 on image tokens; `pixel_values` is float32 (N, C, H, W), absent without images
    (Qwen2.5-VL: (patches of all images, C * 2 * 14 * 14), beside `image_grid_thw`, int64 (N, 3)).
    Of a family without a row: all that the processor makes of the images, by its own keys.
    """
    tokenized = [tokenize_conversation(example["conversation"], processor, family) for example in examples]
    return collate_tokens(tokenized, processor, family) | _images(examples, processor, family)


def collate_tokens(tokenized: Sequence[TokenizedConversation], processor: Any, family: Family) -> Batch:
    """Returns the batch of `collate` without pixels."""
    batch = _pad([t.input_ids for t in tokenized], processor, family, side="right")
    length = batch["input_ids"].shape[1]
    targets = [
        [token if is_target else IGNORE_INDEX for token, is_target in zip(t.input_ids, t.supervised, strict=True)]
        for t in tokenized
    ]
    batch["labels"] = torch.tensor([row + [IGNORE_INDEX] * (length - len(row)) for row in targets])
    return batch


def collate_prompts(examples: Sequence[dict[str, Any]], processor: Any, family: Family) -> Batch:
    """Returns a batch to generate from: as `collate` without labels, up to the answer and padded on the left."""
    prompts = [tokenize_prompt(example["conversation"], processor, family) for example in examples]
    return pad_prompts(prompts, processor, family) | _images(examples, processor, family)


def pad_prompts(prompts: Sequence[list[int]], processor: Any, family: Family) -> Batch:
    """Returns the batch of `collate_prompts` without images."""
    return _pad(prompts, processor, family, side="left")


def images_as_shown(images: Sequence[Sequence[Any]], processor: Any, family: Family) -> Batch:
    """Returns what the processor makes of the images of each example, by its own keys; {} without images.

    How many tokens or parts an image is may depend on what is shown beside it, so that the processor has each example's
    images together. Raises ValueError where it makes something that is no tensor.
    """
    shown = [list(row) for row in images if row]
    if not shown:
        return {}
    text = [processor.image_token * len(row) for row in shown]
    made = processor(text=text, images=shown, return_tensors="pt", padding=True)
    of_tokens = {"input_ids", "attention_mask", family.token_types_key, *processor.tokenizer.model_input_names}
    kept = {key: value for key, value in made.items() if key not in of_tokens and key not in TOKEN_TYPES}
    for key, value in kept.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{type(processor).__name__} makes no tensor of {key}, but a {type(value).__name__}: set "
                "step_scheduler.local_batch_size=1, or name a dataloader.collate_fn._target_ of your own"
            )
    return kept


def require_keys(batch: Batch, family: Family) -> None:
    """Raises ValueError where a batch with images lacks a key without which the family computes something else."""
    missing = family.required_keys - batch.keys()
    if "pixel_values" in batch and missing:
        raise ValueError(
            f"a batch for {family.model_type} lacks {', '.join(sorted(missing))}; "
            f"the collate function must return {', '.join(sorted(family.required_keys))}"
        )


def _pad(rows: Sequence[list[int]], processor: Any, family: Family, side: str) -> Batch:
    length = max(map(len, rows))

    def padded(row: list[int], value: int) -> list[int]:
        filling = [value] * (length - len(row))
        return row + filling if side == "right" else filling + row

    input_ids = torch.tensor([padded(row, processor.tokenizer.pad_token_id) for row in rows])
    batch = {"input_ids": input_ids, "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows])}
    if not family.plain_only:
        batch[family.token_types_key] = (input_ids == image_token_id(processor, family)).long()
    elif family.token_types_key:
        batch[family.token_types_key] = torch.tensor(processor.create_mm_token_type_ids(input_ids.tolist()))
    return batch


def _images(examples: Sequence[dict[str, Any]], processor: Any, family: Family) -> Batch:
    by_example = [images_of(example["conversation"]) for example in examples]
    if family.plain_only:
        return images_as_shown(by_example, processor, family)
    images = [image for row in by_example for image in row]
    if not images:
        return {}
    made = processor.image_processor(images, return_tensors="pt")
    return {key: made[key] for key in ("pixel_values", "image_grid_thw") if key in made}
