"""How far a model's confidence can be trusted, on closed questions: which errors leaving out doubtful answers avoids.

An answer's confidence is the probability that the model gives to the text that it generated. Served answers get it
corrected by Platt scaling (`served_confidence.py`), which is fitted here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_core.evaluation.metrics import BINS, Columns, ScoredAnswer
from vlm_core.evaluation.served_confidence import calibrated, fit, identity_of

ENOUGH = 20  # closed questions
BOUNDS = (0.01, 0.05, 0.1)  # shares of wrong answers
POINTS = 50  # of the curve
FOLDS = 5


def calibration(
    answers: Sequence[ScoredAnswer],
    columns: Columns,
    cases: Sequence[str],
    closed_questions: Mapping[str, Sequence[str]],
) -> dict[str, Any] | None:
    """Returns `{questions, bins, curve, coverage, served}` of the closed questions; None with fewer than ENOUGH.

    `bins` are `{questions, confidence, accuracy}` of ten ranges of confidence, without empty ones. `curve` has pairs of
    (share of the questions that are answered, share of these that are wrong), the most confident answers first.
    `coverage` is `{bound: largest share that can be answered with at most that share wrong}`. `served` is what a served
    model needs to correct its confidence; `error` in it is the calibration error on cases that it was not fitted to,
    and `uncorrected` the one without it. The error is None with fewer than FOLDS cases.
    """
    counted = columns["with_confidence"] > 0
    right = columns["right"][counted]
    confidence = np.array([answer.confidence or 0.0 for answer in answers])[counted]
    if len(right) < ENOUGH:
        return None
    covered, errors = _risk_coverage(confidence, right)
    every = np.unique(np.linspace(0, len(covered) - 1, min(POINTS, len(covered))).round().astype(int))
    return {
        "questions": len(right),
        "bins": _bins(confidence, right),
        "curve": [[round(float(covered[i]), 4), round(float(errors[i]), 4)] for i in every],
        "coverage": {f"{bound:g}": round(float(covered[errors <= bound].max(initial=0)), 4) for bound in BOUNDS},
        "served": {
            **fit(confidence, right),
            "uncorrected": calibration_error(confidence, right),
            "error": _held_out_error(confidence, right, np.array(cases)[counted]),
            "closed": sorted(map(identity_of, closed_questions)),
        },
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error (Guo et al. 2017)."""
    gaps = (entry["questions"] * abs(entry["confidence"] - entry["accuracy"]) for entry in _bins(confidence, right))
    return round(sum(gaps) / len(right), 4)


def _held_out_error(confidence: np.ndarray, right: np.ndarray, cases: np.ndarray) -> float | None:
    """Returns the calibration error of corrected confidences, each corrected by a fit to other cases."""
    _, of_case = np.unique(cases, return_inverse=True)
    if of_case.max() + 1 < FOLDS:
        return None
    corrected = np.empty_like(confidence)
    for fold in range(FOLDS):
        inside = of_case % FOLDS == fold
        corrected[inside] = calibrated(confidence[inside], fit(confidence[~inside], right[~inside]))
    return calibration_error(corrected, right)


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "questions": int((number == i).sum()),
            "confidence": round(float(confidence[number == i].mean()), 4),
            "accuracy": round(float(right[number == i].mean()), 4),
        }
        for i in sorted(set(number.tolist()))
    ]


def _risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (coverage, error) for each confidence as threshold, falling: equal confidences are answered together."""
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-1.0))  # of each run of equal confidences
    answered = last + 1
    return answered / len(right), np.cumsum(1 - right[order])[last] / answered
