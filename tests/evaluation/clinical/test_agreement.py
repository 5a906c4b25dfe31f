"""Clinical agreement finds what engineers labelled by hand, and the truth of every sentence of the phantom."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vlm_core.data.phantom import _open_pairs, _plan
from vlm_core.evaluation.clinical.agreement import ADDED, CONTRADICTED, OMITTED, compare, contradicted, totals
from vlm_core.evaluation.clinical.assertions import assertions_of

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "evaluation.md"
PAIRS, HELD_OUT = (Path(__file__).with_name(name) for name in ("pairs.txt", "heldout.txt"))
LETTERS = {
    "P": "finding", "K": "character", "D": "device", "L": "side", "H": "position", "C": "count", "S": "size",
    "M": "modality", "A": "plane", "R": "region",
}  # fmt: skip
SIGNS = {"!": CONTRADICTED, "-": OMITTED, "+": ADDED}


def pairs(path: Path) -> list[tuple[set[tuple[str, str]], str, str, str]]:
    """Returns (labels, question, reference, answer) of each line of a file of pairs."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = []
    for line in lines:
        labels, question, reference, answer = (part.strip() for part in line.split("|"))
        marks = re.findall(r"([!+-])([A-Z]+)", labels)
        found.append(({(LETTERS[c], SIGNS[sign]) for sign, cs in marks for c in cs}, question, reference, answer))
    return found


def counts(path: Path) -> dict[str, Counter[tuple[str, str]]]:
    """Returns how often each label was found rightly, found wrongly, and missed."""
    result: dict[str, Counter[tuple[str, str]]] = {"right": Counter(), "wrong": Counter(), "missed": Counter()}
    for expected, question, reference, answer in pairs(path):
        found = {key for key in compare(answer, reference, question) if key[1] in SIGNS.values()}
        result["right"].update(expected & found)
        result["wrong"].update(found - expected)
        result["missed"].update(expected - found)
    return result


def test_it_agrees_with_labels_by_hand() -> None:
    assert len(pairs(PAIRS)) >= 290
    found = counts(PAIRS)
    assert not [key for key in found["wrong"] if key[1] == CONTRADICTED]
    assert [key for key in found["missed"] if key[1] == CONTRADICTED] == [("position", CONTRADICTED)]
    assert found["right"].total() >= 0.98 * (found["right"].total() + found["missed"].total())
    assert found["right"].total() >= 0.97 * (found["right"].total() + found["wrong"].total())


def test_it_finds_most_contradictions_in_texts_that_it_was_not_made_for() -> None:
    assert len(pairs(HELD_OUT)) == 130
    right, wrong, missed = (
        sum(n for key, n in found.items() if key[1] == CONTRADICTED) for found in counts(HELD_OUT).values()
    )
    assert right / (right + wrong) >= 0.9
    assert right / (right + missed) >= 0.75


def test_the_documentation_has_these_numbers() -> None:
    text, found = DOCUMENTATION.read_text(encoding="utf-8"), counts(HELD_OUT)

    def cell(outcome: str, category: str | None = None) -> str:
        right, wrong, missed = (
            sum(n for (c, o), n in counter.items() if o == outcome and category in (None, c))
            for counter in found.values()
        )
        return f"{right} of {right + wrong}, {right} of {right + missed}"

    table = {name: [cell(outcome, name) for outcome in SIGNS.values()] for name in LETTERS.values()}
    table["all"] = [f"**{cell(outcome)}**" for outcome in SIGNS.values()]
    for name, cells in table.items():
        assert f"| {name} | {' | '.join(cells)} |" in text
    developed = counts(PAIRS)
    right, wrong = (sum(n for (_, o), n in developed[of].items() if o == CONTRADICTED) for of in ("right", "wrong"))
    assert f"On the {len(pairs(PAIRS))} pairs that the phrases were developed with,\n{right} of {right + wrong}" in text


def phantom_answers() -> list[tuple[dict[str, str], str, str]]:
    """Returns (facts, question, answer) of the open questions of 40 images."""
    rng = np.random.default_rng(3)
    return [(one.facts, *pair) for one in _plan(40, rng) for pair in _open_pairs(one.facts, rng)]


def test_it_reads_the_truth_from_every_sentence_of_the_phantom() -> None:
    axes = {"plane": "plane", "modality": "modality", "side": "side", "level": "height", "size": "size"}
    asserted = Counter()
    for facts, question, answer in phantom_answers():
        found = assertions_of(answer, question)
        assert ("lesion" in found.present) == (facts["presence"] == "Yes") or "lesion" not in answer
        assert ("lesion" in found.absent) == (facts["presence"] == "No")
        assert "gas" in (found.present if facts["gas"] == "Gas" else found.absent) or "gas" not in answer
        for axis, fact in axes.items():
            values = {value.lower() for value in found.values.get(axis, ())}
            asserted[axis] += bool(values)
            assert values in (set(), {facts.get(fact, "").lower()}), (axis, answer)
            assert values or axis == "size" or facts.get(fact, "-").lower() not in answer.lower().split()
        if numbers := found.values.get("count"):
            asserted["count"] += 1
            assert numbers == {{"One": "1", "Two": "2"}[facts["number"]]}
    assert min(asserted.values()) > 20


def test_a_model_that_says_no_or_repeats_the_question_is_exposed() -> None:
    asked = [(question, answer) for _, question, answer in phantom_answers()]
    closed = [("Is there a lesion in this image?", said) for said in ("Yes", "No")] * 25

    def score(say: dict[str, str] | None) -> tuple[float, float]:
        found = Counter()
        for question, reference in [*asked, *closed]:
            said = reference if say is None else say.get("always", question)
            found.update(totals(said, reference, question))
        asserts = found["agreed"] + found["contradicted"] + found["omitted"]
        both = 2 * found["agreed"] + 2 * found["contradicted"] + found["omitted"] + found["added"]
        return 2 * found["agreed"] / both, found["contradicted"] / asserts

    assert score(None) == (1.0, 0.0)
    assert score({"always": "No"})[0] < 0.15
    assert score({"always": "No lesion."})[1] > 0.1
    assert score({})[0] < 0.05


@pytest.mark.parametrize(
    ("text", "present", "absent"),
    [
        ("Findings:\n- no edema\n- large mass", {"mass"}, {"edema"}),
        ("1. No fracture\n2. Dislocation", {"dislocation"}, {"fracture"}),
        ("No hemorrhage\nMass in the left frontal lobe", {"mass"}, {"hemorrhage"}),
        ("There is no\nmass", set(), {"mass"}),
        ("A pleural \n effusion", {"pleural effusion"}, set()),
    ],
)
def test_a_negation_ends_with_its_line_in_a_list(text: str, present: set[str], absent: set[str]) -> None:
    found = assertions_of(text, "What is seen?")
    assert (found.present, found.absent) == (present, absent)


def test_a_yes_or_no_on_a_line_is_read_with_its_question() -> None:
    assert assertions_of("No\nThe lung is clear.", "Is there a mass?").absent == {"mass"}


@pytest.mark.parametrize(
    ("reference", "answer", "categories"),
    [
        ("There is a mass in the left lung.", "There is a mass in the right lung.", ["side"]),
        ("Axial CT without hemorrhage.", "Sagittal MRI with hemorrhage.", ["finding", "modality", "plane"]),
        ("A 2 cm cyst.", "A 7 cm cyst.", ["size"]),
        ("Two cysts.", "A single cyst.", ["count"]),
        ("Possible fracture.", "No fracture.", []),
    ],
)
def test_contradicted_categories_have_names(reference: str, answer: str, categories: list[str]) -> None:
    assert contradicted(answer, reference, "What is seen?") == categories
