"""The two implementations of `vlm_core.data.chat_model.ChatModel`; `load_chat` chooses one of them."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers

from vlm_core.data.chat_model import Batch, ChatModel, ImageGrid
from vlm_core.data.chat_template import TokenizedConversation
from vlm_core.data.collate import images_as_shown
from vlm_core.data.conversation import Conversation, Part, Turn
from vlm_core.data.grids import GRID_RULES, mrope_positions
from vlm_core.data.tokenization import grids_of_images, image_text, tokenize_listed
from vlm_core.data.tokenization_generic import tokenize_rendered
from vlm_core.families import Family
from vlm_core.models.derived_family import family_of
from vlm_core.models.forward import head_logits, hidden_states, target_logits
from vlm_core.models.load import load_processor


def load_chat(directory: Path, images: Mapping[str, Any] | None = None) -> ChatModel:
    """Returns the chat model of the checkpoint in `directory`, with the settings `images` of its image processor.

    Raises ValueError for a model that cannot chat, and for settings that do not fit it.
    """
    processor, family = load_processor(directory, images), family_of(directory, images)
    if images and "size" in images and not family.derived and not family.image_grid:
        raise ValueError(
            f"model.image_processor.size: a {family.model_type} model takes images of the size that its tower was "
            "trained with; remove it"
        )
    return (GenericChat if family.derived else FastChat)(processor, family)


class _Chat(ABC):
    """What both kinds of chat models do alike."""

    def __init__(self, processor: Any, family: Family) -> None:
        self.processor, self.family = processor, family

    @cached_property
    def image_token(self) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids(self.family.image_token)

    def tokenize(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> TokenizedConversation:
        return self._ids(conversation, grids, for_generation=False)

    def prompt_ids(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> list[int]:
        return self._ids(conversation, grids, for_generation=True).input_ids

    def image_tokens(self, size: tuple[int, int]) -> int:
        shown: Conversation = [Turn(role="user", content=[Part(type="image")])]
        ids = torch.tensor([self.prompt_ids(shown, self.image_grids([size]))])
        marked = [*self.token_types(ids).values()] or [ids == self.image_token]
        return int(marked[0].sum())

    def fingerprint(self) -> str:
        tokenizer, end = self.processor.tokenizer.backend_tokenizer.to_str(), self.family.end_of_turn
        identity = [tokenizer, self.processor.chat_template, *self._image_identity(), end, *self._own_identity()]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @abstractmethod
    def image_grids(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGrid]: ...

    @abstractmethod
    def token_types(self, input_ids: torch.Tensor) -> Batch: ...

    @abstractmethod
    def _ids(
        self, conversation: Conversation, grids: Sequence[ImageGrid] | None, *, for_generation: bool
    ) -> TokenizedConversation: ...

    @abstractmethod
    def _image_identity(self) -> list[Any]:
        """Returns what the template writes for an image, and what the processor writes in its place (None: by size)."""

    @abstractmethod
    def _own_identity(self) -> list[Any]:
        """Returns what else the number of an image's tokens depends on."""


class FastChat(_Chat):
    """A listed family: its row has all facts that are needed to pack examples and to cache features."""

    packs = True
    returns_hidden_states = True

    @property
    def caches_features(self) -> bool:
        return bool(self.family.vision_features)

    def image_grids(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGrid]:
        if not self.family.image_grid:
            return []
        rule = GRID_RULES[self.family.image_grid]
        return [rule.grid(size, self.processor.image_processor) for size in sizes]

    def image_inputs(self, images: Sequence[Sequence[Any]]) -> Batch:
        shown = list(chain.from_iterable(images))
        made = self.processor.image_processor(shown, return_tensors="pt") if shown else {}
        return {key: made[key] for key in self.family.image_inputs if shown}

    def token_types(self, input_ids: torch.Tensor) -> Batch:
        return {self.family.token_types_key: (input_ids == self.image_token).long()}

    def row_positions(self, batch: Batch, grids: Sequence[ImageGrid]) -> Batch:
        return {"grid_position_ids": mrope_positions(batch, grids)} if self.family.mrope and grids else {}

    def target_states(self, model: Any, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
        return hidden_states(model, batch, self.family)[chosen]

    def logits(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        return head_logits(model, states, self.family)

    def _ids(
        self, conversation: Conversation, grids: Sequence[ImageGrid] | None, *, for_generation: bool
    ) -> TokenizedConversation:
        if grids is None:  # Only a grid rule needs the images' sizes.
            grids = grids_of_images(conversation, self) if self.family.image_grid else []
        return tokenize_listed(conversation, self, grids, for_generation=for_generation)

    def _image_identity(self) -> list[Any]:
        text = None if self.family.image_grid else image_text(self.processor, self.family)
        return [getattr(self.processor, self.family.image_placeholder), text]

    def _own_identity(self) -> list[Any]:
        rule = GRID_RULES.get(self.family.image_grid)
        return [] if rule is None else rule.settings(self.processor.image_processor)


class GenericChat(_Chat):
    """Any other model: its processor makes tokens and tensors, and its own `forward` and `generate` compute."""

    packs = False
    caches_features = False
    returns_hidden_states = False

    def image_grids(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGrid]:
        return [(height, width) for width, height in sizes]

    def image_inputs(self, images: Sequence[Sequence[Any]]) -> Batch:
        return images_as_shown(images, self)

    def token_types(self, input_ids: torch.Tensor) -> Batch:
        key = self.family.token_types_key
        return {key: torch.tensor(self.processor.create_mm_token_type_ids(input_ids.tolist()))} if key else {}

    def row_positions(self, batch: Batch, grids: Sequence[ImageGrid]) -> Batch:
        return {}

    def target_states(self, model: Any, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
        return target_logits(model, batch, chosen)

    def logits(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        return states

    def _ids(
        self, conversation: Conversation, grids: Sequence[ImageGrid] | None, *, for_generation: bool
    ) -> TokenizedConversation:
        grids = grids_of_images(conversation, self) if grids is None else grids
        return tokenize_rendered(conversation, self, grids, for_generation=for_generation)

    def _image_identity(self) -> list[Any]:
        return [self.processor.image_token, None]

    def _own_identity(self) -> list[Any]:
        return [self.processor.to_json_string(), transformers.__version__]  # The processor's own code makes the ids.
