"""A packed batch a few rows at a time: the activations of a forward pass over all of it would be the peak of memory."""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from vlm_core.data.collate import Batch
from vlm_core.data.grids import patch_grids
from vlm_core.families import Family

TOKENS_AT_ONCE = 2048  # enough to keep a GPU busy; the tower sees at most eight images of 256 tokens

GRIDS, POSITIONS, PIXELS = "image_grids", "grid_position_ids", "pixel_values"


def few_rows_at_once(batch: Batch, family: Family) -> Iterator[Batch]:
    """Yields `batch` in parts of up to TOKENS_AT_ONCE tokens, at least a row each, in the order of the rows.

    `batch` is that of `vlm_core.data.packing.pack`, with the `pixel_values` of its images, row by row.
    """
    count, length = batch["input_ids"].shape
    images = [0, *batch["image_ids"].amax(dim=1).cumsum(dim=0).tolist()]
    pixels = _pixel_starts(batch, images[-1], family)
    at_once = max(1, TOKENS_AT_ONCE // length)
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        shown = slice(images[first], images[last])
        part = {name: tensor[first:last] for name, tensor in batch.items() if name not in (GRIDS, POSITIONS, PIXELS)}
        if POSITIONS in batch:
            part[POSITIONS] = batch[POSITIONS][:, first:last]
        if shown.start < shown.stop:
            part |= {GRIDS: batch[GRIDS][shown]} if GRIDS in batch else {}
            part[PIXELS] = batch[PIXELS][pixels[shown.start] : pixels[shown.stop]]
        yield part


def _pixel_starts(batch: Batch, images: int, family: Family) -> Sequence[int]:
    """Returns where each image begins in `pixel_values`, and where the last one ends."""
    if GRIDS not in batch:
        return range(images + 1)
    patches = patch_grids(batch[GRIDS], family).prod(dim=1)
    # Of an image there are its patches, or in their place its features, of which there are fewer by the same factor.
    return [0, *(patches.cumsum(dim=0) * len(batch[PIXELS]) // patches.sum()).tolist()]


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Returns one cache for the rows of all `caches`, which are empty then: no more than a layer is there twice."""
    first, *_ = caches
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:
            layers[0].keys = torch.cat([layer.keys for layer in layers])
            layers[0].values = torch.cat([layer.values for layer in layers])
            for other in layers[1:]:
                other.keys = other.values = None
    return first
