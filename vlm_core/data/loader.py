"""Plans which examples each optimizer step reads, and loads the batches ahead of time.

The plan depends only on seed and epoch. So a resumed run needs no saved position, and every number of ranks reads the
same examples in the same step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vlm_core.data.chat_model import Batch


def plan_epoch(
    num_examples: int, global_batch_size: int, seed: int, epoch: int, groups: np.ndarray | None = None
) -> list[list[int]]:
    """Returns the example indices of each optimizer step of an epoch: every example once, in seeded random order.

    `groups` has the group number of each example, from 0. With it, groups are in random order and the examples of a
    group follow each other in random order. The last step is smaller if the batch size does not divide the number of
    examples.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_examples, generator=generator)
    if groups is not None:
        rank = torch.randperm(int(groups.max()) + 1, generator=generator)
        order = order[torch.argsort(rank[torch.tensor(groups)[order]], stable=True)]
    return [step.tolist() for step in order.split(global_batch_size)]


class _MicroBatches(Dataset[Batch]):
    def __init__(self, micro_batches: Sequence[Any], make: Callable[[Any], Batch]) -> None:
        self.micro_batches, self.make = micro_batches, make

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.micro_batches[index])


def iterate_steps(
    steps: Sequence[Sequence[Any]], make: Callable[[Any], Batch], num_workers: int
) -> Iterator[list[Batch]]:
    """Yields the list of batches of each step, built by `make` on the CPU; `num_workers` processes prefetch them."""
    loader = DataLoader(
        _MicroBatches([micro_batch for step in steps for micro_batch in step], make),
        batch_size=None,  # each item is a whole batch
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for step in steps:
        yield [next(batches) for _ in step]
