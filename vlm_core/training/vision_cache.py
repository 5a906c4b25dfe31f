"""Filling the vision cache: each image that is missing goes through the tower once, on one of the ranks."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_core.cache import locked, touch
from vlm_core.data.batches import DecodedImages
from vlm_core.data.chat_model import Batch, ChatModel, ImageGrid
from vlm_core.data.conversation_dataset import ConversationDataset, image_sizes
from vlm_core.home import medpix_home
from vlm_core.models.feature_store import FeatureStore
from vlm_core.models.forward import on_device
from vlm_core.models.frozen_tower import feature_inputs, tower_fingerprint, vision_features
from vlm_core.models.load import unwrapped
from vlm_core.progress import ProgressBar
from vlm_core.training.distributed import Ranks, barrier

logger = logging.getLogger(__name__)

IMAGES_A_SHARD = 64  # what a killed job loses at most, a rank
IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class FeatureInputs:
    """Shows images by their cached features; see `vlm_core.data.batches.ImageInputs`."""

    store: FeatureStore
    hashes: list[str]  # of every image, by index
    grids: list[ImageGrid]  # of every image, by index; [] if images have none
    chat: ChatModel

    def __call__(self, rows: Sequence[Sequence[int]]) -> Batch:
        shown = list(chain.from_iterable(rows))
        features = self.store.read([self.hashes[index] for index in shown])
        return feature_inputs(features, [self.grids[index] for index in shown if self.grids], self.chat)


@dataclass(frozen=True)
class SameFeatures:
    """Shows the same image in place of every image, by its features."""

    features: torch.Tensor
    size: tuple[int, int]  # of the image, (width, height) in pixels
    chat: ChatModel

    @classmethod
    def of(cls, image: Image.Image, model: Any, chat: ChatModel) -> "SameFeatures":
        """Returns inputs that show `image`; `model` still has its tower."""
        core = unwrapped(model)
        (features,) = vision_features(core, on_device(chat.image_inputs([[image]]), core), chat.family)
        return cls(features.cpu(), image.size, chat)

    def __call__(self, rows: Sequence[Sequence[int]]) -> Batch:
        count = sum(map(len, rows))
        return feature_inputs([self.features] * count, self.chat.image_grids([self.size] * count), self.chat)


def _inputs_of(model: Any, chat: ChatModel, conversations: Path) -> FeatureInputs:
    directory = medpix_home() / "cache" / "vision" / tower_fingerprint(model, chat)
    touch(directory)
    return FeatureInputs(
        FeatureStore(directory), _hashes(conversations), chat.image_grids(image_sizes(conversations)), chat
    )


def cached_features(model: Any, chat: ChatModel, conversations: Path) -> FeatureInputs | None:
    """Returns the features of the images of a conversation cache, None unless all are there for this tower."""
    inputs = _inputs_of(model, chat, conversations)
    return None if inputs.store.missing(inputs.hashes) else inputs


def _hashes(conversations: Path) -> list[str]:
    return list(ConversationDataset(conversations, "train").images["sha256"])


def encode_images(
    model: Any, chat: ChatModel, conversations: Path, ranks: Ranks, device: torch.device
) -> FeatureInputs:
    """Returns the features of all images of a conversation cache, after encoding those that are missing.

    Every rank encodes its share. Raises ValueError if the disk is too small.
    """
    inputs = _inputs_of(model, chat, conversations)
    store, hashes = inputs.store, inputs.hashes
    store.directory.mkdir(parents=True, exist_ok=True)
    # If two jobs start at once, one encodes; the other waits and finds everything.
    with locked(store.directory / ".lock") if ranks.is_main else nullcontext():
        if ranks.is_main:
            store.clean(hashes)
        barrier()
        store.refresh()
        missing = store.missing(hashes)
        barrier()  # Every rank takes its share of the same list, so none may add to the store before all have read it.
        if missing:
            index_of = {digest: index for index, digest in enumerate(hashes)}
            encoder = _Encoder(model, DecodedImages.of(conversations, chat), inputs.grids, device)
            encoder.fill(store, missing, index_of, ranks)
        barrier()
    store.refresh()
    assert not store.missing(hashes)
    logger.info("vision cache: %d images encoded, %d reused: %s",
                len(missing), len(hashes) - len(missing), store.directory)  # fmt: skip
    return inputs


class _Encoder:
    """The tower, on its device while it encodes."""

    def __init__(self, model: Any, images: DecodedImages, grids: list[ImageGrid], device: torch.device) -> None:
        self.model, self.images, self.grids, self.device = model, images, grids, device
        self.family = images.chat.family
        self.tower = unwrapped(model).get_submodule(self.family.vision_tower)
        self.dtype = next(self.tower.parameters()).dtype

    def fill(self, store: FeatureStore, missing: list[str], index_of: dict[str, int], ranks: Ranks) -> None:
        """Encodes this rank's share of `missing`."""
        started = time.monotonic()
        self.tower.to(self.device).eval()
        mine = missing[ranks.rank :: ranks.world_size]
        with ProgressBar(len(mine), "encode images", "image", enabled=ranks.is_main) as progress:
            for start in range(0, len(mine), IMAGES_A_SHARD):
                shard = mine[start : start + IMAGES_A_SHARD]
                indices = [index_of[digest] for digest in shard]
                parts = [indices[i : i + IMAGES_AT_ONCE] for i in range(0, len(indices), IMAGES_AT_ONCE)]
                features: list[torch.Tensor] = []
                for part in parts:
                    features += self._encode(part)
                    if part[0] == index_of[mine[0]]:  # before any is written
                        room = self._bytes(features[0], part[0], [index_of[digest] for digest in missing])
                        store.require_space(len(missing), room)
                    progress.update(len(part))
                store.add(shard, features)
        self.tower.to("cpu")
        logger.info("vision cache: encoded in %.1f s", time.monotonic() - started)

    def _bytes(self, features: torch.Tensor, index: int, indices: list[int]) -> int:
        """Returns what the features of `indices` take, going by those of the image `index`."""
        sizes = {i: math.prod(self.grids[i]) if self.grids else 1 for i in (index, *indices)}
        return features.numel() * features.element_size() * sum(sizes[i] for i in indices) // sizes[index]

    def _encode(self, indices: list[int]) -> list[torch.Tensor]:
        images = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for key, value in self.images([indices]).items()
        }
        return [features.cpu() for features in vision_features(self.model, images, self.family)]
