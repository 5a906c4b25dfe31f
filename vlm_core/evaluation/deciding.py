"""Which questions decide about a champion, and by how much the model differs from the others on them.

Of a divided validation split, only the held-back part decides, since the rest chose the model. Of these questions,
those about cases that training has not seen decide, if there are at least `ENOUGH_CASES` such cases.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_core.config.evaluation import CHAMPION
from vlm_core.evaluation.chance import chance_of_better
from vlm_core.evaluation.intervals import CaseBootstrap, difference, interval
from vlm_core.evaluation.metrics import METRICS, Columns
from vlm_core.evaluation.result_names import MODEL
from vlm_core.evaluation.scores import Question

ENOUGH_CASES = 20  # unseen in training; fewer must not outweigh all others


def deciding(
    questions: Sequence[Question], columns: Mapping[str, Columns], compared: Sequence[str], metric: str, seed: int
) -> list[dict[str, Any]]:
    """Returns the sets of questions that may decide, the preferred one first: it decides if `metric` has a value there.

    A set is `{questions, examples, cases, score, differences}`: its description, its size, the model's score
    `{value, low, high}`, and for each of `compared` the difference `{value, low, high, p, detectable}`. That to the
    champion also has `chance`, the exact p-value of "better than the champion".
    """
    return [
        _set(words, np.flatnonzero(inside), questions, columns, compared, metric, seed)
        for words, inside in _sets(questions)
    ]


def _sets(questions: Sequence[Question]) -> Iterator[tuple[str, np.ndarray]]:
    divided = any(question.held_back for question in questions)
    inside = np.array([bool(question.held_back) or not divided for question in questions])
    unseen = inside & np.array([not question.seen_case for question in questions])
    cases, kind = len({questions[int(i)].case_id for i in np.flatnonzero(unseen)}), "held-back " if divided else ""
    if cases >= ENOUGH_CASES:
        yield f"{unseen.sum()} {kind}questions about {cases} unseen cases", unseen
    yield f"all {inside.sum()} {kind}questions", inside


def _set(
    words: str,
    rows: np.ndarray,
    questions: Sequence[Question],
    columns: Mapping[str, Columns],
    compared: Sequence[str],
    metric: str,
    seed: int,
) -> dict[str, Any]:
    bootstrap = CaseBootstrap([questions[int(i)].case_id for i in rows], seed)
    inside = {name: {column: values[rows] for column, values in columns[name].items()} for name in (MODEL, *compared)}
    scored = {name: bootstrap.scores(found, [METRICS[metric]])[metric] for name, found in inside.items()}
    differences: dict[str, dict[str, Any]] = {name: dict(difference(scored[MODEL], scored[name])) for name in compared}
    if CHAMPION in compared:
        chance = chance_of_better(bootstrap.case_of, inside[MODEL], inside[CHAMPION], metric, seed)
        differences[CHAMPION]["chance"] = chance
    return {
        "questions": words,
        "examples": len(rows),
        "cases": bootstrap.cases,
        "score": interval(scored[MODEL]),
        "differences": differences,
    }
