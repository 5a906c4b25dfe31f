"""Filling the vision cache: each image that is missing goes through the tower once, on one of the ranks."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_core.cache import locked, touch
from vlm_core.data.batches import PixelInputs
from vlm_core.data.conversation_cache import ConversationDataset, image_sizes
from vlm_core.data.grids import Grid, grids_of
from vlm_core.families import Family
from vlm_core.home import medpix_home
from vlm_core.models.feature_store import FeatureStore
from vlm_core.models.frozen_tower import join_features, tower_fingerprint, vision_features
from vlm_core.models.load import unwrapped
from vlm_core.progress import ProgressBar
from vlm_core.training.distributed import Ranks, barrier

logger = logging.getLogger(__name__)

IMAGES_A_SHARD = 64  # what a killed job loses at most, a rank
IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class FeatureInputs:
    """Cached features of images given by index, in place of the pixels of `PixelInputs`."""

    store: FeatureStore
    hashes: list[str]  # of every image, by index
    family: Family

    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        return join_features(self.store.read([self.hashes[index] for index in indices]), self.family)


def _store_of(model: Any, processor: Any, family: Family) -> FeatureStore:
    directory = medpix_home() / "cache" / "vision" / tower_fingerprint(model, processor, family)
    touch(directory)
    return FeatureStore(directory)


def cached_features(model: Any, processor: Any, family: Family, conversations: Path) -> FeatureInputs | None:
    """Returns the features of the images of a conversation cache, None unless all are there for this tower."""
    store, hashes = _store_of(model, processor, family), _hashes(conversations)
    return None if store.missing(hashes) else FeatureInputs(store, hashes, family)


def _hashes(conversations: Path) -> list[str]:
    return list(ConversationDataset(conversations, "train").images["sha256"])


def encode_images(
    model: Any, processor: Any, family: Family, conversations: Path, ranks: Ranks, device: torch.device
) -> FeatureInputs:
    """Returns the features of all images of a conversation cache, after encoding those that are missing.

    Every rank encodes its share. Raises ValueError where the disk is too small.
    """
    store, hashes = _store_of(model, processor, family), _hashes(conversations)
    store.directory.mkdir(parents=True, exist_ok=True)
    # Of two jobs at once one encodes; the other waits and finds everything.
    with locked(store.directory / ".lock") if ranks.is_main else nullcontext():
        if ranks.is_main:
            store.clean(hashes)
        barrier()
        store.refresh()
        missing = store.missing(hashes)
        barrier()  # Every rank takes its share of the same list: none may add to the store before all have looked.
        if missing:
            index_of = {digest: index for index, digest in enumerate(hashes)}
            grids = grids_of(image_sizes(conversations), processor.image_processor, family)
            encoder = _Encoder(model, family, PixelInputs.of(conversations, processor), grids, device)
            encoder.fill(store, missing, index_of, ranks)
        barrier()
    store.refresh()
    assert not store.missing(hashes)
    logger.info("vision cache: %d images encoded, %d reused: %s",
                len(missing), len(hashes) - len(missing), store.directory)  # fmt: skip
    return FeatureInputs(store, hashes, family)


class _Encoder:
    """The tower on its device for the time that it is needed."""

    def __init__(
        self, model: Any, family: Family, pixels: PixelInputs, grids: list[Grid], device: torch.device
    ) -> None:
        self.model, self.family, self.pixels, self.grids, self.device = model, family, pixels, grids, device
        self.tower = unwrapped(model).get_submodule(family.vision_tower)
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
        pixels = self.pixels(indices).to(self.device, self.dtype)
        grids = [self.grids[index] for index in indices] if self.grids else []
        return [image.cpu() for image in vision_features(self.model, pixels, grids, self.family)]
