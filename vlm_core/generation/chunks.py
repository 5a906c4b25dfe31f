"""Splits a packed batch into a few rows at a time: the activations of a forward pass over all rows need most memory."""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from vlm_core.data.chat_model import FEATURES, Batch
from vlm_core.families import Family

TOKENS_AT_ONCE = 2048  # enough to keep a GPU busy; the tower sees at most eight images of 256 tokens

POSITIONS = "grid_position_ids"  # its rows are the second axis


def few_rows_at_once(batch: Batch, family: Family) -> Iterator[Batch]:
    """Yields `batch` in parts of up to TOKENS_AT_ONCE tokens, at least one row each, in the order of the rows.

    `batch` is that of `vlm_core.data.packing.pack`, with the tensors of its images, row by row.
    """
    count, length = batch["input_ids"].shape
    images = [0, *batch["image_ids"].amax(dim=1).cumsum(dim=0).tolist()]
    starts = {key: _image_starts(batch, key) for key in (FEATURES, *family.image_inputs) if key in batch}
    at_once = max(1, TOKENS_AT_ONCE // length)
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        part = {name: tensor[first:last] for name, tensor in batch.items() if name != POSITIONS and name not in starts}
        if POSITIONS in batch:
            part[POSITIONS] = batch[POSITIONS][:, first:last]
        if images[first] < images[last]:
            part |= {key: batch[key][at[images[first]] : at[images[last]]] for key, at in starts.items()}
        yield part


def _image_starts(batch: Batch, key: str) -> Sequence[int]:
    """Returns where each image begins in the tensor `key`, and where the last one ends.

    An image has one entry, or a number of them (patches, features) that is proportional to its number of tokens.
    """
    tokens = torch.cat([ids.bincount()[1:] for ids in batch["image_ids"]])
    entries = len(batch[key])
    if entries == len(tokens):
        return range(entries + 1)
    return [0, *(tokens.cumsum(dim=0) * entries // tokens.sum()).tolist()]


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Returns one cache for the rows of all `caches` and empties these: at most one layer is in memory twice."""
    first, *_ = caches
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:
            layers[0].keys = torch.cat([layer.keys for layer in layers])
            layers[0].values = torch.cat([layer.values for layer in layers])
            for other in layers[1:]:
                other.keys = other.values = None
    return first
