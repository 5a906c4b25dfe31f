"""Which difference between two models a validation split can show, before anything is trained."""

import math
from collections.abc import Sequence

from vlm_core.evaluation.intervals import DETECTABLE, MIN_CASES

DIFFER = 0.2  # assumed share of the answers of which one model has right and the other wrong


def detectable_accuracy(number: int) -> float:
    """Returns the smallest difference in accuracy that is found in four of five evaluations of `number` answers.

    The answers are independent. Two models differ in DIFFER of them, or in as many as the difference itself needs.
    """
    squared = DETECTABLE**2  # the difference is DETECTABLE standard errors, and its variance is (differ - difference²)
    needed = squared / (number + squared)
    return needed if needed > DIFFER else math.sqrt(DIFFER * needed)


def power_in_words(case_ids: Sequence[str], limit: int | None) -> str:
    """Returns the line of the plan about the cases of a validation split, of which `limit` questions are asked."""
    questions, cases = min(limit or len(case_ids), len(case_ids)), len(set(case_ids))
    cases = min(cases, questions)
    asked = f"{questions:,} validation questions on {cases:,} cases"
    if cases < MIN_CASES:
        return f"{asked}: too few cases for intervals, so no difference between two models can be shown"
    low, high = detectable_accuracy(questions), detectable_accuracy(cases)
    return (
        f"{asked} show a difference in accuracy of {low:.2f} in four evaluations of five; one of {high:.2f} if "
        "the answers about a case are right or wrong together"
    )
