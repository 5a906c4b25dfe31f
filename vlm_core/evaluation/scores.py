"""Scores an evaluation: intervals, differences to other models, and how much the images contribute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_core.data.closed_questions import closed_kind, possible_answers
from vlm_core.data.conversation import last_question
from vlm_core.data.held_back import is_held_back
from vlm_core.evaluation.clinical.agreement import by_category, contradicted
from vlm_core.evaluation.intervals import CaseBootstrap, Scored, difference, interval
from vlm_core.evaluation.metrics import METRICS, Columns, Expected, ScoredAnswer, Use, columns_of, metrics_for, names
from vlm_core.evaluation.result_names import (
    DATASET,
    HELD_BACK,
    MODEL,
    QUESTION_ONLY,
    SELECTION,
    SHUFFLED,
    UNSEEN,
    VISUAL_RELIANCE,
)

LENGTH_ENDS = (5, 15, 30)  # words of a reference
LENGTHS = ("1 to 5 words", "6 to 15 words", "16 to 30 words", "over 30 words")


@dataclass(frozen=True)
class Question:
    """A question of the validation split, with what it is grouped by."""

    example_id: str
    case_id: str
    mode: str
    image_sha256: tuple[str, ...]
    question: str
    reference: str
    closed_kind: str | None  # the question itself if training asks it often, or yes/no; None = open
    answers: tuple[str, ...] | None  # a closed question's possible answers, normalised
    seen_case: bool  # whether training has images of the same case
    seen_image: bool  # whether training has the same image
    held_back: bool | None = None  # whether the training's validation losses leave it out; None: no case is held back
    dataset: str | None = None  # its name, if the run has several

    @property
    def expected(self) -> Expected:
        """What an answer is compared with."""
        return Expected(self.reference, self.answers, self.question)

    @property
    def groups(self) -> dict[str, str]:
        """Returns `{division: group}`: the group of this question in each division of the questions."""
        found = {} if self.dataset is None else {DATASET: self.dataset}
        found |= {
            "mode": self.mode,
            "kind": "open" if self.closed_kind is None else "closed",
            "length": LENGTHS[sum(len(self.reference.split()) > end for end in LENGTH_ENDS)],
            "case": "seen in training" if self.seen_case else UNSEEN,
        }
        if self.held_back is not None:
            found["part"] = HELD_BACK if self.held_back else SELECTION
        return found


def question_of(
    row: dict[str, Any],
    image_hashes: Sequence[str],
    closed_questions: Mapping[str, list[str]],
    trained_cases: set[str],
    trained_images: set[str],
    held_back_share: float = 0.0,
) -> Question:
    """Returns the question of a row of the conversation cache."""
    text, reference = last_question(row["conversation"])
    kind = closed_kind(text, reference, closed_questions)
    return Question(
        example_id=row["example_id"],
        case_id=row["case_id"],
        mode=row["mode"],
        image_sha256=tuple(image_hashes),
        question=text,
        reference=reference,
        closed_kind=kind,
        answers=possible_answers(kind, closed_questions),
        seen_case=row["case_id"] in trained_cases,
        seen_image=any(digest in trained_images for digest in image_hashes),
        held_back=is_held_back(row["case_id"], held_back_share) if held_back_share else None,
        dataset=row.get(DATASET),
    )


def assertion_counts(
    questions: Sequence[Question], variants: Mapping[str, Sequence[ScoredAnswer]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Returns `{variant: {category: {agreed, contradicted, omitted, added}}}`: numbers of assertions."""
    return {
        name: by_category([(a.text, q.reference, q.question) for a, q in zip(given, questions, strict=True)])
        for name, given in variants.items()
    }


def columns_by_variant(
    questions: Sequence[Question], variants: Mapping[str, Sequence[ScoredAnswer]]
) -> dict[str, Columns]:
    """Returns the columns of every variant's answers, one entry per question."""
    expected = [question.expected for question in questions]
    return {name: columns_of(given, expected) for name, given in variants.items()}


def score(
    questions: Sequence[Question], columns: Mapping[str, Columns], compared: Sequence[str], seed: int
) -> dict[str, Any]:
    """Returns scores as `{value, low, high}` and differences as `{value, low, high, p}`, None if nothing is scored.

    `columns` has the variant "model", its controls, and the others named in `compared`: the baseline and other models.
    """
    bootstrap = CaseBootstrap([q.case_id for q in questions], seed)
    scored = {name: bootstrap.scores(variant) for name, variant in columns.items()}
    in_differences = names(Use.COMPARED | Use.DECIDES)
    return {
        "examples": len(questions),
        "cases": bootstrap.cases,
        "scores": {name: _intervals(found) for name, found in scored.items()},
        "differences": {name: _differences(scored[MODEL], scored[name], in_differences) for name in compared},
        "control_differences": {
            name: _differences(scored[MODEL], scored[name], in_differences)
            for name in (QUESTION_ONLY, SHUFFLED)
            if name in scored
        },
        VISUAL_RELIANCE: _reliance(scored, int(columns[MODEL]["closed"].sum())),
        "groups": _groups(questions, columns, compared, seed),
        "closed_questions": _closed_questions(questions, columns),
    }


def _intervals(scores: dict[str, Scored]) -> dict[str, Any]:
    return {metric: interval(scored) for metric, scored in scores.items()}


def _differences(one: dict[str, Scored], other: dict[str, Scored], metrics: Sequence[str]) -> dict[str, Any]:
    return {metric: difference(one[metric], other[metric]) for metric in metrics}


def _reliance(scored: dict[str, dict[str, Scored]], closed: int) -> dict[str, Any] | None:
    """Returns what the right images add to shuffled ones; None without that control."""
    if SHUFFLED not in scored:
        return None
    return {**_differences(scored[MODEL], scored[SHUFFLED], names(Use.RELIANCE)), "closed_examples": closed}


def _groups(
    questions: Sequence[Question], columns: Mapping[str, Columns], compared: Sequence[str], seed: int
) -> dict[str, Any]:
    """Returns `{division: {group: {examples, cases, scores, differences}}}`; the only control is shuffled images."""
    shown = [name for name in columns if name in (MODEL, SHUFFLED, *compared)]
    in_groups = metrics_for(Use.GROUPS | Use.DECIDES)
    result: dict[str, Any] = {}
    for division in questions[0].groups:
        of_question = np.array([q.groups[division] for q in questions])
        for group in sorted(set(of_question), key=_order):
            inside = of_question == group
            bootstrap = CaseBootstrap([q.case_id for q, is_in in zip(questions, inside, strict=True) if is_in], seed)
            found = {name: bootstrap.scores(_select(columns[name], inside), in_groups) for name in shown}
            entry = {
                "examples": int(inside.sum()),
                "cases": bootstrap.cases,
                "scores": {name: _intervals(scores) for name, scores in found.items()},
                "differences": {name: _differences(found[MODEL], found[name], names(Use.DECIDES)) for name in compared},
            }
            result.setdefault(division, {})[group] = entry
    return result


def _order(group: str) -> tuple[int, str]:
    """Returns the sort key of a group: lengths sort by length, other groups by name."""
    return LENGTHS.index(group) if group in LENGTHS else 0, group


def _closed_questions(questions: Sequence[Question], columns: Mapping[str, Columns]) -> dict[str, Any]:
    """Returns `{closed question: {examples, accuracy of each variant}}`."""
    kinds = np.array([q.closed_kind or "" for q in questions])
    return {
        kind: {
            "examples": int((kinds == kind).sum()),
            **{name: round(float(variant["right"][kinds == kind].mean()), 4) for name, variant in columns.items()},
        }
        for kind in sorted(set(kinds) - {""})
    }


def _select(columns: Columns, inside: np.ndarray) -> Columns:
    return {name: column[inside] for name, column in columns.items()}


def predictions(
    questions: Sequence[Question], variants: Mapping[str, Sequence[ScoredAnswer]], columns: Mapping[str, Columns]
) -> list[dict[str, Any]]:
    """Returns one record per question: the question, the model's answer with its scores, and the variants' answers.

    Columns of the model have plain names (`prediction`, `token_f1`, ...); those of a variant end with its name.
    """
    records = []
    for i, question in enumerate(questions):
        record: dict[str, Any] = vars(question) | {"image_sha256": list(question.image_sha256)}
        record["answers"] = list(question.answers) if question.answers else None
        if question.dataset is None:
            del record[DATASET]
        for name, given in variants.items():
            suffix = "" if name == MODEL else f"_{name}"
            answer = _answer(given[i], columns[name], i)
            answer["contradicts"] = contradicted(given[i].text, question.reference, question.question)
            record |= {key + suffix: value for key, value in answer.items()}
        records.append(record)
    return records


def _answer(answer: ScoredAnswer, columns: Columns, index: int) -> dict[str, Any]:
    means = [metric.name for metric in METRICS.values() if metric.is_mean]
    return {
        "prediction": answer.text,
        "thought": answer.thought if answer.generated else None,
        "confidence": None if answer.confidence is None else round(answer.confidence, 4),
        "generated_tokens": answer.tokens if answer.generated else None,
        "finish_reason": ("length" if answer.truncated else "stop") if answer.generated else None,
        "logprob": round(answer.logprob, 4) if answer.generated and answer.reference_tokens else None,
        "reference_tokens": answer.reference_tokens,
        **{name: round(float(columns[name][index]), 4) for name in means},
        "right": bool(columns["right"][index]) if columns["closed"][index] else None,
    }
