"""Scores on cases that can be computed by hand."""

import pytest

from vlm_core.generation.metrics import exact_match, score, token_f1


def test_exact_match_forgives_case_articles_and_punctuation() -> None:
    assert exact_match("The left lung.", "left lung") == 1.0
    assert exact_match("left", "right") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("a large mass", "large mass", 1.0),
        ("large mass left", "mass", 2 * (1 / 3) / (4 / 3)),
        ("mass mass", "mass", 2 * (1 / 2) / (3 / 2)),  # a repeated word counts once
        ("nothing", "mass", 0.0),
        ("", "mass", 0.0),
    ],
)
def test_token_f1(prediction: str, reference: str, score: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(score)


def record(kind: str | None, reference: str, prediction: str, shuffled: str | None) -> dict:
    return {
        "closed_kind": kind,
        "reference": reference,
        "prediction": prediction,
        "prediction_shuffled": shuffled,
        "generated_tokens": 2,
        "truncated": False,
    }


def test_summary_counts_closed_questions_by_kind_and_leaves_open_ones_out() -> None:
    scores = score(
        [
            record("side", "Left", "left", "right"),
            record("side", "Right", "right", "right"),
            record("yes/no", "Yes", "no", None),
            record(None, "A mass.", "a mass", "nothing"),
        ]
    )
    assert scores["closed"] == {
        "side": {"examples": 2, "closed_accuracy": 1.0, "closed_accuracy_shuffled": 0.5},
        "yes/no": {"examples": 1, "closed_accuracy": 0.0, "closed_accuracy_shuffled": None},
    }
    assert scores["closed_accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert scores["closed_accuracy_shuffled"] == 0.5
    assert (scores["examples"], scores["token_f1"], scores["exact_match"]) == (4, 0.75, 0.75)
