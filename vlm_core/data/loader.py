"""Which examples each rank sees in which micro-batch: a pure function of seed, epoch and step.

So a resumed run needs no saved position, and one rank or two read the same examples in the same optimizer step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from vlm_core.data.collate import IGNORE_INDEX


class Row(NamedTuple):
    """An example of a micro-batch; one that is not counted only keeps a rank without rows in step with the others."""

    index: int
    counted: bool = True


def plan_epoch(num_examples: int, global_batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the example indices of each optimizer step of an epoch: every example once, in seeded random order.

    The last step has fewer where the batch size does not divide the number of examples.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_examples, generator=generator).tolist()
    return [order[start : start + global_batch_size] for start in range(0, num_examples, global_batch_size)]


def micro_batches(step: Sequence[int], local_batch_size: int, rank: int, world_size: int) -> list[list[Row]]:
    """Returns one rank's micro-batches of an optimizer step; all ranks get equally many.

    >>> micro_batches([4, 7, 1], local_batch_size=1, rank=1, world_size=2)
    [[Row(index=7, counted=True)], [Row(index=1, counted=False)]]
    """
    at_once = local_batch_size * world_size
    chunks = [step[start : start + at_once] for start in range(0, len(step), at_once)]
    return [[Row(i) for i in chunk[rank::world_size]] or [Row(chunk[0], counted=False)] for chunk in chunks]


class _CountedRows(Dataset[dict[str, Any]]):
    """Looks up `Row`s in a dataset."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Row) -> dict[str, Any]:
        return {**self.dataset[index.index], "counted": index.counted}


class _CountedCollate:
    """Collates, and takes the labels from the examples that do not count."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collate(examples)
        for i, example in enumerate(examples):
            if not example["counted"]:
                batch["labels"][i] = IGNORE_INDEX
        return batch


def iterate_steps(
    dataset: Any,
    steps: Sequence[list[list[Row]]],
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    num_workers: int,
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Yields the collated micro-batches of each of `steps`, on the CPU; `num_workers` processes read ahead."""
    loader = DataLoader(
        _CountedRows(dataset),
        batch_sampler=[rows for step in steps for rows in step],
        collate_fn=_CountedCollate(collate),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for step in steps:
        yield [next(batches) for _ in step]
