"""Images of different sizes: how many tokens each has, and the positions that its tokens take.

A rule makes a grid of (rows, columns) of tokens from an image's size in pixels.
With M-RoPE, an image of h x w tokens that begins at position p has its token (y, x) at (p, p + y, p + x): the three
numbers that the rotary embedding takes for time, height and width. The text after it begins at p + max(h, w), with
three equal numbers (transformers 5.23, `Qwen2_5_VLModel.get_rope_index`; Qwen2-VL, arXiv 2409.12191).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from vlm_core.data.chat_model import Batch, ImageGrid


def smart_grid(size: tuple[int, int], image_processor: Any) -> ImageGrid:
    """Returns the grid of an image that Qwen2-VL's `smart_resize` resizes; `size` is (width, height) in pixels.

    Raises ValueError for an image more than 200 times as long as it is wide.
    """
    width, height = size
    factor = image_processor.patch_size * image_processor.merge_size
    limits = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    resized_height, resized_width = smart_resize(height, width, factor, *limits)
    return resized_height // factor, resized_width // factor


def soft_token_grid(size: tuple[int, int], image_processor: Any) -> ImageGrid:
    """Returns the grid of an image that Gemma 4 resizes to as many tokens as `max_soft_tokens` allows.

    `size` is (width, height) in pixels; the image keeps its shape. Raises ValueError for an image without pixels.
    """
    width, height = size
    patch, pool = image_processor.patch_size, image_processor.pooling_kernel_size
    patches = image_processor.max_soft_tokens * pool**2
    resized_height, resized_width = get_aspect_ratio_preserving_size(height, width, patch, patches, pool)
    return resized_height // (patch * pool), resized_width // (patch * pool)


class GridRule(NamedTuple):
    """How many tokens an image has, by its size."""

    grid: Callable[[tuple[int, int], Any], ImageGrid]  # (width, height) in pixels and the image processor -> its grid
    settings: Callable[[Any], list[Any]]  # of the image processor: everything that the grid depends on


# A family's `image_grid` names its rule. `ChatModel.fingerprint` contains the settings.
GRID_RULES = {
    "smart_resize": GridRule(smart_grid, lambda images: [dict(images.size), images.patch_size, images.merge_size]),
    "soft_tokens": GridRule(
        soft_token_grid, lambda images: [images.max_soft_tokens, images.patch_size, images.pooling_kernel_size]
    ),
}


def patch_grids(grids: Sequence[ImageGrid], merge_size: int) -> torch.Tensor:
    """Returns `image_grid_thw`, int64 (N, 3): frames, patches down, patches across."""
    tokens = torch.as_tensor(grids, dtype=torch.long).view(-1, 2)
    return torch.nn.functional.pad(tokens * merge_size, (1, 0), value=1)


def mrope_positions(batch: Batch, grids: Sequence[ImageGrid]) -> torch.Tensor:
    """Returns the M-RoPE positions (3, R, L) of a packed batch, whose own `position_ids` count tokens.

    `grids` are those of the batch's images, row by row in the order of their tokens.
    """
    positions, rest = batch["position_ids"].expand(3, -1, -1).clone(), iter(grids)
    for row, (counted, images, groups) in enumerate(
        zip(batch["position_ids"], batch["image_ids"], batch["group_ids"], strict=True)
    ):
        shift: dict[int, int] = defaultdict(int)  # group -> by how much its images so far moved the tokens after them
        for number in range(1, int(images.max()) + 1):
            at = (images == number).nonzero()[:, 0]
            group = int(groups[at[0]])
            down, across = next(rest)
            gain = max(down, across) - down * across
            positions[:, row, (groups == group) & (counted > counted[at[-1]])] += gain
            place = torch.cartesian_prod(torch.arange(1), torch.arange(down), torch.arange(across))
            positions[:, row, at] = place.T + counted[at[0]] + shift[group]
            shift[group] += gain
    return positions
