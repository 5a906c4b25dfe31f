"""The plan of packed batches loses nothing, repeats nothing, and keeps every rank in step; `pack` lays tokens out."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.batches import count_tokens
from vlm_core.data.packing import (
    Group,
    common_prefix,
    group_examples,
    pack,
    pack_rows,
    row_tokens,
    share_rows,
    split_groups,
)
from vlm_core.data.token_cache import TokenizedExample, shared_prefix

IMAGE = 9
CHAT: Any = SimpleNamespace(packs=True, image_token=IMAGE, row_positions=lambda batch, grids: {})


def layout(lengths: list[int], groups: list[int], prefix: int = 10) -> SimpleNamespace:
    prefixes = [prefix if groups.count(group) > 1 else 0 for group in groups]
    return SimpleNamespace(lengths=np.array(lengths), prefixes=np.array(prefixes), groups=np.array(groups))


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(12, 60), min_size=1, max_size=30),
    number_of_groups=st.integers(1, 8),
    max_tokens=st.integers(20, 400),
    world_size=st.integers(1, 3),
)
def test_every_example_is_in_one_micro_batch_of_one_rank(
    lengths: list[int], number_of_groups: int, max_tokens: int, world_size: int
) -> None:
    examples = layout(lengths, [i % number_of_groups for i in range(len(lengths))])
    step = list(range(len(lengths)))
    groups = split_groups(group_examples(step, examples), examples, max_tokens, at_least=world_size)
    rows = pack_rows(groups, at_least=world_size)
    shares = [share_rows(rows, max_tokens, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1  # or a collective operation would wait for ever
    counted = [(row, group) for share in shares for mine, counts in share if counts for row in mine for group in row]
    assert sorted(i for _, group in counted for i in group.members) == step
    for share in shares:
        for mine, _ in share:
            padded = len(mine) * max(map(row_tokens, mine))
            assert padded <= max_tokens or len(mine) == 1
    for _, group in counted:
        assert len({int(examples.groups[i]) for i in group.members}) == 1
        assert group.tokens <= max_tokens or len(group.members) == 1
    if len(lengths) >= world_size:
        assert all(any(counts for _, counts in share) for share in shares)  # no rank waits while another works


def test_small_groups_fill_the_room_that_a_long_one_sets() -> None:
    rows = pack_rows([Group((i,), tokens) for i, tokens in enumerate([50, 100, 30, 20, 70])])
    assert [[group.tokens for group in row] for row in rows] == [[100], [70, 30], [50, 20]]


def test_examples_are_laid_out_as_in_the_picture() -> None:
    """Two questions about one image, and a text alone: by hand."""
    first = TokenizedExample([1, IMAGE, IMAGE, 5, 6, 7], [False] * 5 + [True], [0])
    second = TokenizedExample([1, IMAGE, IMAGE, 5, 3, 7, 8], [False] * 5 + [True, True], [0])
    text = TokenizedExample([1, 4, 8], [False, False, True], [])
    batch = pack([[[first, second], [text]], [[text]]], CHAT)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, IMAGE, IMAGE, 5, 6, 7, 3, 7, 8, 1, 4, 8], [1, 4, 8] + [1] * 9],
        "position_ids": [[0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1, 2], [0, 1, 2] + [0] * 9],
        "group_ids": [[1] * 9 + [2] * 3, [1] * 3 + [0] * 9],
        "branch_ids": [[0] * 4 + [1] * 2 + [2] * 3 + [1] * 3, [1] * 3 + [0] * 9],
        "image_ids": [[0, 1, 1] + [0] * 9, [0] * 12],
        "targets": [[-100] * 4 + [7, -100, 7, 8, -100, -100, 8, -100], [-100, 8] + [-100] * 10],
    }
    assert count_tokens(batch) == (24, 9, 6 + 7 + 3 + 3)


def test_a_branch_keeps_a_token_that_is_no_target() -> None:
    """Equal questions with equal answers share all but the token before the answer, which each has to predict from."""
    twin = TokenizedExample([1, IMAGE, 5, 6, 7], [False] * 3 + [True] * 2, [0])
    assert common_prefix([twin, twin]) == 2
    targets = pack([[[twin, twin]]], CHAT)["targets"].tolist()
    assert targets == [[-100, -100, 6, 7, -100, 6, 7, -100]]
    assert common_prefix([twin]) == 0  # alone it is a plain row


@pytest.mark.parametrize(
    ("ids", "first_target", "expected"),
    [
        ([1, IMAGE, IMAGE, 5, 7], 4, 3),
        ([1, 5, 7], 2, 0),  # no image
        ([1, IMAGE, 7, IMAGE, 7], 2, 0),  # a second image behind an answer: nothing is shared
        ([1, IMAGE, 5, IMAGE, 7, 7], 5, 4),  # two images in the question
        ([1, IMAGE, 7], 2, 0),  # the answer directly behind the image
    ],
)
def test_what_may_be_shared_ends_with_the_last_image(ids: list[int], first_target: int, expected: int) -> None:
    supervised = [i >= first_target for i in range(len(ids))]
    assert shared_prefix(TokenizedExample(ids, supervised, [0]), CHAT) == expected
