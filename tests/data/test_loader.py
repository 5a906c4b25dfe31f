"""The plan of a run: every example once an epoch, the same whatever the ranks, and from any step on."""

from collections import namedtuple
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vlm_core.data.loader import iterate_steps, plan_epoch, worker_processes


def test_an_epoch_has_every_example_once_in_its_own_order() -> None:
    first, second = (plan_epoch(23, 5, seed=1, epoch=epoch) for epoch in (0, 1))
    assert sorted(i for step in first for i in step) == list(range(23))
    assert [len(step) for step in first] == [5, 5, 5, 5, 3]
    assert first != second
    assert first == plan_epoch(23, 5, seed=1, epoch=0)
    assert first != plan_epoch(23, 5, seed=2, epoch=0)


def test_the_order_of_one_dataset_never_changes() -> None:
    """Checkpoints of earlier versions resume by it."""
    assert plan_epoch(7, 3, 5, 1) == [[3, 1, 5], [6, 2, 0], [4]]
    first, *_ = plan_epoch(24, 5, 1, 2, np.array([0, 1, 2, 3] * 6))
    assert first == [23, 11, 3, 7, 19]


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


def test_steps_are_planned_as_they_are_read() -> None:
    planned: list[int] = []

    def steps() -> Iterator[list[int]]:
        for step in range(1000):
            planned.append(step)
            yield [step] * (step % 3)

    made = iterate_steps(steps(), lambda number: {"x": torch.tensor([number])}, num_workers=0)
    assert [[b["x"].item() for b in next(made)] for _ in range(5)] == [[], [1], [2, 2], [], [4]]
    assert len(planned) < 10


@pytest.mark.parametrize(
    ("setting", "decodes", "cores", "ranks", "free", "expected"),
    [
        (None, True, 16, 1, 2**33, 4),
        (None, True, 16, 8, 2**33, 1),
        (None, True, 2, 1, 2**33, 1),
        (None, True, 1, 1, 2**33, 0),
        (None, True, 4, 8, 2**33, 0),
        (None, True, 16, 1, 2**26, 0),  # a container with little shared memory
        (None, False, 16, 1, 2**33, 0),
        (7, False, 1, 8, 0, 7),
        (0, True, 16, 1, 2**33, 0),
    ],
)
def test_workers_read_ahead_if_there_is_room(
    setting: int | None,
    decodes: bool,
    cores: int,
    ranks: int,
    free: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert worker_processes(setting, decodes=decodes) == expected
