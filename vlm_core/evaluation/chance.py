"""How likely chance alone makes a candidate look better than the champion, and how small that must be.

Equally good models could exchange their answers. The test does so, case by case at random, and counts how often the
difference becomes as large as the observed one (a randomisation test: exact for any metric and any number of cases).

A champion meets many candidates, so each gets a smaller level than the one before: rate / (n (n + 1)) for the n-th.
The levels of all candidates, however many, sum up to `rate`, which bounds the probability that any candidate that is
no better replaces the champion, whatever the candidates have in common (Bonferroni's inequality).
"""

import numpy as np

from vlm_core.evaluation.metrics import DECIMALS, METRICS, Columns

RATE = 0.05
DRAWS_AT_ONCE, MOST_DRAWS = 2000, 1_000_000
ENOUGH = 50  # draws as large as the observed difference: more would not change the decision


def level_of(number: int, rate: float = RATE) -> float:
    """Returns the largest p-value that promotes the candidate with this number (from 1) that a champion meets.

    >>> [round(level_of(number), 4) for number in (1, 2, 10)]
    [0.025, 0.0083, 0.0005]
    """
    return rate / (number * (number + 1))


def chance_of_better(case_of: np.ndarray, one: Columns, other: Columns, metric: str, seed: int) -> float | None:
    """Returns the one-sided p-value of "`one` is better than `other`"; None if the metric has no value.

    `case_of` has the number of the case of each question, and the columns have one entry per question. Draws until
    `ENOUGH` of them are as large as the observed difference, or `MOST_DRAWS` are drawn.
    """
    cases = int(case_of.max()) + 1
    by_case = [{name: np.bincount(case_of, side[name], cases) for name in side} for side in (one, other)]
    exchanged = {name: by_case[0][name] - by_case[1][name] for name in one}
    totals = [{name: column.sum() for name, column in side.items()} for side in by_case]

    def difference(moved: Columns) -> np.ndarray:
        """Returns the difference after `moved` has gone from the one side to the other."""
        scores = [
            METRICS[metric].score({name: total[name] + sign * moved[name] for name in moved})
            for total, sign in zip(totals, (-1, 1), strict=True)
        ]
        return np.round(scores[0] - scores[1], DECIMALS)

    observed = difference({name: np.zeros(()) for name in exchanged})
    if not np.isfinite(observed):
        return None
    generator, beyond, drawn = np.random.default_rng(seed), 0, 0
    while drawn < MOST_DRAWS and beyond < ENOUGH:
        coins = generator.integers(0, 2, (DRAWS_AT_ONCE, cases), dtype=np.int8).astype(np.float64)
        beyond += int((difference({name: coins @ column for name, column in exchanged.items()}) >= observed).sum())
        drawn += DRAWS_AT_ONCE
    return (beyond + 1) / (drawn + 1)
