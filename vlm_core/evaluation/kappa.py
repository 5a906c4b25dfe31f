"""Cohen's kappa: how far two judges agree beyond chance."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlm_core.evaluation.intervals import CaseBootstrap, Scored, interval

DRAWS = 500  # scikit-learn computes kappa for each


def kappa(
    pairs: Sequence[tuple[int, int]],
    cases: Sequence[str],
    labels: Sequence[int],
    weights: Literal["quadratic"] | None = None,
) -> dict[str, float | None]:
    """Returns `{value, low, high}` of Cohen's kappa of pairs of labels, with an interval over `cases`.

    Ordered labels may have quadratic weights. The value is None if both judges gave one label only.
    """
    from sklearn.exceptions import UndefinedMetricWarning  # takes two seconds
    from sklearn.metrics import cohen_kappa_score

    values, bootstrap = np.array(pairs), CaseBootstrap(cases, 0, DRAWS)

    def of(counts: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # NaN if both judges gave one label only
            return float(cohen_kappa_score(*values.T, labels=labels, weights=weights, sample_weight=counts))

    draws = [of(counts[bootstrap.case_of]) for counts in bootstrap.usable_weights]
    return interval(Scored(of(np.ones(len(values))), np.array(draws)))
