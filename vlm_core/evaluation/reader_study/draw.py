"""Chooses the questions of a reader study."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_core.evaluation.intervals import DETECTABLE

Record = Mapping[str, Any]  # a row of predictions.parquet


def draw(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Returns `count` questions in random order, the same for equal arguments.

    Each stratum (mode, and closed or open) has its share of the questions. Within a stratum, a case is asked again only
    after all other cases, because answers about one case are correlated.
    """
    generator = np.random.default_rng(seed)
    strata: dict[tuple[str, bool], list[Record]] = defaultdict(list)
    for record in records:
        strata[record["mode"], record["closed_kind"] is not None].append(record)
    asked: Counter[str] = Counter()
    chosen: list[Record] = []
    for stratum, quota in _quotas({name: len(rows) for name, rows in strata.items()}, count).items():
        rows = [strata[stratum][i] for i in generator.permutation(len(strata[stratum]))]
        for _ in range(quota):
            rarest = min(rows, key=lambda row: asked[row["case_id"]])
            rows.remove(rarest)
            asked[rarest["case_id"]] += 1
            chosen.append(rarest)
    return [chosen[i] for i in generator.permutation(len(chosen))]


def _quotas(sizes: Mapping[Any, int], count: int) -> dict[Any, int]:
    """Returns how many of `count` each stratum gets: its share, rounded by the largest remainders."""
    total = sum(sizes.values())
    exact = {name: min(count, total) * size / total for name, size in sorted(sizes.items())}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: quotas[name] - exact[name])
    for name in by_remainder[: min(count, total) - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def detectable_preference(cases: int) -> float:
    """Returns which share of preferences for one model a study of this many cases would find in four of five studies.

    It assumes that every judgement is a preference, which varies most: with ties, smaller shares are found.
    """
    return min(1.0, 0.5 + 0.5 * DETECTABLE / math.sqrt(cases))
