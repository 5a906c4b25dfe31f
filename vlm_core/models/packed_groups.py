"""The groups of a packed batch as ranges of tokens: what structured attention needs in place of a mask.

Tokens are numbered over all rows: token t of row r is r * T + t.
"""

from typing import NamedTuple

import torch

from vlm_core.models.attention import LayerRule, Places


class Group(NamedTuple):
    """The tokens of a prefix, [start, prefix_end), and those of its branches, each [branches[i], branches[i + 1])."""

    start: int
    prefix_end: int
    branches: tuple[int, ...]

    @property
    def end(self) -> int:
        """The number of the token after the group."""
        return max(self.prefix_end, *self.branches)


def groups_of(places: Places) -> list[Group]:
    """Returns the groups of a packed batch, in order, without the padding.

    The only example of a group has no branch: all its tokens are the prefix, which the branches are computed against.
    """
    length = places.group_ids.shape[1]
    key = (places.group_ids << 32) + places.branch_ids
    first = torch.ones_like(key, dtype=torch.bool)
    first[:, 1:] = key[:, 1:] != key[:, :-1]
    starts = first.flatten().nonzero()[:, 0].tolist()
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    groups, branches = places.group_ids.flatten().tolist(), places.branch_ids.flatten().tolist()
    for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
        if groups[start]:
            found.setdefault((start // length, groups[start]), []).append((start, end))
    return [_group(runs, has_prefix=branches[runs[0][0]] == 0) for runs in found.values()]


def _group(runs: list[tuple[int, int]], *, has_prefix: bool) -> Group:
    start, end = runs[0][0], runs[-1][1]
    if len(runs) == 1 or (len(runs) == 2 and has_prefix):
        return Group(start, end, (end,))
    own = runs[1:] if has_prefix else runs
    return Group(start, own[0][0], (*(first for first, _ in own), end))


def is_structured(group: Group, places: Places, rule: LayerRule) -> bool:
    """Returns whether branches see their whole prefix, and only earlier tokens of their own, under `rule`."""
    own = slice(group.start, group.end)
    if rule.window is not None and int(places.position_ids.flatten()[own].max()) >= rule.window:
        return False
    images = places.image_ids.flatten()[group.prefix_end : group.end]
    return not (rule.bidirectional_images and bool((images > 0).any()))


def prefix_mask(group: Group, places: Places, rule: LayerRule) -> torch.Tensor | None:
    """Returns the bool mask (P, P) among the tokens of a prefix; None if it is causal."""
    images = places.image_ids.flatten()[group.start : group.prefix_end]
    if not rule.bidirectional_images or not bool((images > 0).any()):
        return None
    causal = torch.ones(len(images), len(images), dtype=torch.bool, device=images.device).tril()
    return causal | ((images[:, None] == images) & (images > 0))
