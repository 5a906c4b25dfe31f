"""Which questions decide: the held-back ones, and of these the unseen cases if there are enough."""

import numpy as np
import pytest

from vlm_core.data.held_back import is_held_back
from vlm_core.evaluation.deciding import deciding
from vlm_core.evaluation.metrics import Columns
from vlm_core.evaluation.scores import Question


def question(case: int, *, seen: bool, held_back: bool | None = None) -> Question:
    return Question(str(case), str(case), "", (), "q", "a", None, None, seen, False, held_back)


def columns(score: float, rows: int) -> Columns:
    return {"token_f1": np.full(rows, score), "examples": np.ones(rows)}


@pytest.mark.parametrize(
    ("questions", "sets"),
    [
        ([question(i, seen=i >= 20) for i in range(30)], [("20 questions about 20 unseen cases", 20), ("all 30", 30)]),
        ([question(i, seen=i >= 19) for i in range(30)], [("all 30 questions", 30)]),
        ([question(i % 19, seen=False) for i in range(60)], [("all 60 questions", 60)]),
        ([question(i, seen=True, held_back=i < 12) for i in range(30)], [("all 12 held-back questions", 12)]),
        (
            [question(i, seen=i > 25, held_back=i % 30 > 0) for i in range(60)],
            [("25 held-back questions about 25 unseen cases", 25), ("all 58 held-back questions", 58)],
        ),
    ],
)
def test_which_questions_decide(questions: list[Question], sets: list[tuple[str, int]]) -> None:
    rows = len(questions)
    answered = {"model": columns(0.6, rows), "champion": columns(0.5, rows), "base": columns(0.1, rows)}
    found = deciding(questions, answered, ["champion", "base"], "token_f1", 0)
    assert [one["examples"] for one in found] == [size for _, size in sets]
    assert all(one["questions"].startswith(words) for one, (words, _) in zip(found, sets, strict=True))
    assert all(one["differences"]["champion"]["chance"] < 0.001 for one in found)
    assert all(one["differences"]["base"]["value"] == 0.5 for one in found)


def test_a_case_stays_in_its_part() -> None:
    cases = [f"case {number}" for number in range(2000)]
    half = {case for case in cases if is_held_back(case, 0.5)}
    assert 900 < len(half) < 1100
    assert {case for case in cases if is_held_back(case, 0.3)} < half
    assert is_held_back("P1", 0.5) == is_held_back("p1 ", 0.5)  # the same patient
    assert not any(is_held_back(case, 0.0) for case in cases)
