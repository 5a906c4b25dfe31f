"""Counts the rows of a split, and what two splits have in common."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm_core.data.case_ids import without_zeros
from vlm_core.data.closed_questions import closed_kind
from vlm_core.data.conversation import images_of, questions_and_answers
from vlm_core.data.personal_texts import personal_patterns

BINS = 20
COMMON = 12  # most frequent modes to list
FEW_CASES = 10  # an evaluation gives no intervals for fewer cases


@dataclass
class Tally:
    """The counts of a split, made in one pass over it."""

    rows: int = 0
    text_only: int = 0
    closed: int = 0
    duplicates: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    questions_of: Counter[int] = field(default_factory=Counter)  # image -> questions about it
    images_of: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # case -> its images
    personal: Counter[str] = field(default_factory=Counter)  # kind of possible personal data -> rows
    rows_of_case: Counter[str] = field(default_factory=Counter)
    question_words: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    answers_to: dict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))  # question -> answers

    def add(self, row: dict[str, Any], closed_questions: Mapping[str, list[str]]) -> None:
        """Counts a row of the cache."""
        shown = images_of(row["conversation"])
        questions, answers = zip(*questions_and_answers(row["conversation"]), strict=True)
        self.rows += 1
        self.text_only += not shown
        self.turns[len(answers)] += 1
        self.modes[row["mode"]] += 1
        self.questions_of.update(set(shown))
        self.images_of[row["case_id"]].update(shown)
        self.rows_of_case[row["case_id"]] += 1
        self.personal.update(personal_patterns("\n".join((*questions, *answers))))
        self.question_words.append(len(questions[-1].split()))
        self.answer_words.append(len(answers[-1].split()))
        self.closed += closed_kind(questions[-1], answers[-1], closed_questions) is not None
        asked, answered = _hash([shown, questions]), _hash(answers)
        self.duplicates += answered in self.answers_to[asked]
        self.answers_to[asked].add(answered)

    def summary(self) -> dict[str, Any]:
        """Returns the split's entry in `statistics.json`."""
        return {
            "rows": self.rows,
            "text_only": self.text_only,
            "images": len(self.questions_of),
            "cases": len(self.images_of),
            "questions_an_image": spread(self.questions_of.values()),
            "images_a_case": spread(len(images) for images in self.images_of.values()),
            "question_words": spread(self.question_words),
            "answer_words": spread(self.answer_words),
            "answers_a_conversation": {str(n): count for n, count in sorted(self.turns.items())},
            "closed_share": round(self.closed / max(1, self.rows), 4),
            "duplicates": self.duplicates,
            "contradictions": sum(len(answers) > 1 for answers in self.answers_to.values()),
            "modes": dict(self.modes.most_common(COMMON)),
        }


def spread(values: Iterable[int]) -> dict[str, Any]:
    """Returns mean, median, 95th percentile, minimum, maximum and a histogram of integers, of at most 20 bins.

    Bin i is `[edges[i], edges[i + 1])`. Returns {} if there are no values.
    """
    numbers = np.fromiter(values, dtype=np.int64)
    if not len(numbers):
        return {}
    width = max(1, -(-int(numbers.max() - numbers.min() + 1) // BINS))
    edges = np.arange(numbers.min(), numbers.max() + width + 1, width)
    counts, _ = np.histogram(numbers, edges)
    return {
        "mean": round(float(numbers.mean()), 2),
        "median": float(np.median(numbers)),
        "p95": float(np.percentile(numbers, 95)),
        "min": int(numbers.min()),
        "max": int(numbers.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def overlap(train: Tally, validation: Tally, case_ids: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a training and a validation split have in common; `case_ids` maps normal forms to the ids shown."""
    cases = train.images_of.keys() & validation.images_of.keys()
    images = train.questions_of.keys() & validation.questions_of.keys()
    asked = train.answers_to.keys() & validation.answers_to.keys()
    return {
        "cases": {
            "shared": len(cases),
            "share_of_validation_cases": _share(len(cases), len(validation.images_of)),
            "share_of_validation_rows": _share(sum(validation.rows_of_case[c] for c in cases), validation.rows),
            "but_for_zeros": _alike_but_for_zeros(train.images_of, validation.images_of, case_ids),
        },
        "images": {
            "shared": len(images),
            "share_of_validation_images": _share(len(images), len(validation.questions_of)),
        },
        "questions": {"shared": len(asked)},  # about the same image, in the same words
    }


def _alike_but_for_zeros(train: Iterable[str], validation: Iterable[str], case_ids: Mapping[str, str]) -> int:
    """Returns how many validation case ids equal a training id except for leading zeros."""
    plain = {shown: without_zeros(key) for key, shown in case_ids.items()}
    known, trained = set(train), {plain[case] for case in train}
    return sum(plain[case] in trained for case in validation if case not in known)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _hash(value: Sequence[Any]) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
