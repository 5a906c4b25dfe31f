"""Corrects a model's confidence by Platt scaling, so that of the answers with confidence 0.8, about 80 % are right.

It holds for closed questions only: of open ones, an evaluation does not count which answers are right.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vlm_core.data.closed_questions import YES_NO_ANSWERS, normalize

EDGE = 1e-6  # confidences are kept so far away from 0 and 1, whose logits are infinite


def fit(confidence: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns `{slope, intercept}` of a logistic regression of "right" on the confidence's logit (Platt 1999).

    Targets are smoothed as in Platt's paper, so that perfect answers give no infinite slope. The slope is at least 0: a
    model that is surer when it is wrong gets its share of right answers as confidence of every answer.
    """
    from scipy.optimize import minimize

    positive = right > 0
    hits, misses = int(positive.sum()), int((~positive).sum())
    targets = np.where(positive, (hits + 1) / (hits + 2), 1 / (misses + 2))
    logits = _logit(confidence)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scores = values[0] * logits + values[1]
        gaps = 1 / (1 + np.exp(-scores)) - targets
        return float((np.logaddexp(0, scores) - targets * scores).sum()), np.array([gaps @ logits, gaps.sum()])

    share = float(targets.mean())
    start = np.array([0.0, np.log(share / (1 - share))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return {"slope": round(float(found.x[0]), 6), "intercept": round(float(found.x[1]), 6)}


def calibrated(confidence: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Returns confidences, corrected by what `fit` returned."""
    return 1 / (1 + np.exp(-(fitted["slope"] * _logit(confidence) + fitted["intercept"])))


def _logit(confidence: np.ndarray) -> np.ndarray:
    kept = np.clip(confidence, EDGE, 1 - EDGE)
    return np.log(kept / (1 - kept))


def identity_of(question: str) -> str:
    """Returns a hash by which a served model knows a closed question: its settings hold no text of the data."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def is_closed(question: str, answer: str, closed: Collection[str]) -> bool:
    """Returns whether a question is closed, without its reference: it is in `closed`, or answered yes or no."""
    return identity_of(question) in closed or normalize(answer).split()[:1] in [[word] for word in YES_NO_ANSWERS]


def served_confidence(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a version needs to give confidences: `{slope, intercept, closed, ...}`, or a `{reason}`."""
    found = result.get("calibration")
    if result["generation"]["temperature"]:
        return {"reason": "the evaluation sampled its answers (evaluation.temperature), and served ones are not"}
    if not found:
        return {"reason": "the evaluation had too few closed questions to calibrate on"}
    return {**found["served"], "questions": found["questions"]}
