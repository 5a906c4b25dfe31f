"""Draws the training questions of several datasets: how often each is drawn, and in which order.

A dataset is read in passes. A pass is a permutation of its images, seeded by the run's seed, the dataset's name and the
number of the pass. An epoch has as many questions as all datasets together, and takes from each dataset its share, from
where the epoch before it ended. So a small dataset may have several passes in an epoch, and a large one a part of one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vlm_core.config import Config
from vlm_core.data.arrow_cache import open_rows


def dataset_numbers(conversations: Path, split: str, names: Sequence[str]) -> np.ndarray:
    """Returns the index into `names` of the dataset of each row of a conversation cache.

    Raises ValueError if the cache has other datasets.
    """
    rows = open_rows(conversations / f"{split}.arrow")
    if len(names) == 1:
        return np.zeros(len(rows), dtype=np.int64)
    number = {name: index for index, name in enumerate(names)}
    found = set(rows.unique("dataset")) if "dataset" in rows.column_names else {"one dataset without a name"}
    if found - number.keys():
        raise ValueError(
            f"{conversations} is not the cache of {', '.join(names)}: it has {', '.join(sorted(found))}; leave "
            "--conversations out, or give the cache of this config"
        )
    return np.array([number[name] for name in rows["dataset"]], dtype=np.int64)


@dataclass(frozen=True)
class Mixture:
    """The training examples of several datasets, and the share of each in the questions of an epoch."""

    names: tuple[str, ...]
    of_example: np.ndarray  # the index into `names` of each example
    shares: tuple[float, ...]  # sum 1

    @property
    def sizes(self) -> list[int]:
        """The number of examples of each dataset."""
        return np.bincount(self.of_example, minlength=len(self.names)).tolist()

    @property
    def drawn(self) -> list[int]:
        """How many examples of each dataset an epoch has: its share, rounded, and at least one."""
        total = len(self.of_example)
        quotas = np.array(self.shares) * total
        counts = np.floor(quotas).astype(np.int64)
        nearest_first = np.argsort(counts - quotas, kind="stable")
        counts[nearest_first[: total - counts.sum()]] += 1
        for unseen in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[unseen] = 1
        return counts.tolist()

    def __str__(self) -> str:
        drawn = zip(self.names, self.shares, self.drawn, self.sizes, strict=True)
        return ", ".join(
            f"{share:.1%} {name} ({count:,} of an epoch, {count / size:.2g} times its {size:,})"
            for name, share, count, size in drawn
        )

    def order(self, seed: int, epoch: int, groups: np.ndarray | None) -> np.ndarray:
        """Returns the examples of an epoch in their order: a pure function of the arguments.

        The questions of a dataset about one image (a run) stay together. A run stands at the place in the epoch at
        which it stands among its dataset's questions, so that each part of an epoch has the shares.
        """
        runs, places = [], []
        for number, count in enumerate(self.drawn):
            start = 0
            for run in self._runs(number, seed, range(epoch * count, (epoch + 1) * count), groups):
                runs.append(run)
                places.append((start + len(run) / 2) / count)
                start += len(run)
        return np.concatenate([runs[i] for i in np.argsort(places, kind="stable")])

    def _runs(self, number: int, seed: int, drawn: range, groups: np.ndarray | None) -> Iterator[np.ndarray]:
        """Yields the examples at the places `drawn` of a dataset's passes, which follow each other, as runs.

        A run has the examples of a pass that follow each other and have one group; without groups, each one alone.
        """
        members = np.flatnonzero(self.of_example == number)
        size = len(members)
        for which in range(drawn.start // size, (drawn.stop - 1) // size + 1):
            first = which * size
            inside = slice(max(drawn.start - first, 0), min(drawn.stop - first, size))
            examples = self._pass(number, members, seed, which, groups)[inside]
            ends = np.arange(1, len(examples)) if groups is None else np.flatnonzero(np.diff(groups[examples])) + 1
            yield from np.split(examples, ends)

    def _pass(self, number: int, members: np.ndarray, seed: int, which: int, groups: np.ndarray | None) -> np.ndarray:
        """Returns the examples of a dataset in random order; those of a group follow each other."""
        digest = hashlib.sha256(f"{seed}|{self.names[number]}|{which}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        order = members[torch.randperm(len(members), generator=generator).numpy()]
        if groups is None:
            return order
        found, of_member = np.unique(groups[order], return_inverse=True)
        rank = torch.randperm(len(found), generator=generator).numpy()
        return order[np.argsort(rank[of_member], kind="stable")]


def mixture_of(config: Config, of_example: np.ndarray) -> Mixture | None:
    """Returns how the training examples of a run are drawn; None for one dataset.

    `of_example` has the index of each example's dataset in `config.datasets`.
    """
    if len(config.trained) < 2:
        return None
    numbers = [list(config.datasets).index(name) for name in config.trained]
    place = {number: index for index, number in enumerate(numbers)}
    compact = np.array([place[number] for number in of_example.tolist()], dtype=np.int64)
    sizes = np.bincount(compact, minlength=len(numbers))
    return Mixture(tuple(config.trained), compact, shares_of(config, sizes.tolist()))


def shares_of(config: Config, sizes: Sequence[int]) -> tuple[float, ...]:
    """Returns the share of each of `config.trained` in the questions; `sizes` are their numbers of questions."""
    weights = [config.datasets[name].weight for name in config.trained]
    temperature = config.mixture.temperature or 1.0
    parts = [
        size ** (1 / temperature) if weight is None else weight for weight, size in zip(weights, sizes, strict=True)
    ]
    return tuple(part / sum(parts) for part in parts)
