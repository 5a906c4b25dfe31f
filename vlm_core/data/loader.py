"""Plans which examples each optimizer step reads, and loads the batches ahead of time.

The plan depends only on seed and epoch. So a resumed run needs no saved position, and every number of ranks reads the
same examples in the same step.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vlm_core.data.chat_model import Batch
from vlm_core.data.mixture import Mixture

MOST_WORKERS = 4  # of a rank, if their number is not set
LEAST_SHARED_MEMORY = 2**30  # bytes


def plan_epoch(
    num_examples: int,
    global_batch_size: int,
    seed: int,
    epoch: int,
    groups: np.ndarray | None = None,
    mixture: Mixture | None = None,
) -> list[list[int]]:
    """Returns the example indices of each optimizer step of an epoch: every example once, in seeded random order.

    `groups` has the group number of each example, from 0. With it, groups are in random order and the examples of a
    group follow each other in random order. The last step is smaller if the batch size does not divide the number of
    examples. A `mixture` draws from several datasets instead, each as often as its share says.
    """
    if mixture is not None:
        mixed = mixture.order(seed, epoch, groups)
        return [mixed[start : start + global_batch_size].tolist() for start in range(0, len(mixed), global_batch_size)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_examples, generator=generator)
    if groups is not None:
        rank = torch.randperm(int(groups.max()) + 1, generator=generator)
        order = order[torch.argsort(rank[torch.tensor(groups)[order]], stable=True)]
    return [step.tolist() for step in order.split(global_batch_size)]


class _Made(Dataset[Batch]):
    """Makes a batch of each micro-batch that it is asked for."""

    def __init__(self, make: Callable[[Any], Batch]) -> None:
        self.make = make

    def __getitem__(self, index: Any) -> Batch:
        return self.make(index)  # The sampler yields micro-batches themselves.


def iterate_steps(
    steps: Iterable[Sequence[Any]], make: Callable[[Any], Batch], num_workers: int
) -> Iterator[list[Batch]]:
    """Yields the list of batches of each step, built by `make` on the CPU; `num_workers` processes prefetch them.

    The processes live as long as the iteration, so what `make` keeps in memory serves all epochs of `steps`.
    """
    read, ahead = tee(steps)
    loader = DataLoader(
        _Made(make),
        sampler=chain.from_iterable(ahead),
        batch_size=None,  # each item is a whole batch
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for step in read:
        yield [next(batches) for _ in step]


def worker_processes(setting: int | None, *, decodes: bool) -> int:
    """Returns how many processes read ahead for a rank; `setting` None: by the cores, if images have to be decoded."""
    if setting is not None:
        return setting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = Path("/dev/shm")  # Batches of workers come through here, and containers may have 64 MB of it.
    if not decodes or not shared.is_dir() or shutil.disk_usage(shared).free < LEAST_SHARED_MEMORY:
        return 0
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    return max(0, min(MOST_WORKERS, cores // ranks_here - 1))
