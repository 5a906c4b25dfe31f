"""Scores of an answer against its reference, and of many of them together.

`columns_of` turns answers into columns of numbers that can be added up; `METRICS` are functions of such sums. So a
score over a split, over a group of questions and over each bootstrap sample is the same function of other sums.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from vlm_core.data.closed_questions import choice, normalize

BLEU_ORDERS = (1, 4)
DECIMALS = 4  # of a published score
_BLEU = BLEU(lowercase=True, effective_order=False)


class WordScores(NamedTuple):
    """Precision, recall and F1 of two normalised texts as bags of words (SQuAD's definition), from 0 to 1."""

    precision: float
    recall: float
    f1: float


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1.0 where both are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(reference))


def word_scores(prediction: str, reference: str) -> WordScores:
    """Returns the overlap of words; a repeated word counts as often as it is in both."""
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return WordScores(*[float(predicted == expected)] * 3)
    common = (Counter(predicted) & Counter(expected)).total()
    precision, recall = common / len(predicted), common / len(expected)
    return WordScores(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


def rouge_l(prediction: str, reference: str) -> float:
    """Returns ROUGE-L F1 as the package rouge-score computes it, without stemming, from 0 to 1."""
    return _rouge().score(reference, prediction)["rougeL"].fmeasure


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds: it imports all of nltk

    return RougeScorer(["rougeL"], use_stemmer=False)


class Reply(NamedTuple):
    """A model's answer to a question, with how likely it finds the reference (natural logarithm, tokens).

    Where `generated` is false, no model wrote the text: its tokens and its likelihood say nothing.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    logprob: float = 0.0
    reference_tokens: int = 0
    generated: bool = True


Columns = dict[str, np.ndarray]  # float64, an entry an answer, or a sum over some of them


def columns_of(replies: Sequence[Reply], references: Sequence[str], closed: Sequence[Sequence[str] | None]) -> Columns:
    """Returns the columns of a list of answers; `closed` has the possible answers of each closed question."""
    rows = [_row(*item) for item in zip(replies, references, closed, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def _row(reply: Reply, reference: str, answers: Sequence[str] | None) -> dict[str, float]:
    # The reference may be an answer that training never gave.
    expected = normalize(reference)
    is_right = answers is not None and choice(reply.text, [*{*answers, expected}]) == expected
    return {
        "examples": 1.0,
        **_text_scores(reply.text, reference),
        "closed": float(answers is not None),
        "right": float(is_right),
        "generated": float(reply.generated),
        "tokens": reply.tokens,
        "truncated": float(reply.truncated),
        "logprob": reply.logprob,
        "reference_tokens": reply.reference_tokens,
    }


@cache
def _text_scores(prediction: str, reference: str) -> Mapping[str, float]:
    """Returns what depends on the two texts alone: many questions have the same answers."""
    words = word_scores(prediction, reference)
    bleu = _BLEU.corpus_score([prediction], [[reference]])
    return {
        "exact_match": exact_match(prediction, reference),
        "token_precision": words.precision,
        "token_recall": words.recall,
        "token_f1": words.f1,
        "rouge_l": rouge_l(prediction, reference),
        **{f"bleu_matches_{n}": count for n, count in enumerate(bleu.counts, start=1)},
        **{f"bleu_ngrams_{n}": total for n, total in enumerate(bleu.totals, start=1)},
        "bleu_length": bleu.sys_len,
        "bleu_reference_length": bleu.ref_len,
    }


def _mean(name: str) -> Callable[[Columns], np.ndarray]:
    return lambda sums: _ratio(sums[name], sums["examples"])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _bleu(order: int) -> Callable[[Columns], np.ndarray]:
    """Returns sacrebleu's corpus BLEU up to n-grams of `order`, from 0 to 1, as a function of summed counts."""
    names = [f"bleu_{kind}_{n}" for kind in ("matches", "ngrams") for n in range(1, order + 1)]

    def compute(*sums: float) -> float:
        *counts, length, reference_length = (round(float(value)) for value in sums)
        return (
            BLEU.compute_bleu(
                counts[:order], counts[order:], length, reference_length, _BLEU.smooth_method, max_ngram_order=order
            ).score
            / 100
        )

    vectorized = np.vectorize(compute, otypes=[np.float64])
    return lambda sums: vectorized(*(sums[name] for name in (*names, "bleu_length", "bleu_reference_length")))


METRICS: dict[str, Callable[[Columns], np.ndarray]] = {
    **{name: _mean(name) for name in ("token_f1", "token_precision", "token_recall", "exact_match", "rouge_l")},
    **{f"bleu_{order}": _bleu(order) for order in BLEU_ORDERS},
    "closed_accuracy": lambda sums: _ratio(sums["right"], sums["closed"]),
    "logprob": lambda sums: _ratio(sums["logprob"], sums["reference_tokens"]),  # natural logarithm, a token
    "perplexity": lambda sums: np.exp(-_ratio(sums["logprob"], sums["reference_tokens"])),
    "mean_tokens": lambda sums: _ratio(sums["tokens"], sums["generated"]),
    "truncated_share": lambda sums: _ratio(sums["truncated"], sums["generated"]),
}
"""Name -> function of summed columns, of any shape."""


def metric_versions() -> dict[str, str]:
    """Returns what computed the scores that others compute as well, in the form in which they are to be reported."""
    _BLEU.corpus_score(["."], [["."]])  # sacrebleu knows its signature once it has scored something
    return {"bleu": str(_BLEU.get_signature()), "rouge_l": f"rouge-score {version('rouge-score')}, without stemming"}


def rounded(value: float) -> float | None:
    """Returns a score as it is published, None where there was nothing to score or the score is not finite."""
    return round(float(value), DECIMALS) if math.isfinite(value) else None
