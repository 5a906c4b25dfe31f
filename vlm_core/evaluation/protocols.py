"""Published ways to score answers, by name, so that scores can be compared with those of papers.

A protocol says what is added to each question, which questions are closed, how texts are compared, where that was
published, and what of it this project leaves out. Its metrics are rows like those of `metrics.py`. Raise `version` if
the same answers must give other scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_core.data.closed_questions import closed_kind, possible_answers
from vlm_core.data.conversation import Conversation, add_to_question, last_question
from vlm_core.evaluation.intervals import CaseBootstrap, interval
from vlm_core.evaluation.metrics import (
    METRICS,
    Columns,
    ColumnsOf,
    Expected,
    Metric,
    ScoredAnswer,
    Use,
    columns_of,
    ratio_metric,
)
from vlm_core.evaluation.protocol_scores import (
    divided,
    is_yes_no,
    kit_closed,
    kit_open,
    kit_yes_no,
    llava_closed,
    llava_open,
    med_columns,
    path_closed,
    path_open,
)
from vlm_core.evaluation.scores import Question
from vlm_core.evaluation.text_scores import bleu_of


@dataclass(frozen=True)
class Protocol:
    """A published way to score answers."""

    title: str
    version: int
    source: str
    leaves_out: str  # a sentence without its full stop
    metrics: tuple[Metric, ...]
    request: Callable[[Expected], str] | None = None  # what follows each question in the prompt; None: nothing


def _share(name: str, title: str, columns: ColumnsOf, part: str, about: str) -> Metric:
    """Returns a metric that divides the column `part`, whose name ends with `_closed` or `_open`, by their number."""
    return ratio_metric(name, title, columns, (part, part.rpartition("_")[2]), Use.NOWHERE, about)


def _total(columns: ColumnsOf) -> Metric:
    def score(sums: Columns) -> np.ndarray:
        return (sums["right_closed"] + sums["right_open"]) / sums["examples"]

    return Metric("accuracy", "Accuracy", columns, score, about="closed questions answered right and open ones exactly")


def _bleu(order: int, columns: ColumnsOf) -> Metric:
    def score(sums: Columns) -> np.ndarray:
        suffix = "_open"
        return bleu_of(order)({key.removesuffix(suffix): sums[key] for key in sums if key.endswith(suffix)})

    return Metric(f"open_bleu_{order}", f"Open BLEU-{order}", columns, score, about="over all open questions")


def _kit_metrics(columns: ColumnsOf) -> tuple[Metric, ...]:
    return (
        _total(columns),
        _share("closed_accuracy", "Closed accuracy", columns, "right_closed", ""),
        _share("open_exact_match", "Open exact match", columns, "right_open", ""),
        _share("open_recall", "Open recall", columns, "recall_open", "of distinct words"),
        _share("open_f1", "Open F1", columns, "f1_open", "of distinct words"),
    )


_CONCISELY, _SHORT = "Please answer the question concisely.", "Answer the question using a single word or phrase."
_LLAVA = divided(is_yes_no, llava_closed, llava_open)
_PATH = divided(is_yes_no, path_closed, path_open)
_SLAKE = divided(lambda expected: expected.choices is not None, kit_closed, kit_open)
_KIT = divided(is_yes_no, kit_yes_no, kit_open)

PROTOCOLS: dict[str, Protocol] = {
    "medpix": Protocol(
        "MedPix-VQA, as this project scores it", 1, "no paper scores MedPix-VQA: these are the scores of this report",
        "Nothing",
        tuple(METRICS[name] for name in ("closed_accuracy", "token_f1", "rouge_l", "bleu_4", "exact_match")),
    ),
    "vqa_rad_llava_med": Protocol(
        "VQA-RAD, SLAKE and PathVQA, as LLaVA-Med scores them", 1,
        "Li et al., LLaVA-Med, NeurIPS 2023; llava/eval/run_eval.py of microsoft/LLaVA-Med, v1.0",
        "The column answer_type: a question is closed if its reference is yes or no. The script drops a closed "
        "question with the opposite answer, which raises its accuracy; here that answer is wrong. The candidate set of "
        "\"open accuracy\" and the list of contractions (dont = don't) are left out",
        (
            _share("closed_accuracy", "Closed accuracy", _LLAVA, "right_closed", "yes or no within the answer"),
            _share("open_recall", "Open recall", _LLAVA, "recall_open", "share of the reference's words"),
            _share("open_f1", "Open F1", _LLAVA, "f1_open", ""),
        ),
    ),
    "vqa_rad_medgemma": Protocol(
        "VQA-RAD and SLAKE, as MedGemma reports them", 1,
        "Sellergren et al., MedGemma Technical Report, arXiv:2507.05201",
        "Google has published no code: words are compared as for SQuAD. VQA-RAD there is the split of Yang et al. 2024 "
        "by image, which your data has to have",
        (METRICS["token_f1"], METRICS["closed_accuracy"]),
    ),
    "slake_medevalkit": Protocol(
        "SLAKE, as MedEvalKit scores it", 1,
        "utils/SLAKE/SLAKE.py of alibaba-damo-academy/MedEvalKit, which scored Lingshu (arXiv:2506.07044)",
        "The column answer_type: a question is closed if training answers it from a small set, or by yes or no. "
        "Chinese questions, \\boxed{} answers, sentence BLEU, ROUGE and the judge are left out",
        _kit_metrics(_SLAKE),
        lambda expected: _CONCISELY if expected.choices is None else _SHORT,
    ),
    "vqa_rad_medevalkit": Protocol(
        "VQA-RAD and PathVQA, as MedEvalKit scores them", 1,
        "utils/VQA_RAD/VQA_RAD.py of alibaba-damo-academy/MedEvalKit, which scored Lingshu (arXiv:2506.07044)",
        "\\boxed{} answers, sentence BLEU, ROUGE and the judge",
        _kit_metrics(_KIT),
        lambda expected: "Please output 'yes' or 'no'(no extra output)." if is_yes_no(expected) else _CONCISELY,
    ),
    "pathvqa": Protocol(
        "PathVQA, as its authors score it", 1, "He et al., PathVQA, arXiv:2003.10286",
        "Their code is not published with the scores: texts are compared as for SQuAD, and BLEU is sacrebleu's over "
        "all open questions",
        (
            _total(_PATH),
            _share("closed_accuracy", "Closed accuracy", _PATH, "right_closed", "yes or no, exactly"),
            _share("open_exact_match", "Open exact match", _PATH, "right_open", ""),
            _share("open_f1", "Open F1", _PATH, "f1_open", ""),
            *(_bleu(order, _PATH) for order in (1, 2, 3)),
        ),
    ),
    "vqa_med_2020": Protocol(
        "VQA-Med 2020 and 2021, as ImageCLEF scores them", 1,
        "Ben Abacha et al., VQA-Med at ImageCLEF 2020; Evaluator-VQA-Med-2020.py of abachaa/VQA-Med-2020",
        "BLEU, which the script computes on stems without NLTK's stop words, and the list of contractions (dont = "
        "don't). VQA-Med 2019 has another evaluator",
        (ratio_metric("accuracy", "Accuracy", med_columns, ("right_med", "examples"), Use.NOWHERE,
                      "the same words as the reference"),),
    ),
}  # fmt: skip
"""Every protocol by name; `EvaluationConfig.protocols` repeats the names."""


def with_request(name: str, conversation: Conversation, closed_questions: Mapping[str, list[str]]) -> Conversation:
    """Returns a conversation with the protocol's request after its last question, or as it is if there is none."""
    request = PROTOCOLS[name].request
    if request is None:
        return conversation
    text, reference = last_question(conversation)
    kind = closed_kind(text, reference, closed_questions)
    expected = Expected(reference, possible_answers(kind, closed_questions), text)
    return add_to_question(conversation, request(expected))


def score_protocol(
    name: str, questions: Sequence[Question], variants: Mapping[str, Sequence[ScoredAnswer]], seed: int
) -> dict[str, Any]:
    """Returns `{title, version, source, leaves_out, request, metrics, scores}` of answers under a protocol.

    `metrics` is `{name: title}` and `scores` `{variant: {metric: {value, low, high}}}`, with intervals over cases.
    """
    protocol, bootstrap = PROTOCOLS[name], CaseBootstrap([q.case_id for q in questions], seed)
    expected = [question.expected for question in questions]
    scored = {
        variant: bootstrap.scores(columns_of(answers, expected, protocol.metrics), protocol.metrics)
        for variant, answers in variants.items()
    }
    found = {
        variant: {key: interval(values) for key, values in by_metric.items()} for variant, by_metric in scored.items()
    }
    return {
        "title": protocol.title,
        "version": protocol.version,
        "source": protocol.source,
        "leaves_out": protocol.leaves_out,
        "requests": sorted({protocol.request(item) for item in expected}) if protocol.request else [],
        "metrics": {metric.name: metric.title for metric in protocol.metrics},
        "scores": found,
    }
