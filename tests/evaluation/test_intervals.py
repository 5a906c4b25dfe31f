"""95 % intervals contain the truth 19 times in 20, although the questions of a case depend on each other."""

import numpy as np
import pytest

from vlm_core.evaluation.intervals import CaseBootstrap, Scored, difference, interval
from vlm_core.evaluation.metrics import METRICS, Columns

CASES, SIMULATIONS, DRAWS = 60, 300, 400
METRIC = [METRICS["token_f1"]]


def simulate(generator: np.random.Generator, gain: float = 0.0) -> tuple[list[str], Columns, Columns]:
    """Returns cases of very different size, and scores of two models around 0.5 that a case has in common."""
    sizes = generator.geometric(0.1, CASES)
    case_of = np.repeat(np.arange(CASES), sizes)
    difficulty = generator.normal(0, 0.2, CASES)[case_of]
    of_case = generator.normal(0, 0.1, (2, CASES))[:, case_of]
    scores = 0.5 + difficulty + of_case + generator.normal(0, 0.1, (2, len(case_of)))
    scores[0] += gain
    columns = [{"token_f1": score, "examples": np.ones_like(score)} for score in scores]
    return [str(case) for case in case_of], *columns


@pytest.mark.slow
def test_intervals_hold_the_truth_19_times_in_20() -> None:
    generator = np.random.default_rng(1)
    by_case, by_row, excluded = 0, 0, 0
    for seed in range(SIMULATIONS):
        cases, one, other = simulate(generator)
        bootstrap = CaseBootstrap(cases, seed, DRAWS)
        first, second = (bootstrap.scores(columns, METRIC)["token_f1"] for columns in (one, other))
        by_case += holds(first, 0.5)
        rows = CaseBootstrap([str(i) for i in range(len(cases))], seed, DRAWS)
        by_row += holds(rows.scores(one, METRIC)["token_f1"], 0.5)
        excluded += difference(first, second)["p"] <= 0.05
    assert 0.91 <= by_case / SIMULATIONS <= 0.98
    # Rows that are taken for independent give intervals that miss the truth most of the time.
    assert by_row / SIMULATIONS < 0.7
    # Two equally good models differ "significantly" about once in twenty times.
    assert 0.02 <= excluded / SIMULATIONS <= 0.09


def holds(scored: Scored, truth: float) -> bool:
    found = interval(scored)
    return found["low"] <= truth <= found["high"]


def test_a_difference_is_paired() -> None:
    """What makes a case hard for both models cancels out, so the difference has a narrower interval than the scores."""
    cases, one, other = simulate(np.random.default_rng(2), gain=0.1)
    bootstrap = CaseBootstrap(cases, 0)
    first, second = (bootstrap.scores(columns, METRIC)["token_f1"] for columns in (one, other))
    change, single = difference(first, second), interval(first)
    assert change["high"] - change["low"] < single["high"] - single["low"]
    assert 0 < change["low"] < 0.1 < change["high"]
    assert change["p"] <= 0.05
    assert difference(first, first) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "detectable": 0.0}


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(5)

    def compare(gain: float) -> dict[str, float | None]:
        cases, one, other = simulate(generator, gain)
        bootstrap = CaseBootstrap(cases, 0, 200)
        return difference(*(bootstrap.scores(columns, METRIC)["token_f1"] for columns in (one, other)))

    gain = float(np.mean([compare(0.0)["detectable"] for _ in range(20)]))
    found = np.mean([compare(gain)["low"] > 0 for _ in range(150)])
    assert 0.7 < found < 0.9


def test_scores_are_those_of_all_questions_and_draws_repeat() -> None:
    cases, one, _ = simulate(np.random.default_rng(3))
    first, again = (CaseBootstrap(cases, 7).scores(one, METRIC)["token_f1"] for _ in range(2))
    assert first.value == pytest.approx(one["token_f1"].mean())
    assert np.array_equal(first.draws, again.draws)


def test_few_cases_have_no_interval_and_no_p() -> None:
    """Three cases that agree would be "significant" every time."""
    columns = {"token_f1": np.array([0.6, 0.7, 0.8]), "examples": np.ones(3)}
    scored = CaseBootstrap(["a", "b", "c"], 0).scores(columns, METRIC)["token_f1"]
    assert interval(scored) == {"value": 0.7, "low": None, "high": None}
    assert difference(scored, scored) == {"value": 0.0, "low": None, "high": None, "p": None, "detectable": None}


def test_what_no_question_measures_has_no_interval() -> None:
    columns = {"right": np.zeros(4), "closed": np.zeros(4)}
    scored = CaseBootstrap(["a", "a", "b", "c"], 0).scores(columns, [METRICS["closed_accuracy"]])["closed_accuracy"]
    assert interval(scored) == {"value": None, "low": None, "high": None}
    assert difference(scored, scored)["p"] is None
