"""Counts the answers of closed questions, and scores a baseline that always gives the commonest answer."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_core.data.closed_questions import YES_NO, YES_NO_ANSWERS, choice, closed_kind, normalize
from vlm_core.data.commonest import CommonestAnswers


class ClosedStatistics:
    """Counts the closed questions of both splits; add all of training before validation."""

    def __init__(self, closed_questions: Mapping[str, list[str]]) -> None:
        self.closed_questions = closed_questions
        self.commonest = CommonestAnswers()
        self.train: dict[str, Counter[str]] = defaultdict(Counter)  # kind -> normalised answers
        self.validation: dict[str, Counter[str]] = defaultdict(Counter)
        self.right: Counter[str] = Counter()  # kind -> validation questions that the commonest answer gets right

    def add_train(self, question: str, answer: str) -> None:
        """Counts a training question."""
        self.commonest.add(question, answer)
        kind = closed_kind(question, answer, self.closed_questions)
        if kind is not None:
            self.train[kind][normalize(answer)] += 1

    def add_validation(self, question: str, answer: str) -> None:
        """Counts a validation question, and whether the commonest answer of training gets it right."""
        kind = closed_kind(question, answer, self.closed_questions)
        if kind is None:
            return
        expected, commonest = normalize(answer), self.commonest.answer(question, answer)
        self.validation[kind][expected] += 1
        self.right[kind] += choice(commonest, [*{*closed_answers(kind, self.closed_questions), expected}]) == expected

    def summary(self) -> dict[str, Any]:
        """Returns `{questions, commonest}`, without text: a list in the order of `closed_kinds`, and an overall share.

        An entry has, for each split, `rows`, the rows of each answer in order, and the rows of any `other` answer. Its
        `commonest` is the share of its validation rows for which the commonest answer is right.
        """
        return {
            "questions": [
                {
                    "train": self._counts(kind, self.train[kind]),
                    "validation": self._counts(kind, self.validation[kind]),
                    "commonest": _share(self.right[kind], self.validation[kind].total()),
                }
                for kind in closed_kinds(self.closed_questions)
            ],
            "commonest": _share(self.right.total(), sum(counts.total() for counts in self.validation.values())),
        }

    def _counts(self, kind: str, counts: Counter[str]) -> dict[str, Any]:
        rows = [counts[answer] for answer in closed_answers(kind, self.closed_questions)]
        return {"rows": counts.total(), "answers": rows, "other": counts.total() - sum(rows)}


def closed_kinds(closed_questions: Mapping[str, list[str]]) -> list[str]:
    """Returns the kinds of closed questions: the frequent questions of training, and all other yes/no questions."""
    return [*closed_questions, YES_NO]


def closed_answers(kind: str, closed_questions: Mapping[str, list[str]]) -> Sequence[str]:
    """Returns the normalised answers of a kind."""
    return closed_questions.get(kind, YES_NO_ANSWERS)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
