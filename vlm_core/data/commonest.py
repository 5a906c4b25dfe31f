"""The commonest answer: a baseline that uses no image and learns nothing.

A model that scores no better has learnt no more than a table of counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from vlm_core.data.closed_questions import YES_NO, closed_kind, normalize


class CommonestAnswers:
    """Counts the answers of the training split; answers a question with the commonest answer to similar questions.

    Similar questions have the same words. If training never asks the question, they are all questions of the same kind
    (yes/no or open), and if there are none, all questions. The reference decides the kind.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._written: dict[str, str] = {}  # normalised answer -> the first text with that meaning
        self._commonest: dict[tuple[str, ...], str] = {}

    def add(self, question: str, answer: str) -> None:
        """Counts one question of the training split."""
        counted = normalize(answer)
        self._written.setdefault(counted, answer)
        for like in _likes(question, answer):
            self._answers[like][counted] += 1
        self._commonest.clear()

    def answer(self, question: str, reference: str) -> str:
        """Returns the commonest answer; ties are broken alphabetically. Returns "" if nothing was counted."""
        for like in _likes(question, reference):
            if like in self._answers:
                if like not in self._commonest:
                    counts = self._answers[like]
                    self._commonest[like] = min(counts, key=lambda answer: (-counts[answer], answer))
                return self._written[self._commonest[like]]
        return ""


def _likes(question: str, answer: str) -> Iterator[tuple[str, ...]]:
    yield "question", normalize(question)
    yield "kind", YES_NO if closed_kind(question, answer, {}) else "open"
    yield ("all",)
