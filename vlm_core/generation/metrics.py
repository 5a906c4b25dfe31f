"""Scores of answers against references, per answer and over a split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vlm_core.data.closed import normalize


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1.0 where both are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Returns the F1 of the two normalised texts as bags of words (SQuAD's definition), from 0 to 1."""
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def score(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the scores over `predictions`, the records that `vlm_core.evaluate` writes.

    Accuracies and F1 are from 0 to 1. Closed questions count as right when they match exactly after normalisation;
    `closed_accuracy_shuffled` is that of the same model with images shuffled between cases, None without the control.
    """
    closed = [prediction for prediction in predictions if prediction["closed_kind"]]
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for prediction in closed:
        by_kind[prediction["closed_kind"]].append(prediction)
    return {
        "examples": len(predictions),
        **_accuracies(closed),
        "closed": {kind: {"examples": len(rows), **_accuracies(rows)} for kind, rows in sorted(by_kind.items())},
        "token_f1": _mean(token_f1(p["prediction"], p["reference"]) for p in predictions),
        "token_f1_shuffled": _mean(
            token_f1(p["prediction_shuffled"], p["reference"])
            for p in predictions
            if p["prediction_shuffled"] is not None
        ),
        "exact_match": _mean(exact_match(p["prediction"], p["reference"]) for p in predictions),
        "mean_generated_tokens": _mean(float(p["generated_tokens"]) for p in predictions),
        "truncated_share": _mean(float(p["truncated"]) for p in predictions),
    }


def _accuracies(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    shuffled = [row for row in rows if row["prediction_shuffled"] is not None]
    return {
        "closed_accuracy": _mean(exact_match(row["prediction"], row["reference"]) for row in rows),
        "closed_accuracy_shuffled": _mean(
            exact_match(row["prediction_shuffled"], row["reference"]) for row in shuffled
        ),
    }


def _mean(values: Any) -> float | None:
    values = list(values)
    return round(fmean(values), 4) if values else None
