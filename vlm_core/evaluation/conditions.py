"""The conditions under which questions are asked: with the right images, and with controls in their place.

A model that scores the same with another case's image, a black one, or none has not learnt to look.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vlm_core.data.chat_model import ChatModel, ImageGrid
from vlm_core.data.conversation import Conversation, without_images
from vlm_core.data.conversation_dataset import image_indices
from vlm_core.data.token_cache import TokenizedExample, last_answer_of
from vlm_core.evaluation.result_names import BLANK, DATASET, QUESTION_ONLY, SHUFFLED
from vlm_core.generation.prompts import prompt_of
from vlm_core.generation.sampling import prompt_key

BLANK_SIZE = 64  # pixels a side, before the processor's own resizing
Substitutes = dict[tuple[int, ...], list[int]]  # the images of a question -> as many others


@dataclass(frozen=True)
class Asked:
    """The questions of a split under one condition, one entry per example; equal keys are equal questions."""

    condition: str
    prompts: list[TokenizedExample]
    answered: list[TokenizedExample]  # prompt and reference; only the reference is supervised
    prompt_keys: list[str]
    answered_keys: list[str]

    @classmethod
    def of(cls, condition: str, examples: Sequence[TokenizedExample], hashes: Sequence[str]) -> "Asked":
        """Returns the questions of `examples`; `hashes` has the sha256 of each image that they may show."""
        prompts, answered = [prompt_of(e) for e in examples], [last_answer_of(e) for e in examples]

        def key(example: TokenizedExample) -> str:
            shown = [BLANK if condition == BLANK else hashes[image] for image in example.images]
            return prompt_key(example.input_ids, shown)

        return cls(condition, prompts, answered, [key(p) for p in prompts], [key(a) for a in answered])


def ask_under(
    condition: str,
    tokens: Sequence[TokenizedExample],
    rows: Sequence[dict[str, Any]],
    shuffled: Substitutes | None,
    hashes: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    chat: ChatModel,
) -> Asked:
    """Returns the questions of `rows`, whose token ids are `tokens`, under `condition`.

    `hashes` and `sizes` are those of every image.
    """
    pairs = list(zip(tokens, rows, strict=True))
    if condition == SHUFFLED:
        assert shuffled is not None
        substitutes = [shuffled[tuple(example.images)] if example.images else [] for example in tokens]
        shown = [[sizes[image] for image in images] for images in substitutes]
    elif condition == BLANK:
        substitutes = [[0 for _ in example.images] for example in tokens]
        shown = [[(BLANK_SIZE, BLANK_SIZE) for _ in example.images] for example in tokens]
    elif condition == QUESTION_ONLY:
        return Asked.of(condition, [_without_images(row, chat) for row in rows], hashes)
    else:
        return Asked.of(condition, list(tokens), hashes)
    examples = [
        _with_images(example, row, images, chat.image_grids(pixels), chat)
        for (example, row), images, pixels in zip(pairs, substitutes, shown, strict=True)
    ]
    return Asked.of(condition, examples, hashes)


def ask_reworded(
    condition: str,
    tokens: Sequence[TokenizedExample],
    conversations: Sequence[Conversation],
    hashes: Sequence[str],
    chat: ChatModel,
) -> Asked:
    """Returns the questions of `tokens` in the words of `conversations`, with their own images."""
    examples = []
    for example, conversation in zip(tokens, conversations, strict=True):
        tokenized = chat.tokenize(conversation, example.grids)
        examples.append(TokenizedExample(tokenized.input_ids, tokenized.supervised, example.images, example.grids))
    return Asked.of(condition, examples, hashes)


def _with_images(
    example: TokenizedExample,
    row: dict[str, Any],
    images: list[int],
    grids: list[ImageGrid],
    chat: ChatModel,
) -> TokenizedExample:
    """Returns the example with other images, and with as many image tokens as those need."""
    if grids == example.grids:
        return replace(example, images=images)
    tokenized = chat.tokenize(row["conversation"], grids)
    return TokenizedExample(tokenized.input_ids, tokenized.supervised, images, grids)


def _without_images(row: dict[str, Any], chat: ChatModel) -> TokenizedExample:
    tokenized = chat.tokenize(without_images(row["conversation"]))
    return TokenizedExample(tokenized.input_ids, tokenized.supervised, [])


def black_image() -> Image.Image:
    """Returns the image of the condition BLANK."""
    return Image.new("RGB", (BLANK_SIZE, BLANK_SIZE))


def shuffle_between_cases(examples: Sequence[dict[str, Any]], seed: int) -> Substitutes | None:
    """Returns `{the images of a question: images of another case}` for all questions of `examples` that show images.

    All images of a question, such as the slices of a volume, are replaced by those of one other question, in their
    order: if it shows more or fewer, evenly spaced ones, some of them several times. Questions about the same images
    get the same substitutes. They come from the same dataset if it has another case: an image of another kind would
    be too easy to tell apart. Returns None if a question has none, because all others are about the same case.
    """
    cases: dict[int, set[str]] = {}
    datasets: dict[int, set[str | None]] = {}
    for example in examples:
        for index in image_indices(example):
            cases.setdefault(index, set()).add(example["case_id"])
            datasets.setdefault(index, set()).add(example.get(DATASET))
    shown = sorted({tuple(image_indices(example)) for example in examples} - {()})
    cases_of = {images: set().union(*(cases[image] for image in images)) for images in shown}
    generator = random.Random(seed)
    others = {images: [other for other in shown if not cases_of[images] & cases_of[other]] for images in shown}
    if not all(others.values()):
        return None
    for images, found in others.items():
        own = set().union(*(datasets[image] for image in images))
        others[images] = [other for other in found if any(own & datasets[image] for image in other)] or found
    return {images: _substitutes(len(images), generator.choice(_best(others[images], len(images)))) for images in shown}


def _best(others: Sequence[tuple[int, ...]], count: int) -> Sequence[tuple[int, ...]]:
    """Returns those of `others` that have `count` images; all if none has."""
    return [other for other in others if len(other) == count] or others


def _substitutes(count: int, others: Sequence[int]) -> list[int]:
    """Returns `count` images from `others`, spaced evenly and in their order."""
    return [others[(2 * number + 1) * len(others) // (2 * count)] for number in range(count)]
