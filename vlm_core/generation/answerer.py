"""A trained model with all that it takes to answer: processor, family, device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_core.config import ModelConfig
from vlm_core.data.batches import ImageInputs, shown_images
from vlm_core.data.labels import tokenize_prompt
from vlm_core.data.packing import Group
from vlm_core.data.tokens import TokenizedExample
from vlm_core.families import Family, family_of
from vlm_core.generation.decode import Answer, generate_greedily, stop_tokens, to_answer
from vlm_core.generation.prompts import Prompts
from vlm_core.models.fetch import fetch_model
from vlm_core.models.load import device_of, is_adapter, load_processor, load_trained, weights_directory


@dataclass(frozen=True)
class Answerer:
    """Answers conversations that end with a user turn."""

    model: Any
    processor: Any
    family: Family

    @classmethod
    def load(cls, checkpoint: Path | None, config: ModelConfig, local_rank: int = 0) -> "Answerer":
        """Returns the model of `checkpoint` on the rank's device; without one, the base model that `config` names.

        Full weights are loaded alone; an adapter goes over the base model.
        """
        weights = weights_directory(checkpoint) if checkpoint else fetch_model(config)
        base = fetch_model(config) if is_adapter(weights) else weights
        model = load_trained(weights, base, config).to(device_of(local_rank)).eval()
        return cls(model, load_processor(base), family_of(base))

    @property
    def image_token(self) -> int:
        """The id that stands for an image in a prompt."""
        return self.processor.tokenizer.image_token_id

    def answer(self, conversations: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[Answer]:
        """Returns the answers, generated as one batch; questions about equal images share the image's prefix."""
        images: dict[bytes, tuple[int, Any]] = {}
        prompts = []
        for conversation in conversations:
            shown = [part["image"] for turn in conversation for part in turn["content"] if part["type"] == "image"]
            indices = [images.setdefault(_digest(image), (len(images), image))[0] for image in shown]
            ids = tokenize_prompt(conversation, self.processor, self.family)
            prompts.append(TokenizedExample(ids, [False] * len(ids), indices))
        by_index = [image for _, image in images.values()]

        def pixels(indices: Sequence[int]) -> torch.Tensor:
            chosen = [by_index[index] for index in indices]
            return self.processor.image_processor(chosen, return_tensors="pt")["pixel_values"]

        wanted = Prompts(prompts, self.image_token)
        answers: dict[int, Answer] = {}
        for groups in wanted.batches(batch_size=len(prompts)):
            answers |= self.answer_groups(wanted, groups, pixels, max_new_tokens)
        return [answers[i] for i in range(len(prompts))]

    def answer_groups(
        self, prompts: Prompts, groups: Sequence[Group], image_inputs: ImageInputs, max_new_tokens: int
    ) -> dict[int, Answer]:
        """Returns `{index of the prompt: answer}` for a batch of `prompts.batches`."""
        rows = [[prompts.prompts[i] for i in group.members] for group in groups]
        shown = shown_images([rows])
        tokenizer = self.processor.tokenizer
        generated = generate_greedily(
            self.model,
            self.family,
            rows,
            image_inputs(shown) if shown else None,
            self.image_token,
            stop_tokens(tokenizer, self.family),
            max_new_tokens,
        )
        members = [i for group in groups for i in group.members]
        return {i: to_answer(ids, tokenizer, self.family) for i, ids in zip(members, generated, strict=True)}


def _digest(image: Any) -> bytes:
    return hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).digest()
