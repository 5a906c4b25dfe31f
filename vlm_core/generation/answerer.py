"""A trained model with all that it takes to answer: processor, family, device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_core.data.batches import ExampleInputs, ImageInputs, shown_images
from vlm_core.data.conversation import Conversation, images_of
from vlm_core.data.packing import Group
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.data.tokenization import image_grids, image_token_id, shared_image_token, tokenize_prompt
from vlm_core.families import Family
from vlm_core.generation.decode import Answer, generate_ids, stop_tokens, to_answer
from vlm_core.generation.generic import answer_likelihoods, generate_answers
from vlm_core.generation.likelihood import Likelihood, likelihoods
from vlm_core.generation.prompts import Prompts
from vlm_core.generation.sampling import GenerationSettings, chooser, prompt_key
from vlm_core.models.derived_family import family_of
from vlm_core.models.load import device_of, load_processor
from vlm_core.models.model_reference import ModelFiles
from vlm_core.models.weights import load_trained


@dataclass(frozen=True)
class Answerer:
    """Answers conversations that end with a user turn."""

    model: Any
    processor: Any
    family: Family

    @classmethod
    def load(cls, files: ModelFiles, local_rank: int = 0) -> "Answerer":
        """Returns the model of `files` on the rank's device."""
        model = load_trained(files.weights, files.base, files.config).to(device_of(local_rank)).eval()
        return cls(model, load_processor(files.base), family_of(files.base))

    @property
    def image_token(self) -> int | None:
        """The id that stands for an image in a prompt that others may share; None where none are shared."""
        return shared_image_token(self.processor, self.family)

    def answer(self, conversations: Sequence[Conversation], settings: GenerationSettings) -> list[Answer]:
        """Returns the answers, generated as one batch; questions about equal images share the image's prefix."""
        images: dict[str, tuple[int, Any]] = {}
        prompts, keys = [], []
        for conversation in conversations:
            shown = images_of(conversation)
            hashes = [_digest(image) for image in shown]
            indices = [
                images.setdefault(digest, (len(images), image))[0] for digest, image in zip(hashes, shown, strict=True)
            ]
            grids = image_grids(conversation, self.processor, self.family)
            ids = tokenize_prompt(conversation, self.processor, self.family, grids)
            prompts.append(TokenizedExample(ids, [False] * len(ids), indices, grids))
            keys.append(prompt_key(ids, hashes))
        by_index = [image for _, image in images.values()]

        def pixels(indices: Sequence[int]) -> torch.Tensor:
            chosen = [by_index[index] for index in indices]
            return self.processor.image_processor(chosen, return_tensors="pt")["pixel_values"]

        inputs = ExampleInputs(by_index.__getitem__, self.processor, self.family) if self.family.plain_only else pixels
        wanted = Prompts(prompts, self.image_token)
        answers: dict[int, Answer] = {}
        for groups in wanted.batches(batch_size=len(prompts)):
            answers |= self.answer_groups(wanted, groups, inputs, settings, keys)
        return [answers[i] for i in range(len(prompts))]

    def answer_groups(
        self,
        prompts: Prompts,
        groups: Sequence[Group],
        image_inputs: ImageInputs,
        settings: GenerationSettings,
        keys: Sequence[str],
    ) -> dict[int, Answer]:
        """Returns `{index of the prompt: answer}` for a batch of `prompts.batches`; `keys` are those of all prompts."""
        members = _members(groups)
        tokenizer = self.processor.tokenizer
        stops = stop_tokens(tokenizer, self.family)
        choose = chooser(settings, [keys[i] for i in members])
        longest = settings.max_new_tokens
        if self.family.plain_only:
            asked = [prompts.prompts[i] for i in members]
            generated = generate_answers(
                self.model, self.processor, self.family, asked, image_inputs, stops, longest, choose
            )
        else:
            rows, images = self._batch(prompts, groups, image_inputs)
            image_token = image_token_id(self.processor, self.family)
            generated = generate_ids(self.model, self.family, rows, images, image_token, stops, longest, choose)
        return {i: to_answer(ids, tokenizer, self.family) for i, ids in zip(members, generated, strict=True)}

    def score_groups(
        self, examples: Prompts, groups: Sequence[Group], image_inputs: ImageInputs
    ) -> dict[int, Likelihood]:
        """Returns `{index: likelihood of its supervised tokens}` for a batch of `examples.batches`."""
        members = _members(groups)
        if self.family.plain_only:
            answered = [examples.prompts[i] for i in members]
            found = answer_likelihoods(self.model, self.processor, self.family, answered, image_inputs)
        else:
            rows, images = self._batch(examples, groups, image_inputs)
            found = likelihoods(self.model, self.family, rows, images, image_token_id(self.processor, self.family))
        return dict(zip(members, found, strict=True))

    def _batch(
        self, prompts: Prompts, groups: Sequence[Group], image_inputs: ImageInputs
    ) -> tuple[list[list[TokenizedExample]], torch.Tensor | None]:
        rows = [[prompts.prompts[i] for i in group.members] for group in groups]
        shown = shown_images([rows])
        return rows, image_inputs(shown) if shown else None


def _members(groups: Sequence[Group]) -> list[int]:
    return [i for group in groups for i in group.members]


def _digest(image: Any) -> str:
    return hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).hexdigest()
