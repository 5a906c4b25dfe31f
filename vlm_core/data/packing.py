"""Shared-image packing: a sequence holds an image's prefix once, then each question about it as a branch.

    <bos> ... image ... | Is there a lesion? ... Yes.<end_of_turn> | Where is it? ... Left.<end_of_turn> | <pad>
    group 1, branch 0   | group 1, branch 1                        | group 1, branch 2                   | group 0
    positions 0 ... 265 | 266 ...                                  | 266 ...                             | 0

A branch attends to its prefix and to itself, and its positions continue from the prefix. So each token is computed as
in a separate row, but the prefix is computed once (the message trees of Molmo 2, arXiv 2601.10611, with Gemma's
attention patterns). Shapes: R rows, L tokens in the longest row.
"""

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any, Protocol

import numpy as np
import torch

from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.data.token_cache import TokenizedExample, first_target


class Layout(Protocol):
    """What packing needs from the examples: int arrays with one entry per example."""

    lengths: np.ndarray  # tokens
    prefixes: np.ndarray  # leading tokens that an example may share with its group
    groups: np.ndarray  # group number


@dataclass(frozen=True)
class Group:
    """Examples (indices into the dataset) that share a prefix, and an upper bound of their tokens together."""

    members: tuple[int, ...]
    tokens: int


Row = tuple[Group, ...]


def group_examples(step: Sequence[int], layout: Layout) -> list[Group]:
    """Returns the examples of an optimizer step in groups that share a prefix, in the order of the step."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in step:
        members[layout.groups[index]].append(index)
    return [group_of(indices, layout) for indices in members.values()]


def group_of(members: Sequence[int], layout: Layout) -> Group:
    prefix = int(layout.prefixes[members[0]])
    return Group(tuple(members), prefix + sum(int(layout.lengths[i]) - prefix for i in members))


def split_groups(groups: list[Group], layout: Layout, max_tokens: int, at_least: int = 1) -> list[Group]:
    """Returns `groups`, with groups halved that exceed `max_tokens`, or until there are at least `at_least` groups.

    Each half repeats the prefix. A single example is never split.
    """
    done, waiting = [], list(groups)
    while waiting:
        group = waiting.pop()
        too_few = len(done) + len(waiting) + 1 < at_least
        if len(group.members) > 1 and (group.tokens > max_tokens or too_few):
            middle = len(group.members) // 2
            waiting += [group_of(half, layout) for half in (group.members[:middle], group.members[middle:])]
        else:
            done.append(group)
    return done


def pack_rows(groups: Sequence[Group], at_least: int = 1) -> list[Row]:
    """Returns rows of groups by best-fit: each group, longest first, fills the row that has the least room left.

    Attention cost grows with the square of a row's length. So no row is longer than the longest group. If that gives
    fewer than `at_least` rows, every group gets its own row.
    """
    ordered = sorted(groups, key=lambda group: (-group.tokens, group.members))
    capacity = ordered[0].tokens
    rows: list[list[Group]] = []
    room: list[tuple[int, int]] = []  # (tokens that still fit, row), sorted
    for group in ordered:
        fit = bisect.bisect_left(room, (group.tokens, -1))
        left, number = room.pop(fit) if fit < len(room) else (capacity, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(group)
        bisect.insort(room, (left - group.tokens, number))
    if len(rows) < at_least:
        return [(group,) for group in ordered]
    return sorted(map(tuple, rows), key=lambda row: -row_tokens(row))


def row_tokens(row: Row) -> int:
    """Returns an upper bound of a row's tokens."""
    return sum(group.tokens for group in row)


def share_rows(rows: Sequence[Row], max_tokens: int, rank: int, world_size: int) -> list[tuple[list[Row], bool]]:
    """Returns one rank's micro-batches as (rows, whether they count); each has at most `max_tokens`, padding included.

    All ranks get the same number of micro-batches, of nearly the same length. A rank that is left without rows repeats
    another rank's row, which does not count.
    """
    shares, start = [], 0
    while start < len(rows):
        at_once = max(1, max_tokens // row_tokens(rows[start])) * world_size
        chunk = rows[start : start + at_once]
        mine = list(chunk[rank::world_size])
        shares.append((mine or [chunk[0]], bool(mine)))
        start += at_once
    return shares


def pack(rows: Sequence[Sequence[Sequence[TokenizedExample]]], chat: ChatModel) -> Batch:
    """Returns the batch of `rows`: each row is a sequence of groups, and each group a sequence of examples.

    All tensors are int64 (R, L): `input_ids`; `position_ids`; `group_ids` (0 on padding); `branch_ids` (0 on a prefix);
    `image_ids` (the number of an image in its row, 0 elsewhere); and `targets` (the token that a position must predict,
    -100 if it is not supervised). A model with M-RoPE takes `grid_position_ids` (3, R, L) instead of `position_ids`;
    the latter always count tokens, because the masks use them.
    """
    columns = [_row([_columns(group) for group in row]) for row in rows]
    # Pad with a real token, not the padding token. Gemma 3n computes a standard deviation over what a position attends
    # to. The embedding of the padding token is zero, and the gradient of the deviation of zeros is infinite. No other
    # token attends to padding, and it has no target.
    filling = {"input_ids": int(columns[0]["input_ids"][0]), "targets": IGNORE_INDEX}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [row[name] for row in columns], batch_first=True, padding_value=filling.get(name, 0)
        )
        for name in columns[0]
    }
    batch["image_ids"] = image_numbers(batch["input_ids"] == chat.image_token)
    grids = [grid for row in rows for group in row for grid in group[0].grids]
    return batch | chat.row_positions(batch, grids)


def image_numbers(is_image: torch.Tensor) -> torch.Tensor:
    """Returns the number of each token's image in its row, 0 for other tokens; `is_image` (R, T) marks image tokens."""
    starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    return torch.where(is_image, starts.cumsum(1), 0)


def _row(groups: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    numbered = [
        columns | {"group_ids": [number] * len(columns["input_ids"])} for number, columns in enumerate(groups, start=1)
    ]
    return {name: torch.tensor([*chain(*(columns[name] for columns in numbered))]) for name in numbered[0]}


def _columns(group: Sequence[TokenizedExample]) -> dict[str, list[int]]:
    """Returns the columns of a group: the longest prefix shared by all examples, then the rest of each example."""
    prefix = common_prefix(group)
    first = group[0]
    columns: dict[str, Any] = {
        "input_ids": first.input_ids[:prefix],
        "position_ids": list(range(prefix)),
        "branch_ids": [0] * prefix,
        "targets": [IGNORE_INDEX] * prefix,
    }
    for branch, example in enumerate(group, start=1):
        length = len(example.input_ids)
        columns["input_ids"] = columns["input_ids"] + example.input_ids[prefix:]
        columns["position_ids"] += range(prefix, length)
        columns["branch_ids"] += [branch] * (length - prefix)
        columns["targets"] += _targets(example)[prefix:]
    return columns


def common_prefix(group: Sequence[TokenizedExample]) -> int:
    """Returns how many leading tokens all examples share; a branch keeps at least one token before its first target."""
    if len(group) == 1:
        return 0
    columns = zip(*(example.input_ids for example in group), strict=False)
    equal = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(equal, *(first_target(example.supervised) - 1 for example in group))


def _targets(example: TokenizedExample) -> list[int]:
    following = zip(example.input_ids[1:], example.supervised[1:], strict=True)
    return [token if supervised else IGNORE_INDEX for token, supervised in following] + [IGNORE_INDEX]
