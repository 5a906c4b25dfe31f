"""The groups of a packed batch as ranges of tokens: what structured attention needs in place of a mask.

Tokens are numbered over all rows: token t of row r is r * T + t.
"""

from typing import NamedTuple

import torch

from vlm_core.models.attention import LayerRule, Places, dense_mask


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


class GroupMask(NamedTuple):
    """Which tokens of a group see which; None stands for the usual pattern."""

    prefix: torch.Tensor | None  # bool (P, P) among the tokens of the prefix; None: causal
    cross: torch.Tensor | None  # bool (B, P), what the branches see of the prefix; None: everything


def group_mask(group: Group, places: Places, rule: LayerRule) -> GroupMask | None:
    """Returns what the tokens of `group` see under `rule`.

    Returns None for a pattern of another kind: a branch that is not causal, because it has an image or a window ends in
    it, or a token that sees nothing of its prefix.
    """
    own = Places(*(ids.flatten()[group.start : group.end][None] for ids in places))
    seen, prefix = dense_mask(own, own, rule)[0, 0], group.prefix_end - group.start
    causal = torch.ones_like(seen).tril()
    of_branch = own.branch_ids[0, prefix:]
    branches = causal[prefix:, prefix:] & (of_branch[:, None] == of_branch)
    if not torch.equal(seen[prefix:, prefix:], branches) or bool(seen[:prefix, prefix:].any()):
        return None
    first, cross = seen[:prefix, :prefix], seen[prefix:, :prefix]
    if prefix and not bool(cross.any(dim=1).all()):
        return None
    is_causal = torch.equal(first, causal[:prefix, :prefix])
    return GroupMask(None if is_causal else first, None if bool(cross.all()) else cross)
