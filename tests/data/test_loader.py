"""The plan of a run: every example once an epoch, the same whatever the ranks, and from any step on."""

import pytest
import torch

from vlm_core.data.loader import Row, iterate_steps, micro_batches, plan_epoch


def test_an_epoch_has_every_example_once_in_its_own_order() -> None:
    first, second = (plan_epoch(23, 5, seed=1, epoch=epoch) for epoch in (0, 1))
    assert sorted(i for step in first for i in step) == list(range(23))
    assert [len(step) for step in first] == [5, 5, 5, 5, 3]
    assert first != second
    assert first == plan_epoch(23, 5, seed=1, epoch=0)
    assert first != plan_epoch(23, 5, seed=2, epoch=0)


@pytest.mark.parametrize(("local_batch_size", "world_size"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize("rows", [8, 3, 1])
def test_ranks_share_a_step_without_loss_or_repetition(local_batch_size: int, world_size: int, rows: int) -> None:
    step = list(range(100, 100 + rows))
    shares = [micro_batches(step, local_batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1  # or a collective operation would wait for ever
    counted = [row.index for share in shares for batch in share for row in batch if row.counted]
    assert sorted(counted) == step
    assert all(0 < len(batch) <= local_batch_size for share in shares for batch in share)


def test_rows_that_do_not_count_lose_their_labels() -> None:
    dataset = [{"value": i} for i in range(4)]

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([[example["value"]] * 2 for example in examples])}

    steps = [[[Row(2), Row(0)], [Row(3, counted=False)]], [[Row(1)]]]
    batches = [[b["labels"].tolist() for b in step] for step in iterate_steps(dataset, steps, collate, num_workers=0)]
    assert batches == [[[[2, 2], [0, 0]], [[-100, -100]]], [[[1, 1]]]]
