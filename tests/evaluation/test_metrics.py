"""Scores equal those computed by hand, and those of the packages that others report with."""

import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from vlm_core.data.closed_questions import choice
from vlm_core.evaluation.metrics import METRICS, Expected, ScoredAnswer, columns_of
from vlm_core.evaluation.text_scores import exact_match, package_versions, word_scores


def test_exact_match_forgives_case_articles_and_punctuation() -> None:
    assert exact_match("The left lung.", "left lung") == 1.0
    assert exact_match("left", "right") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "precision", "recall"),
    [
        ("a large mass", "large mass", 1, 1),
        ("large mass left", "mass", 1 / 3, 1),
        ("mass mass", "mass", 1 / 2, 1),  # a repeated word counts once
        ("nothing", "mass", 0, 0),
        ("", "mass", 0, 0),
    ],
)
def test_words_in_common(prediction: str, reference: str, precision: float, recall: float) -> None:
    scores = word_scores(prediction, reference)
    assert (scores.precision, scores.recall) == pytest.approx((precision, recall))
    assert scores.f1 == pytest.approx(2 * precision * recall / (precision + recall) if precision else 0)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Left.", ("left", "right"), "left"),
        ("It is on the left side.", ("left", "right"), "left"),
        ("Left, not right.", ("left", "right"), "left"),
        ("Either left or right.", ("left", "right"), None),
        ("Yes, there is no fracture.", ("no", "yes"), "yes"),
        ("There is nothing.", ("no", "yes"), None),  # "nothing" is another word than "no"
        ("Left lung", ("left", "left lung"), "left lung"),
        ("The finding is in the left lung.", ("left lung", "lung"), "left lung"),
        ("", ("left", "right"), None),
    ],
)
def test_which_answer_a_prediction_gives(prediction: str, answers: tuple[str, ...], expected: str | None) -> None:
    assert choice(prediction, answers) == expected


WORDS = ["the", "a", "mass", "lesion", "left", "right", "lung", "in", "of", "upper", "no", "small,", "CT.", "MR"]


def texts(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, 12))) or "mass" for _ in range(count)]


def scores_of(predictions: list[str], references: list[str]) -> dict[str, float]:
    replies = [ScoredAnswer(text, 3, False, -2.0, 4) for text in predictions]
    sums = {
        k: column.sum() for k, column in columns_of(replies, [Expected(reference) for reference in references]).items()
    }
    return {name: float(metric.score(sums)) for name, metric in METRICS.items()}


@pytest.mark.parametrize("count", [1, 2, 60])  # few texts have no 4-gram in common: smoothing shows
def test_bleu_and_rouge_are_those_of_their_packages(count: int) -> None:
    predictions, references = texts(1, count), texts(2, count)
    scores = scores_of(predictions, references)
    for order in (1, 4):
        theirs = BLEU(lowercase=True, max_ngram_order=order).corpus_score(predictions, [references])
        assert scores[f"bleu_{order}"] == pytest.approx(theirs.score / 100)
    rouge = RougeScorer(["rougeL"])
    fmeasures = [rouge.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert scores["rouge_l"] == pytest.approx(np.mean(fmeasures))
    assert "version:" in package_versions()["bleu"]


def test_closed_questions_alone_count_for_their_accuracy() -> None:
    replies = [
        ScoredAnswer(text, 2, truncated, -1.0, 2)
        for text, truncated in (("Left", False), ("no", True), ("Mass", False))
    ]
    columns = columns_of(
        replies, [Expected("left", ("left", "right")), Expected("Yes", ("no", "yes")), Expected("mass")]
    )
    sums = {name: column.sum() for name, column in columns.items()}
    assert METRICS["closed_accuracy"].score(sums) == 0.5
    assert METRICS["exact_match"].score(sums) == pytest.approx(2 / 3)
    assert METRICS["truncated_share"].score(sums) == pytest.approx(1 / 3)
    assert METRICS["perplexity"].score(sums) == pytest.approx(np.exp(0.5))
    # An answer that training never gave is right where it is the reference.
    unseen = columns_of([ScoredAnswer("X-ray", 2, False, -1.0, 2)], [Expected("X-ray", ("ct", "mr"))])
    assert unseen["right"].tolist() == [1.0]
    nothing = {name: column[2] for name, column in columns.items()}
    assert np.isnan(METRICS["closed_accuracy"].score(nothing))
