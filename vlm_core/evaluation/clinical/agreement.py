"""Compares what an answer asserts with what its reference asserts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from vlm_core.evaluation.clinical.assertions import MANY, MILLIMETRES, Assertions, assertions_of, presupposed
from vlm_core.evaluation.clinical.lexicon import CATEGORIES, DEVICE, FINDING, REGION, lexicon

AGREED, CONTRADICTED, OMITTED, ADDED = "agreed", "contradicted", "omitted", "added"
OUTCOMES = (AGREED, CONTRADICTED, OMITTED, ADDED)
_NONE: frozenset[str] = frozenset()
SAME_SIZE = 1.5  # lengths that differ by a larger factor contradict each other

Outcomes = Mapping[tuple[str, str], int]  # (category, outcome) -> number of assertions


@cache
def compare(answer: str, reference: str, question: str) -> Outcomes:
    """Returns how many assertions of each category agree, contradict, are left out or are added.

    A contradiction is an assertion of the reference that the answer denies or replaces by another value. Only what is
    asserted as present can be left out or added, unless the question already says it: an answer need not repeat that
    something is absent.
    """
    given, expected = assertions_of(answer, question), assertions_of(reference, question)
    known = presupposed(question)
    counts: Counter[tuple[str, str]] = Counter()
    _compare_findings(given, expected, known, counts)
    for axis in {*given.values, *expected.values}:
        category = "size" if axis == MILLIMETRES else lexicon().category[axis]
        outcomes = _compare_values(axis, given.values.get(axis, _NONE), expected.values.get(axis, _NONE), known)
        counts.update({(category, outcome): number for outcome, number in outcomes.items()})
    for category in lexicon().category.values():  # a value that is replaced is not left out as well
        if counts[category, CONTRADICTED]:
            counts[category, OMITTED] = counts[category, ADDED] = 0
    return {key: number for key, number in counts.items() if number}


def totals(answer: str, reference: str, question: str) -> dict[str, float]:
    """Returns `{outcome: number}` over all categories."""
    counts = compare(answer, reference, question)
    return {outcome: float(sum(n for (_, o), n in counts.items() if o == outcome)) for outcome in OUTCOMES}


def contradicted(answer: str, reference: str, question: str) -> list[str]:
    """Returns the categories in which an answer contradicts its reference."""
    found = {category for category, outcome in compare(answer, reference, question) if outcome == CONTRADICTED}
    return [category for category in CATEGORIES if category in found]


def by_category(answers: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, int]]:
    """Returns `{category: {outcome: number of assertions}}` over triples of answer, reference and question."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in answers:
        counts.update(compare(*item))
    return {
        category: {outcome: counts[category, outcome] for outcome in OUTCOMES}
        for category in CATEGORIES
        if any(counts[category, outcome] for outcome in OUTCOMES)
    }


def _compare_findings(
    given: Assertions, expected: Assertions, known: frozenset[str], counts: Counter[tuple[str, str]]
) -> None:
    for name in expected.present:
        if any(_is_a(other, name) for other in given.present):
            counts[_category(name), AGREED] += 1
        elif any(_is_a(name, other) for other in given.absent):
            counts[_category(name), CONTRADICTED] += 1
        elif name not in known:
            counts[_category(name), OMITTED] += 1
    for name in expected.absent:
        if any(_is_a(other, name) for other in given.present):
            counts[_category(name), CONTRADICTED] += 1
        elif any(_is_a(name, other) for other in given.absent):
            counts[_category(name), AGREED] += 1
    for name in given.present - known:
        related = any(_is_a(name, other) or _is_a(other, name) for other in expected.present)
        if not related and not any(_is_a(name, other) for other in expected.absent):
            counts[_category(name), ADDED] += 1


def _is_a(name: str, general: str) -> bool:
    return name == general or general in lexicon().ancestors[name]


@cache
def _category(name: str) -> str:
    return next(
        phrase.kind for phrase in lexicon().phrases if name in phrase.names and phrase.kind in (FINDING, DEVICE)
    )


def _compare_values(
    axis: str, given: frozenset[str], expected: frozenset[str], known: frozenset[str]
) -> dict[str, int]:
    agreed = {value for value in expected if any(_agree(axis, value, other) for other in given)}
    matched = {value for value in given if any(_agree(axis, other, value) for other in expected)}
    if given and expected and not agreed:
        return {CONTRADICTED: 1}
    return {AGREED: len(agreed), OMITTED: len(expected - agreed - known), ADDED: len(given - matched - known)}


def _agree(axis: str, one: str, other: str) -> bool:
    if axis == REGION:
        return _is_a(one, other) or _is_a(other, one)
    if axis == MILLIMETRES:
        small, large = sorted((float(one), float(other)))
        return large <= SAME_SIZE * small
    if axis == "count" and MANY in (one, other):
        return "1" not in (one, other)
    return one == other
