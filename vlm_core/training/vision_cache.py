"""Fills the vision cache: the ranks share the missing images, and each image goes through the tower once."""

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
from vlm_core.data.loader import iterate_steps
from vlm_core.home import medpix_home
from vlm_core.models.feature_store import FeatureStore
from vlm_core.models.forward import on_device
from vlm_core.models.frozen_tower import feature_inputs, tower_fingerprint, vision_features
from vlm_core.models.load import unwrapped
from vlm_core.progress import ProgressBar
from vlm_core.training.distributed import Ranks, barrier

logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 64  # a killed job loses at most this many per rank; a multiple of both numbers below
IMAGES_AT_ONCE, ON_CPU = 8, 1  # on a CPU, eight images at once took 1.1 times as long (448 pixels)


@dataclass(frozen=True)
class FeatureInputs:
    """Gives the model cached features instead of pixels; implements `vlm_core.data.batches.ImageInputs`."""

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
    """Gives the model the features of one fixed image in place of every image; implements `ImageInputs`."""

    features: torch.Tensor
    size: tuple[int, int]  # of the image, (width, height) in pixels
    chat: ChatModel

    @classmethod
    def of(cls, image: Image.Image, model: Any, chat: ChatModel) -> "SameFeatures":
        """Returns inputs with the features of `image`. The vision tower must still be attached to `model`."""
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
    """Returns the cached features of all images of a conversation cache; None if this tower lacks any of them."""
    inputs = _inputs_of(model, chat, conversations)
    return None if inputs.store.missing(inputs.hashes) else inputs


def _hashes(conversations: Path) -> list[str]:
    return list(ConversationDataset(conversations, "train").images["sha256"])


def encode_images(
    model: Any, chat: ChatModel, conversations: Path, ranks: Ranks, device: torch.device, num_workers: int
) -> FeatureInputs:
    """Encodes the missing images of a conversation cache and returns the features of all of its images.

    Every rank encodes its share, while `num_workers` processes of it decode the next images. Raises ValueError if the
    disk has too little space.
    """
    inputs = _inputs_of(model, chat, conversations)
    store, hashes = inputs.store, inputs.hashes
    store.directory.mkdir(parents=True, exist_ok=True)
    # If two jobs start at once, one encodes and the other waits, then finds all features.
    with locked(store.directory / ".lock") if ranks.is_main else nullcontext():
        if ranks.is_main:
            store.clean(hashes)
        barrier()
        store.refresh()
        missing = store.missing(hashes)
        barrier()  # all ranks must read the same list of missing images before one of them adds to the store
        if missing:
            index_of = {digest: index for index, digest in enumerate(hashes)}
            encoder = _Encoder(model, DecodedImages.of(conversations, chat), inputs.grids, device)
            encoder.fill(store, missing, index_of, ranks, num_workers)
        barrier()
    store.refresh()
    assert not store.missing(hashes)
    logger.info("vision cache: %d images encoded, %d reused: %s",
                len(missing), len(hashes) - len(missing), store.directory)  # fmt: skip
    return inputs


class _Encoder:
    """Encodes images with the vision tower, which is on `device` only during `fill`."""

    def __init__(self, model: Any, images: DecodedImages, grids: list[ImageGrid], device: torch.device) -> None:
        self.model, self.images, self.grids, self.device = model, images, grids, device
        self.family = images.chat.family
        self.tower: Any = unwrapped(model).get_submodule(self.family.vision_tower)

    def fill(
        self, store: FeatureStore, missing: list[str], index_of: dict[str, int], ranks: Ranks, num_workers: int
    ) -> None:
        """Encodes this rank's share of `missing` into `store`. `index_of` maps an image's sha256 to its index."""
        started = time.monotonic()
        self.tower.to(self.device).eval()
        mine = missing[ranks.rank :: ranks.world_size]
        size = ON_CPU if self.device.type == "cpu" else IMAGES_AT_ONCE
        chunks = [mine[start : start + size] for start in range(0, len(mine), size)]
        planned = [[[index_of[digest] for digest in chunk]] for chunk in chunks]
        pending: dict[str, torch.Tensor] = {}  # features that are not written yet
        with ProgressBar(len(mine), "encode images", "image", enabled=ranks.is_main) as progress:
            decoded = iterate_steps(planned, self._decode, num_workers)
            for number, (chunk, (batch,)) in enumerate(zip(chunks, decoded, strict=True)):
                pending |= zip(chunk, self._encode(batch), strict=True)
                if number == 0:
                    indices = [index_of[digest] for digest in missing]
                    store.require_space(len(missing), self._bytes(pending[chunk[0]], planned[0][0][0], indices))
                progress.update(len(chunk))
                if len(pending) >= IMAGES_PER_SHARD or chunk is chunks[-1]:
                    store.add(list(pending), list(pending.values()))
                    pending.clear()
        self.tower.to("cpu")
        logger.info("vision cache: encoded in %.1f s", time.monotonic() - started)

    def _bytes(self, features: torch.Tensor, index: int, indices: list[int]) -> int:
        """Estimates the bytes of the features of the images `indices` from the `features` of the image `index`."""
        sizes = {i: math.prod(self.grids[i]) if self.grids else 1 for i in (index, *indices)}
        return features.numel() * features.element_size() * sum(sizes[i] for i in indices) // sizes[index]

    def _decode(self, indices: list[int]) -> Batch:
        return self.images([indices])

    def _encode(self, batch: Batch) -> list[torch.Tensor]:
        features = vision_features(self.model, on_device(batch, self.tower), self.family)
        return [one.cpu() for one in features]
