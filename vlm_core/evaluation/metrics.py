"""The metrics of an evaluation, one row each. To add a metric, add a row to `METRICS`: nothing else lists metrics.

A metric has two functions. `columns` turns one answer into numbers that can be added up. `score` computes the score
from their sums. So a score over a split, over a group of questions and over each bootstrap draw is the same function
of other sums. `uses` lists where the metric appears: scores, report, model card, registry and trackers call `names`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import NamedTuple

import numpy as np

from vlm_core.data.closed_questions import YES_NO_ANSWERS, choice, normalize
from vlm_core.evaluation.clinical.agreement import ADDED, AGREED, CONTRADICTED, OMITTED, totals
from vlm_core.evaluation.clinical.assertions import assertions_of
from vlm_core.evaluation.text_scores import bleu_counts, bleu_of, exact_match, rouge_l, word_scores

DECIMALS = 4  # of a published score
PRIMARY = "token_f1"  # for plots, visual reliance as one number, and verdicts whose own metric has no value


class ScoredAnswer(NamedTuple):
    """A model's answer to a question, and how likely the model finds the reference (natural logarithm, tokens).

    If `generated` is false, no model wrote the text. Then the other numbers mean nothing.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    logprob: float = 0.0
    reference_tokens: int = 0
    generated: bool = True
    thought: str = ""  # what the model wrote for itself before the text; no metric reads it
    confidence: float | None = None  # the probability that the model gives to its text


Columns = dict[str, np.ndarray]  # float64; one entry per answer, or sums of them in any shape


class Expected(NamedTuple):
    """What an answer is compared with."""

    reference: str
    choices: Sequence[str] | None = None  # the normalised answers that a closed question can have; None: it is open
    question: str = ""


ColumnsOf = Callable[[ScoredAnswer, Expected], Mapping[str, float]]  # numbers of an answer that can be added up


class Use(Flag):
    """Where a metric appears."""

    NOWHERE = 0  # in result.json and the report's table of scores only, as every metric
    HEADLINE = auto()  # a card at the top of the report, the log, and the history of champions
    CARD = auto()  # the model card, and the page of a run in Prefect and MLflow
    CHART = auto()  # a metric of the MLflow run, which draws a chart of each
    TAG = auto()  # a tag of a registered version
    COMPARED = auto()  # differences to other models and to the controls
    GROUPS = auto()  # the report's table of groups of questions
    RELIANCE = auto()  # what the right image adds
    ANSWERS = auto()  # beside each answer in the report; only for means, which have a value for each answer
    TRAINING = auto()  # the scores at each validation of a training; only what needs no slow imports
    DECIDES = auto()  # `registry.metric` may name it, so it is compared in groups as well (see also RegistryConfig)


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, what it is called, and where it appears."""

    name: str
    title: str
    columns: ColumnsOf
    score: Callable[[Columns], np.ndarray]  # of summed columns; NaN if there is nothing to score
    uses: Use = Use.NOWHERE
    about: str = ""  # one clause for readers of the report
    is_error: bool = False  # lower is better
    avoided_by: str = ""  # of errors: the metric of what is left out, since answers that say nothing have no errors
    is_mean: bool = False  # the mean of a column named as the metric, which predictions.parquet then has

    def __post_init__(self) -> None:
        if Use.ANSWERS in self.uses and not self.is_mean:
            raise ValueError(f"metric {self.name}: only a mean has a value beside each answer; leave out Use.ANSWERS")

    @property
    def words(self) -> str:
        """The title as it is written inside a sentence."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]


def mean_metric(name: str, title: str, score: Callable[[str, str], float], uses: Use, about: str) -> Metric:
    """Returns a metric that is the mean of `score(prediction, reference)` over all answers."""
    return Metric(
        name,
        title,
        columns=lambda answer, expected: {name: score(answer.text, expected.reference)},
        score=lambda sums: _ratio(sums[name], sums["examples"]),
        uses=uses,
        about=about,
        is_mean=True,
    )


def ratio_metric(
    name: str,
    title: str,
    columns: ColumnsOf,
    ratio: tuple[str, str],
    uses: Use,
    about: str,
    *,
    is_error: bool = False,
    avoided_by: str = "",
) -> Metric:
    """Returns a metric that divides the sum of one column by the sum of another."""
    (above, below), errors = ratio, {"is_error": is_error, "avoided_by": avoided_by}
    return Metric(name, title, columns, lambda sums: _ratio(sums[above], sums[below]), uses, about, **errors)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _closed_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    right, choices = normalize(expected.reference), expected.choices  # may be an answer that training never gave
    is_right = choices is not None and choice(answer.text, [*{*choices, right}]) == right
    return {"closed": float(choices is not None), "right": float(is_right)}


def _bleu_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    return bleu_counts(answer.text, expected.reference)


def _clinical_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    outcomes = totals(answer.text, expected.reference, expected.question)
    asserted = sum(outcomes[name] for name in (AGREED, CONTRADICTED, OMITTED))
    return {**outcomes, "reference_asserts": asserted, "answer_asserts": asserted - outcomes[OMITTED] + outcomes[ADDED],
            "understood": float(bool(assertions_of(expected.reference, expected.question)))}  # fmt: skip


def _clinical_f1(sums: Columns) -> np.ndarray:
    return _ratio(2 * sums[AGREED], sums["reference_asserts"] + sums["answer_asserts"])


def _likelihood_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    return {"logprob": answer.logprob, "reference_tokens": answer.reference_tokens}


def _length_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    return {"generated": float(answer.generated), "tokens": answer.tokens, "truncated": float(answer.truncated)}


def _yes_no_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    """Returns which of yes and no the reference is, and whether the answer is right."""
    reference, right = normalize(expected.reference), _closed_columns(answer, expected)["right"]
    return {key: value for word in YES_NO_ANSWERS for key, value in (
        (f"is_{word}", float(reference == word)), (f"{word}_right", right * (reference == word)))}  # fmt: skip


BINS = 10  # of confidence, of equal width


def _calibration_columns(answer: ScoredAnswer, expected: Expected) -> Mapping[str, float]:
    """Returns, in the bin of the answer's confidence, by how much this exceeds 1 if the answer is right, else 0."""
    closed = _closed_columns(answer, expected)
    counts = closed["closed"] and answer.confidence is not None
    found = {f"overconfidence_{number}": 0.0 for number in range(BINS)} | {"with_confidence": float(bool(counts))}
    if counts:
        number = min(int((answer.confidence or 0.0) * BINS), BINS - 1)
        found[f"overconfidence_{number}"] = (answer.confidence or 0.0) - closed["right"]
    return found


def _calibration_error(sums: Columns) -> np.ndarray:
    """Returns the expected calibration error (Guo et al. 2017): the mean gap of a bin, weighted by its answers."""
    gaps = np.sum([np.abs(sums[f"overconfidence_{number}"]) for number in range(BINS)], axis=0)
    return _ratio(gaps, sums["with_confidence"])


_WORDS = "words are compared in lower case without punctuation and articles, as for SQuAD"
_FULL = Use.CARD | Use.CHART | Use.COMPARED | Use.GROUPS | Use.DECIDES
_ROWS = (
    mean_metric("token_f1", "Token F1", lambda said, expected: word_scores(said, expected).f1,
                _FULL | Use.HEADLINE | Use.TAG | Use.RELIANCE | Use.ANSWERS | Use.TRAINING,
                "overlap of words with the reference, 0 to 1"),
    mean_metric("token_precision", "Token precision", lambda said, expected: word_scores(said, expected).precision,
                Use.NOWHERE, "share of the answer's words that are in the reference"),
    mean_metric("token_recall", "Token recall", lambda said, expected: word_scores(said, expected).recall,
                Use.NOWHERE, "share of the reference's words that are in the answer"),
    mean_metric("rouge_l", "ROUGE-L", rouge_l, _FULL | Use.TAG,
                "longest common subsequence of words, as F1"),
    Metric("bleu_1", "BLEU-1", _bleu_columns, bleu_of(1), Use.NOWHERE, "common words, over the whole split"),
    Metric("bleu_4", "BLEU-4", _bleu_columns, bleu_of(4), Use.CARD | Use.COMPARED,
           "common runs of up to four words, over the whole split"),
    mean_metric("exact_match", "Exact match", exact_match, _FULL, _WORDS),
    ratio_metric("closed_accuracy", "Closed accuracy", _closed_columns, ("right", "closed"),
                 _FULL | Use.HEADLINE | Use.TAG | Use.RELIANCE | Use.TRAINING,
                 "share of the closed questions (few possible answers, or yes/no) that are answered right"),
    ratio_metric("sensitivity", "Sensitivity", _yes_no_columns, ("yes_right", "is_yes"), Use.NOWHERE,
                 "share of the yes/no questions that are answered yes among those whose reference is yes"),
    ratio_metric("specificity", "Specificity", _yes_no_columns, ("no_right", "is_no"), Use.NOWHERE,
                 "share of the yes/no questions that are answered no among those whose reference is no"),
    Metric("clinical_agreement", "Clinical agreement", _clinical_columns, _clinical_f1,
           _FULL | Use.HEADLINE | Use.TAG | Use.RELIANCE,
           "F1 of what answer and reference assert: findings, side, size, modality, region and more"),
    ratio_metric("contradictions", "Contradictions", _clinical_columns, (CONTRADICTED, "reference_asserts"),
                 Use.HEADLINE | Use.CARD | Use.CHART | Use.COMPARED | Use.GROUPS | Use.TAG,
                 "share of the reference's assertions that the answer contradicts; lower is better",
                 is_error=True, avoided_by="omissions"),
    ratio_metric("omissions", "Omissions", _clinical_columns, (OMITTED, "reference_asserts"), Use.NOWHERE,
                 "share of the reference's assertions that the answer leaves out"),
    ratio_metric("additions", "Additions", _clinical_columns, (ADDED, "answer_asserts"), Use.NOWHERE,
                 "share of the answer's assertions that the reference lacks"),
    ratio_metric("clinical_coverage", "Clinical coverage", _clinical_columns, ("understood", "examples"), Use.NOWHERE,
                 "share of the references that assert something that is understood"),
    ratio_metric("logprob", "Log-probability per token", _likelihood_columns, ("logprob", "reference_tokens"),
                 Use.COMPARED | Use.RELIANCE | Use.DECIDES, "of the reference, in nats"),
    Metric("perplexity", "Perplexity", _likelihood_columns,
           lambda sums: np.exp(-_ratio(sums["logprob"], sums["reference_tokens"])),
           Use.CARD | Use.CHART | Use.TAG | Use.GROUPS, "of the reference"),
    Metric("calibration_error", "Calibration error", _calibration_columns, _calibration_error,
           about="gap between confidence and share of right answers, on closed questions; lower is better",
           is_error=True),
    ratio_metric("mean_tokens", "Tokens per answer", _length_columns, ("tokens", "generated"), Use.NOWHERE, ""),
    ratio_metric("truncated_share", "Cut off", _length_columns, ("truncated", "generated"), Use.GROUPS,
                 "share of the answers that reached evaluation.max_new_tokens"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
"""Every metric by name, in the order in which people read them."""


def metrics_for(uses: Use) -> list[Metric]:
    """Returns the metrics that have at least one of `uses`, in order."""
    return [metric for metric in METRICS.values() if metric.uses & uses]


def names(uses: Use) -> list[str]:
    """Returns the names of the metrics that have at least one of `uses`, in order."""
    return [metric.name for metric in metrics_for(uses)]


def metrics_in(scores: Mapping[str, object], uses: Use) -> list[Metric]:
    """Returns the metrics with `uses` that `scores` has: the results of older versions lack newer metrics."""
    return [metric for metric in metrics_for(uses) if metric.name in scores]


def columns_of(
    answers: Sequence[ScoredAnswer], expected: Sequence[Expected], metrics: Iterable[Metric] | None = None
) -> dict[str, np.ndarray]:
    """Returns the columns of `metrics` (by default of all), one entry per answer; "examples" counts the answers."""
    functions = {metric.columns: None for metric in metrics or METRICS.values()}  # several metrics share one
    rows = [_row(*item, functions) for item in zip(answers, expected, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def _row(answer: ScoredAnswer, expected: Expected, functions: Iterable[ColumnsOf]) -> dict[str, float]:
    row = {"examples": 1.0}
    for columns in functions:
        row |= columns(answer, expected)
    return row


def rounded(value: float) -> float | None:
    """Returns a score as it is published; None if there was nothing to score or the score is not finite."""
    return round(float(value), DECIMALS) if math.isfinite(value) else None
