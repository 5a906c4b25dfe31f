"""Closed questions: questions with a small set of short answers, so that right and wrong can be counted.

A question is closed if the training split asks it often and always answers it from a small set. So no list and no
column is needed. A question with a yes/no answer is always closed.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

MAX_ANSWERS = 6  # distinct answers
MAX_WORDS = 3  # of an answer
MIN_ASKED = 20  # times in the training split
YES_NO = "yes/no"
YES_NO_ANSWERS = ("no", "yes")

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Returns `text` in lower case, without punctuation and articles, with single spaces (as SQuAD's script does)."""
    plain = text.lower().translate(_PUNCTUATION)
    # Keep an answer that is only an article ("A"): otherwise it would equal an empty answer.
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split()) or plain.strip()


def choice(prediction: str, answers: Sequence[str]) -> str | None:
    """Returns the one of a closed question's normalised `answers` that a prediction gives; None if it is unclear.

    A prediction gives the answer that it begins with, else the only answer that it contains as words. So a sentence
    ("Yes, there is no fracture.") counts like a single word; base models seldom answer in one word. If one answer
    contains another ("left lung" contains "lung"), the longer one counts.
    """
    text = f" {normalize(prediction)} "
    for answer in sorted(answers, key=len, reverse=True):
        if text.startswith(f" {answer} "):
            return answer
    held = [answer for answer in answers if f" {answer} " in text]
    held = [answer for answer in held if not any(f" {answer} " in f" {other} " for other in held if other != answer)]
    return held[0] if len(held) == 1 else None


class ClosedQuestionCounter:
    """Finds the closed questions of a split in one pass, in memory bounded by the number of distinct questions."""

    def __init__(self) -> None:
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, question: str, answer: str) -> None:
        """Counts one row of the split."""
        answers = self._answers[question]
        if len(answers) <= MAX_ANSWERS:  # Stop at one answer too many: the question is open.
            answers[normalize(answer)] += 1

    def closed_questions(self) -> dict[str, list[str]]:
        """Returns `{question: its normalised answers}` of the closed questions, both in sorted order."""
        return {q: sorted(answers) for q, answers in sorted(self._answers.items()) if _is_closed(answers)}


def _is_closed(answers: Counter[str]) -> bool:
    few = 2 <= len(answers) <= MAX_ANSWERS
    short = all(len(answer.split()) <= MAX_WORDS for answer in answers)
    return few and short and answers.total() >= MIN_ASKED


def closed_kind(question: str, reference: str, closed_questions: Mapping[str, list[str]]) -> str | None:
    """Returns the kind of a closed question (its own text, or `yes/no`), None for an open one."""
    if question in closed_questions:
        return question
    return YES_NO if normalize(reference) in YES_NO_ANSWERS else None


def possible_answers(kind: str | None, closed_questions: Mapping[str, list[str]]) -> tuple[str, ...] | None:
    """Returns the normalised answers that a question of `closed_kind` can have, None if it is open."""
    if kind is None:
        return None
    return YES_NO_ANSWERS if kind == YES_NO else tuple(closed_questions[kind])
