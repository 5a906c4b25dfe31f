"""Collates examples into the batch of tensors that a model takes.

Shapes: B examples, T tokens in the longest one, N images of all examples in order, C x H x W from the processor.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vlm_core.data.chat_model import FEATURES, PIXELS, Batch, ChatModel
from vlm_core.data.chat_template import TokenizedConversation
from vlm_core.data.conversation import images_of
from vlm_core.families import Family

IGNORE_INDEX = -100  # torch's cross entropy ignores this label
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # names of the tensor that marks image tokens


def collate(examples: Sequence[dict[str, Any]], chat: ChatModel) -> Batch:
    """Returns a training batch, padded on the right.

    `input_ids`, `attention_mask`, `token_type_ids` and `labels` are int64 (B, T); `labels[b, t]` is `input_ids[b, t]`
    if that token is supervised, else -100, and NOT yet shifted; `token_type_ids` (Qwen2.5-VL: `mm_token_type_ids`) is 1
    on image tokens; `pixel_values` is float32 (N, C, H, W), absent without images (Qwen2.5-VL: (patches of all images,
    C * 2 * 14 * 14), with `image_grid_thw`, int64 (N, 3); a generic model: whatever its processor makes of images).
    """
    tokenized = [chat.tokenize(example["conversation"]) for example in examples]
    return collate_tokens(tokenized, chat) | _images(examples, chat)


def collate_tokens(tokenized: Sequence[TokenizedConversation], chat: ChatModel) -> Batch:
    """Returns the batch of `collate` without the images."""
    batch = _pad([t.input_ids for t in tokenized], chat, side="right")
    length = batch["input_ids"].shape[1]
    targets = [
        [token if is_target else IGNORE_INDEX for token, is_target in zip(t.input_ids, t.supervised, strict=True)]
        for t in tokenized
    ]
    batch["labels"] = torch.tensor([row + [IGNORE_INDEX] * (length - len(row)) for row in targets])
    return batch


def collate_prompts(examples: Sequence[dict[str, Any]], chat: ChatModel) -> Batch:
    """Returns a batch to generate from: as `collate` without labels, up to the answer and padded on the left."""
    prompts = [chat.prompt_ids(example["conversation"]) for example in examples]
    return pad_prompts(prompts, chat) | _images(examples, chat)


def pad_prompts(prompts: Sequence[list[int]], chat: ChatModel) -> Batch:
    """Returns the batch of `collate_prompts` without the images."""
    return _pad(prompts, chat, side="left")


def images_as_shown(images: Sequence[Sequence[Any]], chat: ChatModel) -> Batch:
    """Returns all tensors that a processor makes from the images of each example; {} if there are no images.

    The processor gets the images of an example together, because the tokens and tiles of an image may depend on the
    example's other images. Raises ValueError if it returns anything but tensors.
    """
    shown = [list(row) for row in images if row]
    if not shown:
        return {}
    processor = chat.processor
    text = [processor.image_token * len(row) for row in shown]
    made = processor(text=text, images=shown, return_tensors="pt", padding=True)
    of_tokens = {"input_ids", "attention_mask", chat.family.token_types_key, *processor.tokenizer.model_input_names}
    kept = {key: value for key, value in made.items() if key not in of_tokens and key not in TOKEN_TYPES}
    for key, value in kept.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{type(processor).__name__} returns {key} as a {type(value).__name__}, not a tensor: set "
                "step_scheduler.local_batch_size=1, or write your own dataloader.collate_fn._target_"
            )
    return kept


def shows_images(batch: Batch) -> bool:
    """Returns whether a batch has images: pixels or features."""
    return PIXELS in batch or FEATURES in batch


def require_keys(batch: Batch, family: Family) -> None:
    """Raises ValueError if a batch with images lacks a key that the family needs for a correct result."""
    needed = family.required_keys | {*family.image_inputs}
    missing = (family.required_keys - {PIXELS} if FEATURES in batch else needed) - batch.keys()
    if shows_images(batch) and missing:
        raise ValueError(
            f"a batch for {family.model_type} lacks {', '.join(sorted(missing))}; "
            f"the collate function must return {', '.join(sorted(needed))}"
        )


def _pad(rows: Sequence[list[int]], chat: ChatModel, side: Literal["left", "right"]) -> Batch:
    length = max(map(len, rows))

    def padded(row: list[int], value: int) -> list[int]:
        filling = [value] * (length - len(row))
        return row + filling if side == "right" else filling + row

    input_ids = torch.tensor([padded(row, chat.processor.tokenizer.pad_token_id) for row in rows])
    attention_mask = torch.tensor([padded([1] * len(row), 0) for row in rows])
    return {"input_ids": input_ids, "attention_mask": attention_mask} | chat.token_types(input_ids)


def _images(examples: Sequence[dict[str, Any]], chat: ChatModel) -> Batch:
    return chat.image_inputs([images_of(example["conversation"]) for example in examples])
