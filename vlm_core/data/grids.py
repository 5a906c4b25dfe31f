"""Images whose number of tokens follows their size (Qwen2.5-VL): how many there are, and where each of them stands.

An image of h x w tokens that begins at position p has its token (y, x) at (p, p + y, p + x): the three numbers that the
rotary embedding takes for time, height and width. Text behind it goes on at p + max(h, w), with three equal numbers
(transformers 5.23, `Qwen2_5_VLModel.get_rope_index`; Qwen2-VL, arXiv 2409.12191).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from vlm_core.families import Family

# Tokens down and across; of a family without a row, which leaves the count to its processor, pixels down and across.
Grid = tuple[int, int]


def grids_of(sizes: Sequence[tuple[int, int]], image_processor: Any, family: Family) -> list[Grid]:
    """Returns the grid of each image of (width, height) pixels; nothing for a family whose images are all alike.

    Raises ValueError for an image more than 200 times as long as it is wide.
    """
    if family.plain_only:
        return [(height, width) for width, height in sizes]
    if not family.patches_a_token:
        return []
    factor = image_processor.patch_size * family.patches_a_token
    limits = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    resized = [smart_resize(height, width, factor, *limits) for width, height in sizes]
    return [(height // factor, width // factor) for height, width in resized]


def patch_grids(grids: Sequence[Grid] | torch.Tensor, family: Family) -> torch.Tensor:
    """Returns the model's `image_grid_thw`, int64 (N, 3): frames, patches down, patches across."""
    tokens = torch.as_tensor(grids, dtype=torch.long).view(-1, 2)
    return torch.nn.functional.pad(tokens * family.patches_a_token, (1, 0), value=1)


def grid_positions(batch: dict[str, torch.Tensor], grids: Sequence[Grid]) -> torch.Tensor:
    """Returns the positions (3, R, L) of a packed batch, whose own `position_ids` count tokens.

    `grids` are those of the batch's images, row by row in the order of their tokens.
    """
    positions, rest = batch["position_ids"].expand(3, -1, -1).clone(), iter(grids)
    for row, (counted, images, groups) in enumerate(
        zip(batch["position_ids"], batch["image_ids"], batch["group_ids"], strict=True)
    ):
        shift: dict[int, int] = defaultdict(int)  # of each group, by how much its images so far moved what follows
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
