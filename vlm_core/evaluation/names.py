"""Names in the results of an evaluation, and how a score is written, for whoever reads them without torch."""

from collections.abc import Mapping

RIGHT, SHUFFLED, BLANK, QUESTION_ONLY = "right", "shuffled", "blank", "question_only"
"""Conditions that the questions are asked under: their own images, and the controls."""

MODEL = "model"
"""The variant in question: the evaluated model, with the right images."""

UNSEEN = "not seen in training"
"""The group of questions about cases that are not in the training split."""


def with_interval(value: Mapping[str, float | None], sign: str = "") -> str:
    """Returns a score with its interval, a dash where there is none; `sign` "+" is for differences.

    >>> with_interval({"value": 0.5, "low": 0.4, "high": 0.61})
    '0.500 [0.400, 0.610]'
    """
    middle, low, high = (value[key] for key in ("value", "low", "high"))
    if middle is None:
        return "-"
    digits = 0 if max(abs(number or 0) for number in (middle, low, high)) >= 100 else 3
    bounds = "" if low is None else f" [{low:{sign},.{digits}f}, {high:{sign},.{digits}f}]"
    return f"{middle:{sign},.{digits}f}{bounds}"
