"""A loaded model with its chat model: answers conversations and scores given answers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.data.batches import DecodedImages, ImageInputs
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation import Conversation, images_of
from vlm_core.data.packing import Group
from vlm_core.data.token_cache import TokenizedExample
from vlm_core.data.tokenization import grids_of_images
from vlm_core.generation.decode import Answer, answer_and_score, generate_ids, stop_tokens, to_answer
from vlm_core.generation.generic import answer_likelihoods, generate_answers
from vlm_core.generation.likelihood import Likelihood, likelihoods
from vlm_core.generation.prompts import Prompts, prompt_of
from vlm_core.generation.sampling import Decoding, GenerationSettings, Recorded, chooser, prompt_key
from vlm_core.models.load import device_of
from vlm_core.models.merge import merged
from vlm_core.models.model_reference import ModelFiles
from vlm_core.models.structured_attention import use_structured_attention
from vlm_core.models.weights import load_trained


@dataclass(frozen=True)
class Answerer:
    """Answers conversations that end with a user turn."""

    model: Any
    chat: ChatModel

    @classmethod
    def load(
        cls, files: ModelFiles, local_rank: int = 0, *, merge_lora: bool | None = None, structured: bool = True
    ) -> "Answerer":
        """Returns the model of `files` on the rank's device.

        See `vlm_core.models.merge` for `merge_lora`; `structured` allows structured attention.
        """
        model = merged(load_trained(files.weights, files.base, files.config), merge_lora).to(device_of(local_rank))
        if structured and files.chat.packs:
            use_structured_attention(model, model.device)
        return cls(model.eval(), files.chat)

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
            grids = grids_of_images(conversation, self.chat)
            ids = self.chat.prompt_ids(conversation, grids)
            prompts.append(TokenizedExample(ids, [False] * len(ids), indices, grids))
            keys.append(prompt_key(ids, hashes))
        by_index = [image for _, image in images.values()]
        inputs, wanted = DecodedImages(by_index.__getitem__, self.chat), Prompts(prompts, self.chat)
        answers: dict[int, Answer] = {}
        for groups in wanted.batches(batch_size=len(prompts)):
            answers |= self.answer_groups(wanted, groups, inputs, settings, keys)
        return [answers[i] for i in range(len(prompts))]

    def answer_groups(
        self,
        prompts: Prompts,
        groups: Sequence[Group],
        images: ImageInputs,
        settings: GenerationSettings,
        keys: Sequence[str],
    ) -> dict[int, Answer]:
        """Returns `{index of the prompt: answer}` for a batch of `prompts.batches`; `keys` are those of all prompts."""
        members = _members(groups)
        chosen, decoding = self._decoding(settings, [keys[i] for i in members])
        generate = generate_ids if self.chat.packs else generate_answers
        generated = generate(self.model, self.chat, _rows(prompts, groups), images, decoding)
        return self._answers(members, generated, chosen)

    def answer_and_score(
        self,
        examples: Prompts,
        groups: Sequence[Group],
        images: ImageInputs,
        settings: GenerationSettings,
        keys: Mapping[int, str],
    ) -> tuple[dict[int, Answer], dict[int, Likelihood]]:
        """Returns ({index: answer}, {index: likelihood of its supervised tokens}) for a batch of `examples.batches`.

        The examples that are indices of `keys`, which has the keys of their prompts, are answered; all are scored.
        """
        members = _members(groups)
        asked = [i for i in members if i in keys]
        if not asked:
            return {}, self.score_groups(examples, groups, images)
        if not self.chat.packs:  # its own `generate` and `forward` share nothing
            prompts = Prompts([prompt_of(examples.prompts[i]) for i in asked], self.chat)
            (own,) = prompts.batches(len(prompts), keys=None)
            own_keys = [keys[i] for i in asked]
            found = self.answer_groups(prompts, own, images, settings, own_keys)
            return {asked[i]: found[i] for i in found}, self.score_groups(examples, groups, images)
        chosen, decoding = self._decoding(settings, [keys[i] for i in asked])
        rows, numbers = _rows(examples, groups), [number for number, i in enumerate(members) if i in keys]
        generated, scored = answer_and_score(self.model, self.chat, rows, images, decoding, numbers)
        return self._answers(asked, generated, chosen), dict(zip(members, scored, strict=True))

    def _decoding(self, settings: GenerationSettings, keys: Sequence[str]) -> tuple[Recorded, Decoding]:
        """Returns how to decode prompts with `keys`, and what will know the probabilities of their answers."""
        stops = stop_tokens(self.chat)
        chosen = Recorded(chooser(settings, keys), stops, len(keys))
        return chosen, Decoding(stops, settings.max_new_tokens, chosen)

    def _answers(self, numbers: Sequence[int], generated: Sequence[list[int]], chosen: Recorded) -> dict[int, Answer]:
        found = zip(numbers, generated, chosen.logprobs, strict=True)
        return {i: to_answer(ids, self.chat, round(logprob, 4)) for i, ids, logprob in found}

    def score_groups(self, examples: Prompts, groups: Sequence[Group], images: ImageInputs) -> dict[int, Likelihood]:
        """Returns `{index: likelihood of its supervised tokens}` for a batch of `examples.batches`."""
        score = likelihoods if self.chat.packs else answer_likelihoods
        found = score(self.model, self.chat, _rows(examples, groups), images)
        return dict(zip(_members(groups), found, strict=True))


def _rows(prompts: Prompts, groups: Sequence[Group]) -> list[list[TokenizedExample]]:
    return [[prompts.prompts[i] for i in group.members] for group in groups]


def _members(groups: Sequence[Group]) -> list[int]:
    return [i for group in groups for i in group.members]


def _digest(image: Any) -> str:
    return hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).hexdigest()
