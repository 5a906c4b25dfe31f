"""Names used in evaluation results, and how scores are written. Imports no torch."""

from collections.abc import Mapping

RIGHT, SHUFFLED, BLANK, QUESTION_ONLY = "right", "shuffled", "blank", "question_only"
"""The conditions under which questions are asked: with their own images, and with controls."""

COMMONEST = "commonest"
"""The baseline without a model: each question gets the commonest training answer to similar questions."""

MODEL = "model"
"""The evaluated model, with the right images."""

VISUAL_RELIANCE = "visual_reliance"
"""What the right images add to shuffled ones: differences in `result.json`, the primary one in registry and MLflow."""

UNSEEN = "not seen in training"
"""The group of questions about cases that are not in the training split."""

DATASET = "dataset"
"""The division of the questions by dataset, and the column with its name, if the run has several datasets."""

HELD_BACK, SELECTION = "held back", "selection"
"""The parts of a divided validation split: the one decides about champions, the other chooses during training."""

NAMES = {
    MODEL: "this model",
    SHUFFLED: "shuffled images",
    BLANK: "black image",
    QUESTION_ONLY: "no image",
    COMMONEST: "commonest answer",
    "base": "base model",
}
"""How people read the names of answers; a model of compare_with is called as the user named it."""

SMALLEST_P = 0.001  # the smallest value that 2,000 draws can give, after rounding


def p_value(change: Mapping[str, float | None]) -> str:
    """Returns the p-value of a difference in words, "" if the difference has none.

    >>> p_value({"p": 0.001}), p_value({"p": 0.0345})
    ('p < 0.001', 'p = 0.035')
    """
    p = change["p"]
    if p is None:
        return ""
    return f"p < {SMALLEST_P}" if p <= SMALLEST_P else f"p = {p:.2g}"


def with_interval(value: Mapping[str, float | None], sign: str = "") -> str:
    """Returns a score with its interval, a dash if there is no value; `sign` "+" is for differences.

    >>> with_interval({"value": 0.5, "low": 0.4, "high": 0.61})
    '0.500 [0.400, 0.610]'
    """
    middle, low, high = (value[key] for key in ("value", "low", "high"))
    if middle is None:
        return "-"
    digits = 0 if max(abs(number or 0) for number in (middle, low, high)) >= 100 else 3
    bounds = "" if low is None else f" [{low:{sign},.{digits}f}, {high:{sign},.{digits}f}]"
    return f"{middle:{sign},.{digits}f}{bounds}"
