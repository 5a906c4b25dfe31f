"""Equal models retrained fifty times hardly ever replace a champion; a better one still does."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from vlm_core.evaluation.chance import chance_of_better, level_of
from vlm_core.evaluation.metrics import Columns

CASES, RETRAININGS, HISTORIES = 60, 50, 150
Rule = Callable[[np.ndarray, np.ndarray, int], bool]


def columns(scores: np.ndarray) -> Columns:
    return {"token_f1": scores, "examples": np.ones_like(scores)}


def chance(one: np.ndarray, other: np.ndarray) -> float:
    found = chance_of_better(np.arange(len(one)), columns(one), columns(other), "token_f1", 0)
    assert found is not None
    return found


def by_mean(one: np.ndarray, champion: np.ndarray, number: int) -> bool:
    """The rule without evidence: any improvement counts."""
    return one.mean() > champion.mean()


def by_interval(one: np.ndarray, champion: np.ndarray, number: int) -> bool:
    """The rule that does not count: the 95 % interval of the difference excludes 0."""
    change = one - champion
    return change.mean() > 1.96 * change.std() / np.sqrt(CASES)


def by_gate(one: np.ndarray, champion: np.ndarray, number: int) -> bool:
    # Only what the interval finds can be below a level of 0.025: this saves the exact test of all others.
    return by_interval(one, champion, number) and chance(one, champion) <= level_of(number)


def promotions(rule: Rule, generator: np.random.Generator, gain: float = 0.0) -> int:
    """Returns how often a rule replaces the champion, of equally good models (or better by `gain`) on the same cases.

    Some cases are harder for all models. Each model is lucky in some cases, more often where answers are uncertain.
    """
    difficulty, noise = generator.uniform(0.2, 0.8, CASES), generator.exponential(0.15, CASES)
    champion, number, count = generator.normal(difficulty, noise), 1, 0
    for _ in range(RETRAININGS):
        candidate = generator.normal(difficulty + gain, noise)
        if rule(candidate, champion, number):
            champion, number, count = candidate, 0, count + 1
            gain = 0.0
        number += 1
    return count


def test_equal_models_hardly_ever_replace_a_champion() -> None:
    found = {
        rule: [promotions(rule, np.random.default_rng(seed)) for seed in range(HISTORIES)]
        for rule in (by_mean, by_interval, by_gate)
    }
    replaced = {rule: np.mean([count > 0 for count in counts]) for rule, counts in found.items()}
    assert replaced[by_gate] < 0.05
    assert replaced[by_interval] > 0.25
    assert replaced[by_mean] > 0.9
    assert np.mean(found[by_mean]) > 3  # so many useless changes in fifty weeks


def test_a_better_model_replaces_the_champion() -> None:
    assert all(promotions(by_gate, np.random.default_rng(seed), gain=0.15) == 1 for seed in range(5))


def test_the_p_value_is_that_of_all_exchanges() -> None:
    """Of six cases all 64 exchanges can be counted."""
    one, other = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.5]), np.array([0.5, 0.5, 0.5, 0.6, 0.5, 0.4])
    changes = [np.mean(np.array(signs) * (one - other)) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.round(changes, 4) >= round((one - other).mean(), 4))
    assert chance(one, other) == pytest.approx(exact, rel=0.3)
    assert chance(other, one) > 0.9


def test_questions_of_a_case_are_exchanged_together() -> None:
    """Ten copies of each question are no new evidence."""
    one, other = np.random.default_rng(0).normal([[0.6], [0.5]], 0.2, (2, 12))
    copies = [columns(np.repeat(side, 10)) for side in (one, other)]
    found = chance_of_better(np.repeat(np.arange(12), 10), *copies, "token_f1", 0)
    assert found == pytest.approx(chance(one, other), rel=0.01)


def test_equal_answers_and_missing_scores() -> None:
    same = np.full(5, 0.5)
    assert chance(same, same) == 1
    missing = columns(same) | {"examples": np.zeros(5)}
    assert chance_of_better(np.arange(5), missing, missing, "token_f1", 0) is None


def test_all_levels_together_are_the_rate() -> None:
    assert sum(level_of(number) for number in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
