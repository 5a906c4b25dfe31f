"""The difference that the plan names is found in four of five simulated evaluations."""

import numpy as np
import pytest

from vlm_core.evaluation.power import DIFFER, detectable_accuracy, power_in_words


@pytest.mark.parametrize("together", [False, True])
def test_the_difference_is_found_four_times_in_five(together: bool) -> None:
    cases, each, draws = 80, 5, 4000
    change = detectable_accuracy(cases if together else cases * each)
    better, worse = (DIFFER + change) / 2, (DIFFER - change) / 2
    generator = np.random.default_rng(0)
    shape = (draws, cases, 1) if together else (draws, cases, each)
    found = generator.choice([1.0, -1.0, 0.0], shape, p=[better, worse, 1 - DIFFER]).mean(axis=2)
    error = found.std(axis=1) / np.sqrt(cases)
    assert np.mean(found.mean(axis=1) > 1.96 * error) == pytest.approx(0.8, abs=0.05)


def test_the_line_names_questions_and_cases() -> None:
    ids = [f"c{number % 100}" for number in range(1000)]
    line = power_in_words(ids, None)
    assert line.startswith("1,000 validation questions on 100 cases show a difference in accuracy of 0.04 in four")
    assert "; one of 0.12 if the answers about a case" in line
    assert power_in_words(ids, 50).startswith("50 validation questions on 50 cases")
    assert "too few cases" in power_in_words(["a", "b"] * 9, None)
