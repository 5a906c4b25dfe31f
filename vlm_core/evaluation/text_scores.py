"""How well one text agrees with another: words in common, ROUGE-L, and the counts that BLEU is made of.

Many questions have the same answers, so results are kept in memory.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from vlm_core.data.closed_questions import normalize

_BLEU = BLEU(lowercase=True, effective_order=False)


class WordScores(NamedTuple):
    """Precision, recall and F1 of two normalised texts as bags of words (SQuAD's definition), from 0 to 1."""

    precision: float
    recall: float
    f1: float


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1.0 if both texts are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(reference))


@cache
def word_scores(prediction: str, reference: str) -> WordScores:
    """Returns the overlap of words; a repeated word counts as often as it is in both."""
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return WordScores(*[float(predicted == expected)] * 3)
    common = (Counter(predicted) & Counter(expected)).total()
    precision, recall = common / len(predicted), common / len(expected)
    return WordScores(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


@cache
def rouge_l(prediction: str, reference: str) -> float:
    """Returns ROUGE-L F1 as the package rouge-score computes it, without stemming, from 0 to 1."""
    return _rouge().score(reference, prediction)["rougeL"].fmeasure


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds: it imports all of nltk

    return RougeScorer(["rougeL"], use_stemmer=False)


@cache
def bleu_counts(prediction: str, reference: str) -> Mapping[str, float]:
    """Returns counts of n-grams and lengths. `bleu_of` computes BLEU from their sums."""
    bleu = _BLEU.corpus_score([prediction], [[reference]])
    return {
        **{f"bleu_matches_{n}": count for n, count in enumerate(bleu.counts, start=1)},
        **{f"bleu_ngrams_{n}": total for n, total in enumerate(bleu.totals, start=1)},
        "bleu_length": bleu.sys_len,
        "bleu_reference_length": bleu.ref_len,
    }


def bleu_of(order: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
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


def package_versions() -> dict[str, str]:
    """Returns which packages computed BLEU and ROUGE-L, in the form in which papers report them."""
    _BLEU.corpus_score(["."], [["."]])  # sacrebleu has a signature only after its first score
    return {"bleu": str(_BLEU.get_signature()), "rouge_l": f"rouge-score {version('rouge-score')}, without stemming"}
