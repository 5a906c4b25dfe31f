"""The interface of a chat model: a processor and a model family, combined into one object.

`vlm_core.models.chat` has the two implementations. `FastChat` is for the families of the table: it packs examples,
shares prefixes and caches features. `GenericChat` uses only the model's own processor and forward. No other module
checks which of the two it has.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vlm_core.data.chat_template import TokenizedConversation
from vlm_core.data.conversation import Conversation
from vlm_core.families import Family

Batch = dict[str, torch.Tensor]

PIXELS = "pixel_values"
FEATURES = "image_features"  # batch key of precomputed features, used instead of pixels

# Rows and columns of an image. The unit (tokens or pixels) is private to the chat model that made the grid. Images with
# equal grids have equal tokens.
ImageGrid = tuple[int, int]


class ChatModel(Protocol):
    """Everything that depends on how a model family presents conversations and images to its model."""

    processor: Any
    family: Family

    @property
    def packs(self) -> bool:
        """Whether examples can be packed into rows and share the prefix of an image."""
        ...

    @property
    def caches_features(self) -> bool:
        """Whether cached features of a frozen vision tower can replace the images."""
        ...

    @property
    def returns_hidden_states(self) -> bool:
        """Whether `target_states` are hidden states, to which `model.lm_head` is applied later."""
        ...

    @property
    def image_token(self) -> int:
        """The id of the token whose embedding is replaced by image features."""
        ...

    def tokenize(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> TokenizedConversation:
        """Returns the ids of a conversation; every assistant turn is supervised, its end token included.

        `grids` are the grids of its images; if they are omitted, the conversation must hold Pillow images.
        Raises ValueError if the chat template does not allow exact labels.
        """
        ...

    def prompt_ids(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> list[int]:
        """Returns the prompt ids of a conversation that ends with a user turn: everything before the answer."""
        ...

    def image_grids(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGrid]:
        """Returns the grids of images of (width, height) pixels; [] if an image's size does not matter."""
        ...

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Returns how many tokens an image of (width, height) pixels has."""
        ...

    def image_inputs(self, images: Sequence[Sequence[Any]]) -> Batch:
        """Returns the tensors that the model takes for the Pillow images of each example; {} without images."""
        ...

    def token_types(self, input_ids: torch.Tensor) -> Batch:
        """Returns the tensor that marks the image tokens among `input_ids` (B, T); {} if the model takes none."""
        ...

    def row_positions(self, batch: Batch, grids: Sequence[ImageGrid]) -> Batch:
        """Returns the M-RoPE positions of packed rows; {} if the model uses the batch's `position_ids`.

        `grids` are the grids of the batch's images, row by row in the order of their tokens.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a hash of everything that token ids depend on."""
        ...

    def target_states(self, model: Any, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
        """Returns the input of `logits` for the N positions where `chosen` (B, T) is true: (N, ...)."""
        ...

    def logits(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        """Returns the logits (N, vocabulary) of `target_states`."""
        ...
