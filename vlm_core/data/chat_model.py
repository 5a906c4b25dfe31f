"""What the code asks of a chat model: a processor and a model family, joined into one object that is chosen once.

`vlm_core.models.chat` has the two implementations. `FastChat`, for the families of the table, packs examples, shares
prefixes and caches features. `GenericChat` leaves everything to the model's own processor and forward. No other module
asks which of the two it has.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vlm_core.data.chat_template import TokenizedConversation
from vlm_core.data.conversation import Conversation
from vlm_core.families import Family

Batch = dict[str, torch.Tensor]

PIXELS = "pixel_values"
FEATURES = "image_features"  # key of a batch for finished features, which take the place of its pixels

# The rows and columns of an image, in the unit that its chat model counts in (tokens or pixels). Only that chat model
# reads them. Images with equal grids have equal tokens.
ImageGrid = tuple[int, int]


class ChatModel(Protocol):
    """Answers all questions about how a model family shows conversations and images to its model."""

    processor: Any
    family: Family

    @property
    def packs(self) -> bool:
        """Whether examples can share rows, and the examples of an image its prefix."""
        ...

    @property
    def caches_features(self) -> bool:
        """Whether the features of a frozen vision tower can take the place of the images."""
        ...

    @property
    def splits_head(self) -> bool:
        """Whether `target_states` are hidden states, to which `model.lm_head` is applied later."""
        ...

    @property
    def image_token(self) -> int:
        """The id of the token whose embedding is replaced by image features."""
        ...

    def tokenize(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> TokenizedConversation:
        """Returns the ids of a whole conversation; every assistant turn and its end are supervised.

        `grids` are those of its images; without them, the conversation holds Pillow images.
        Raises ValueError if the chat template does not allow exact labels.
        """
        ...

    def prompt_ids(self, conversation: Conversation, grids: Sequence[ImageGrid] | None = None) -> list[int]:
        """Returns the ids of a conversation that ends with a user turn, up to where the answer begins."""
        ...

    def image_grids(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGrid]:
        """Returns the grids of images of (width, height) pixels; [] if the size of an image changes nothing."""
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
        """Returns the positions of packed rows, if the model's are not the batch's own `position_ids`.

        `grids` are those of the batch's images, row by row in the order of their tokens.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a hash of everything that token ids depend on."""
        ...

    def target_states(self, model: Any, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
        """Returns what `logits` needs at the N positions at which `chosen` (B, T) is true: (N, ...)."""
        ...

    def logits(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        """Returns the logits (N, vocabulary) of `target_states`."""
        ...
