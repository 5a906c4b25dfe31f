"""Measures how far new data differs from the data that a model was trained on, one quantity at a time.

The measure is the Jensen-Shannon distance (Lin 1991; Endres and Schindelin 2003) to base 2 between the shares of a
quantity's values: 0 for equal shares, 1 if no value is in both. Few rows differ by chance, so a quantity drifts only
if its distance is also larger than nearly all distances between random parts of all the data. These parts have
complete cases, since rows about one case are alike.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import jensenshannon

from vlm_core.data.tally import COMMON, FEW_CASES

LIMIT = 0.1  # smallest distance that counts; also the default of CapyMOA's detector
LEVEL = 0.01  # largest p-value that counts
DRAWS = 999
BINS = 10  # of a number
OTHER = "another"


class Sample(NamedTuple):
    """The values of a quantity, and the case of each; an equal id on the other side is another case."""

    values: Sequence[str | float]
    cases: Sequence[str]


class Known(NamedTuple):
    """A quantity of the training data and of the new data."""

    title: str
    training: Sample
    new: Sample


def drift_of(quantity: Known, seed: int = 0) -> dict[str, Any]:
    """Returns `{title, bins, training, new, distance, p, drifted}` of a quantity.

    `training` and `new` are the shares of `bins`. `p` and `drifted` are None if there are too few new cases to say.
    """
    names, numbers = _bins(quantity.training.values, quantity.new.values)
    inside = len(quantity.training.values)
    sides = [
        _by_case(numbers[part], sample.cases, len(names))
        for part, sample in ((slice(inside), quantity.training), (slice(inside, None), quantity.new))
    ]
    training, new = (side.sum(axis=0) for side in sides)
    distance = float(_distances(training, new))
    p = None if len(sides[1]) < FEW_CASES else _chance(sides[0], sides[1], distance, seed)
    return {
        "title": quantity.title,
        "bins": names,
        "training": (training / training.sum()).round(4).tolist(),
        "new": (new / new.sum()).round(4).tolist(),
        "distance": round(distance, 4),
        "p": p,
        "drifted": None if p is None else distance >= LIMIT and p <= LEVEL,
    }


def _bins(training: Sequence[str | float], new: Sequence[str | float]) -> tuple[list[str], np.ndarray]:
    """Returns (the names of the bins, the bin of each value), whichever side the values are on.

    Each common text has a bin. Numbers are divided into bins of about equally many values; a frequent number has one.
    """
    values = [*training, *new]
    if isinstance(values[0], str):
        common = [name for name, _ in Counter(map(str, values)).most_common(COMMON)]
        place = {name: number for number, name in enumerate(common)}
        found = np.array([place.get(str(value), len(common)) for value in values])
        return [*common, *([OTHER] if found.max() == len(common) else [])], found
    numbers = np.array(values, dtype=np.float64)
    distinct, counts = np.unique(numbers, return_counts=True)
    frequent = np.flatnonzero(counts * BINS > len(numbers))
    below = distinct[frequent[frequent > 0] - 1]
    quantiles = np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1], method="lower")
    edges = np.unique(np.concatenate([quantiles, below, distinct[frequent]]))
    _, found = np.unique(np.digitize(numbers, edges, right=True), return_inverse=True)  # without empty bins
    ends = [(numbers[found == bin].min(), numbers[found == bin].max()) for bin in range(found.max() + 1)]
    return [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in ends], found


def _by_case(numbers: np.ndarray, cases: Sequence[str], bins: int) -> np.ndarray:
    """Returns how many values of each case (rows) are in each bin (columns)."""
    _, of_case = np.unique(np.array(cases, dtype=str), return_inverse=True)
    counts = np.zeros((int(of_case.max()) + 1, bins))
    np.add.at(counts, (of_case, numbers), 1)
    return counts


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the distances between counts in bins, which are the last axis."""
    distance: Any = jensenshannon  # Any: the published types lack the axis
    return np.nan_to_num(distance(one, other, base=2, axis=-1))  # equal shares can give the root of -1e-17


def _chance(training: np.ndarray, new: np.ndarray, observed: float, seed: int) -> float:
    """Returns the p-value of a distance: how often as many random cases are as far from all others."""
    everything, generator = np.concatenate([training, new]), np.random.default_rng(seed)
    drawn = np.array([generator.choice(len(everything), len(new), replace=False) for _ in range(DRAWS)])
    parts = np.array([everything[cases].sum(axis=0) for cases in drawn])
    distances = _distances(parts, everything.sum(axis=0) - parts)
    return round((1 + int((distances >= observed - 1e-12).sum())) / (DRAWS + 1), 4)
