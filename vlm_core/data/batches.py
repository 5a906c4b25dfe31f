"""Makes micro-batches from the token cache: padded examples, or packed rows that share the prefix of an image.

Both kinds split an optimizer step into the same number of micro-batches on every rank, and build their tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vlm_core.config import Config
from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import IGNORE_INDEX, collate_tokens
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.images import decode_image
from vlm_core.data.packing import Row, group_examples, pack, pack_rows, share_rows, split_groups
from vlm_core.data.token_cache import TokenDataset

# Returns the tensors of images for the model. The argument lists image indices by example: `[[0], [], [3, 1]]`.
ImageInputs = Callable[[Sequence[Sequence[int]]], Batch]


@dataclass(frozen=True)
class DecodedImages:
    """Image inputs from the processor; each image is decoded when a batch needs it."""

    image: Callable[[int], Any]  # image index -> Pillow image
    chat: ChatModel

    @classmethod
    def of(cls, conversations: Path, chat: ChatModel) -> "DecodedImages":
        """Returns the image inputs for a conversation cache."""
        images = ConversationDataset(conversations, "train").images
        return cls(_Decoder(images), chat)

    def __call__(self, rows: Sequence[Sequence[int]]) -> Batch:
        return self.chat.image_inputs([[self.image(index) for index in row] for row in rows])

    def replaced(self, image: Image.Image) -> "DecodedImages":
        """Returns inputs that show `image` in place of every image."""
        return replace(self, image=lambda index: image)


@dataclass(frozen=True)
class _Decoder:
    images: Any  # the images.arrow table of a conversation cache

    def __call__(self, index: int) -> Any:
        return decode_image(self.images[index]["encoded"])


class PlainMicroBatch(NamedTuple):
    """Indices of examples. If `counted` is false, they add no loss: they only keep an idle rank in step."""

    examples: list[int]
    counted: bool = True


class PackedMicroBatch(NamedTuple):
    """Rows of groups of examples; see `PlainMicroBatch` for `counted`."""

    rows: list[Row]
    counted: bool = True


@dataclass(frozen=True)
class Batches:
    """What padded and packed batches have in common."""

    dataset: TokenDataset
    image_inputs: ImageInputs
    chat: ChatModel

    def __len__(self) -> int:
        return len(self.dataset)

    def _with_images(self, batch: Batch, rows: Sequence[Sequence[int]], *, counted: bool) -> Batch:
        if not counted:
            batch["labels" if "labels" in batch else "targets"].fill_(IGNORE_INDEX)
        return batch | self.image_inputs(rows)


def plain_shares(step: Sequence[int], local_batch_size: int, rank: int, world_size: int) -> list[PlainMicroBatch]:
    """Returns one rank's share of a step, in micro-batches of up to `local_batch_size` examples."""
    at_once = local_batch_size * world_size
    chunks = [list(step[start : start + at_once]) for start in range(0, len(step), at_once)]
    shares = [chunk[rank::world_size] for chunk in chunks]
    return [
        PlainMicroBatch(share or chunk[:1], counted=bool(share)) for share, chunk in zip(shares, chunks, strict=True)
    ]


@dataclass(frozen=True)
class PlainBatches(Batches):
    """Each row is a padded example; a micro-batch has `local_batch_size` rows."""

    local_batch_size: int

    groups = None  # The order of examples is free.

    def micro_batches(self, step: Sequence[int], rank: int, world_size: int) -> list[PlainMicroBatch]:
        """Returns one rank's share of a step."""
        return plain_shares(step, self.local_batch_size, rank, world_size)

    def batch(self, micro_batch: PlainMicroBatch) -> Batch:
        """Returns the tensors of `collate`."""
        examples = [self.dataset[i] for i in micro_batch.examples]
        batch = collate_tokens(examples, self.chat)
        return self._with_images(batch, [example.images for example in examples], counted=micro_batch.counted)


@dataclass(frozen=True)
class CollatedBatches:
    """Batches of the user's collate function. It gets conversations with decoded images, and the processor.

    The function returns `labels` that are already shifted: `labels[b, t]` is the token that position t must predict.
    It is -100 if the position is not supervised; an optional `loss_mask` is 0 there.
    """

    dataset: ConversationDataset
    function: Callable[[list[dict[str, Any]], Any], Mapping[str, torch.Tensor]]
    processor: Any
    local_batch_size: int

    groups = None

    def __len__(self) -> int:
        return len(self.dataset)

    def micro_batches(self, step: Sequence[int], rank: int, world_size: int) -> list[PlainMicroBatch]:
        """Returns one rank's share of a step."""
        return plain_shares(step, self.local_batch_size, rank, world_size)

    def batch(self, micro_batch: PlainMicroBatch) -> Batch:
        """Returns the function's tensors, with its labels as `targets`.

        Raises ValueError if `input_ids` or `labels` are missing or their shapes differ.
        """
        made = dict(self.function([self.dataset[i] for i in micro_batch.examples], self.processor))
        missing = {"input_ids", "labels"} - made.keys()
        if missing:
            raise ValueError(f"dataloader.collate_fn returned no {' and no '.join(sorted(missing))}; it has {[*made]}")
        targets, mask = made.pop("labels"), made.pop("loss_mask", None)
        if targets.shape != made["input_ids"].shape:
            raise ValueError(
                f"dataloader.collate_fn returned labels of shape {tuple(targets.shape)} and input_ids of shape "
                f"{tuple(made['input_ids'].shape)}; label t is what position t must predict, -100 for the last one"
            )
        if mask is not None:
            targets = targets.masked_fill(mask == 0, IGNORE_INDEX)
        return made | {"targets": targets if micro_batch.counted else torch.full_like(targets, IGNORE_INDEX)}


@dataclass(frozen=True)
class PackedBatches(Batches):
    """Packed batches: questions about one image share its prefix; a micro-batch has at most `max_tokens` tokens."""

    max_tokens: int

    @property
    def groups(self) -> np.ndarray:
        """The group of each example; members of a group can share a prefix and are read one after the other."""
        return self.dataset.groups

    def micro_batches(self, step: Sequence[int], rank: int, world_size: int) -> list[PackedMicroBatch]:
        """Returns one rank's share of a step."""
        groups = split_groups(group_examples(step, self.dataset), self.dataset, self.max_tokens, at_least=world_size)
        return [
            PackedMicroBatch(*share)
            for share in share_rows(pack_rows(groups, world_size), self.max_tokens, rank, world_size)
        ]

    def batch(self, micro_batch: PackedMicroBatch) -> Batch:
        """Returns the tensors of `pack`."""
        rows = [[[self.dataset[i] for i in group.members] for group in row] for row in micro_batch.rows]
        return self._with_images(pack(rows, self.chat), [shown_images(rows)], counted=micro_batch.counted)


AnyBatches = PlainBatches | PackedBatches | CollatedBatches


class TokenCounts(NamedTuple):
    """The size of a batch: all tokens computed, the padding among them, and the tokens that unpacked examples have."""

    computed: int
    padding: int
    plain: int


def count_tokens(batch: Batch) -> TokenCounts:
    """Returns the token counts of a padded or packed batch; a batch without targets counts as padding."""
    computed = batch["input_ids"].numel()
    if not (batch["labels" if "labels" in batch else "targets"] != IGNORE_INDEX).any():
        return TokenCounts(computed, computed, 0)
    if "group_ids" not in batch:
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else computed
        return TokenCounts(computed, computed - tokens, tokens)
    place = torch.stack([batch["group_ids"], batch["branch_ids"]])
    following = torch.nn.functional.pad(place[:, :, 1:], (0, 1), value=-1)
    ends = (place != following).any(dim=0) & (batch["branch_ids"] > 0)
    plain = int((batch["position_ids"][ends] + 1).sum())
    return TokenCounts(computed, int((batch["group_ids"] == 0).sum()), plain)


def shown_images(rows: Sequence[Sequence[Sequence[Any]]]) -> list[int]:
    """Returns the image indices of packed rows in the order of their tokens; a shared prefix has its images once."""
    return [image for row in rows for group in row for image in group[0].images]


def build_batches(
    config: Config, dataset: TokenDataset, image_inputs: ImageInputs, chat: ChatModel
) -> PlainBatches | PackedBatches:
    """Returns packed batches of a split, or padded ones if packing is disabled."""
    if config.packing.enabled:
        return PackedBatches(dataset, image_inputs, chat, config.packing.max_tokens)
    return PlainBatches(dataset, image_inputs, chat, config.step_scheduler.local_batch_size)
