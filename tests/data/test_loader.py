"""The plan of a run: every example once an epoch, the same whatever the ranks, and from any step on."""

import numpy as np
import torch

from vlm_core.data.loader import iterate_steps, plan_epoch


def test_an_epoch_has_every_example_once_in_its_own_order() -> None:
    first, second = (plan_epoch(23, 5, seed=1, epoch=epoch) for epoch in (0, 1))
    assert sorted(i for step in first for i in step) == list(range(23))
    assert [len(step) for step in first] == [5, 5, 5, 5, 3]
    assert first != second
    assert first == plan_epoch(23, 5, seed=1, epoch=0)
    assert first != plan_epoch(23, 5, seed=2, epoch=0)


def test_examples_of_a_group_follow_each_other_in_an_order_of_their_own() -> None:
    groups = np.array([0, 1, 2, 3] * 6)
    plans = [plan_epoch(24, 5, seed=1, epoch=epoch, groups=groups) for epoch in (0, 1, 0)]
    orders = [[i for step in plan for i in step] for plan in plans]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(24))
        blocks = [order[start : start + 6] for start in range(0, 24, 6)]
        assert sorted({int(groups[i]) for i in block}.pop() for block in blocks) == [0, 1, 2, 3]
        assert all(len({int(groups[i]) for i in block}) == 1 for block in blocks)
        assert any(block != sorted(block) for block in blocks)


def test_steps_get_their_batches_in_order() -> None:
    steps = [["a", "b"], ["c"]]
    made = iterate_steps(steps, lambda name: {"x": torch.tensor([ord(name)])}, num_workers=0)
    assert [[b["x"].item() for b in step] for step in made] == [[97, 98], [99]]
