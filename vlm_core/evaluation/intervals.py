"""95 % intervals by bootstrap over cases, and differences between two models on the same questions.

Answers about the same case are correlated. So the bootstrap draws cases and not questions (the cluster bootstrap:
Davison and Hinkley, Bootstrap Methods, 1997, section 3.8). All scores use the same draws, so differences are paired.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_core.evaluation.metrics import DECIMALS, METRICS, Columns, Metric, rounded

DRAWS = 2000
MIN_CASES = 10  # fewer cases get no interval: three that agree would always be "significant"
LEVEL = 0.95
# A true difference of this many standard errors is found with a probability of 80 % at the two-sided level of 5 %.
DETECTABLE = 1.96 + 0.84


@dataclass(frozen=True)
class Scored:
    """A score over all questions, and over each bootstrap draw."""

    value: float
    draws: np.ndarray  # empty if there are too few cases

    def __sub__(self, other: "Scored") -> "Scored":
        return Scored(self.value - other.value, self.draws - other.draws)


class CaseBootstrap:
    """Draws of the cases of some questions; `cases` has the case of each question."""

    def __init__(self, cases: Sequence[str], seed: int, draws: int = DRAWS) -> None:
        names, self.case_of = np.unique(np.array(cases), return_inverse=True)
        self.cases = len(names)
        generator = np.random.default_rng(seed)
        # How often each draw has each case: (draws, cases).
        self.weights = generator.multinomial(self.cases, [1 / self.cases] * self.cases, size=draws).astype(np.float64)

    @property
    def usable_weights(self) -> np.ndarray:
        """The weights of all draws; of none if there are too few cases."""
        return self.weights if self.cases >= MIN_CASES else self.weights[:0]

    def mean(self, values: np.ndarray) -> Scored:
        """Returns the mean of values with one entry per question."""
        return self.ratio(values, np.ones_like(values))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Scored:
        """Returns the sum of `above` divided by that of `below`, with one entry per question; NaN if that is 0."""
        one, other = (np.bincount(self.case_of, column, self.cases) for column in (above, below))
        with np.errstate(invalid="ignore"):
            return Scored(
                float(np.divide(above.sum(), below.sum())), (self.usable_weights @ one) / (self.usable_weights @ other)
            )

    def scores(self, columns: Columns, metrics: Iterable[Metric] | None = None) -> dict[str, Scored]:
        """Returns the score of each of `metrics` (by default of all) for columns with one entry per question."""
        by_case = {name: np.bincount(self.case_of, column, self.cases) for name, column in columns.items()}
        totals = {name: column.sum() for name, column in by_case.items()}
        drawn = {name: self.usable_weights @ column for name, column in by_case.items()}
        chosen = METRICS.values() if metrics is None else metrics
        return {metric.name: Scored(float(metric.score(totals)), metric.score(drawn)) for metric in chosen}


def interval(scored: Scored) -> dict[str, float | None]:
    """Returns `{value, low, high}`: the score and the percentiles between which 95 % of the draws lie.

    Fewer than `MIN_CASES` cases have no interval.
    """
    known = scored.draws[~np.isnan(scored.draws)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return {"value": rounded(scored.value), "low": rounded(low), "high": rounded(high)}


def difference(one: Scored, other: Scored) -> dict[str, float | None]:
    """Returns `{value, low, high, p, detectable}` of `one` minus `other`; p is two-sided, against no difference.

    p is the smallest level whose interval excludes 0, so both always agree. With 2,000 draws, p is at least 0.001.
    Differences are rounded first: the last bits of an answer's likelihood depend on its batch. `detectable` is the
    smallest true difference that questions about as many cases as these would show in four of five evaluations.
    """
    change = one - other
    known = change.draws[~np.isnan(change.draws)].round(DECIMALS)
    if not len(known):
        return {**interval(change), "p": None, "detectable": None}
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(known) + 1))
    return {**interval(change), "p": rounded(p), "detectable": rounded(DETECTABLE * float(known.std()))}
