"""Finds the rows of a conversation cache that another one lacks, and what drift looks at in rows and images."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_core.cache import read_manifest
from vlm_core.data.closed_questions import YES_NO, closed_kind
from vlm_core.data.conversation import last_question, questions_and_answers
from vlm_core.data.conversation_dataset import ConversationDataset, image_indices
from vlm_core.data.drift import Known, Sample
from vlm_core.data.images import decode_image
from vlm_core.data.personal_texts import personal_patterns
from vlm_core.data.splits import SPLITS, TRAIN

MOST_DECODED = 500  # images on each side
HIDDEN = "hidden: may be personal"
NONE = "no header"


class _Rows:
    """Rows of a cache, and its images."""

    def __init__(self, directory: Path, splits: Sequence[str]) -> None:
        sets = [ConversationDataset(directory, split) for split in splits]
        self.images, self.closed = sets[0].images, sets[0].manifest["closed_questions"]
        self.hashes = self.images["sha256"]
        self.rows = [one.conversations[i] for one in sets for i in range(len(one))]

    def identity(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """Returns what makes a row this row: its images, questions and answers."""
        shown = tuple(self.hashes[index] for index in image_indices(row))
        return shown, tuple(questions_and_answers(row["conversation"]))

    def without(self, known: set[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """Returns the rows whose identity is not in `known`."""
        return [row for row in self.rows if self.identity(row) not in known]


def compare(trained: Path, present: Path, *, with_texts: bool) -> tuple[dict[str, int], list[Known]]:
    """Returns (`{rows, new_rows, new_cases}`, the quantities) of two caches: training, and what is new since then.

    The training data are the rows that `trained` trains on. New are the rows of `present`, in any split, that
    `trained` lacks. No quantity is returned if there are none. Without texts, the values of columns are numbered.
    """
    old, now = _Rows(trained, [TRAIN]), _Rows(present, SPLITS)
    before = _Rows(trained, SPLITS)
    new = now.without({before.identity(row) for row in before.rows})
    counts = {"rows": len(old.rows), "new_rows": len(new), "new_cases": len({row["case_id"] for row in new})}
    if not new or not old.rows:
        return counts, []
    closed = read_manifest(trained)["closed_questions"]
    known = [*_of_rows(old.rows, new, closed, with_texts=with_texts), *_of_images(old, old.rows, now, new)]
    return counts, known


def _of_rows(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], closed: dict[str, list[str]], *, with_texts: bool
) -> Iterator[Known]:
    named = _Names(with_texts)
    quantities: dict[str, Callable[[dict[str, Any]], str | float]] = {
        "Kind of question": lambda row: _kind(row, closed),
        "Words per question": lambda row: len(last_question(row["conversation"])[0].split()),
        "Words per answer": lambda row: len(last_question(row["conversation"])[1].split()),
        "Images per question": lambda row: len(image_indices(row)),
        "Mode": lambda row: named.of(row["mode"]),
    }
    if "dataset" in old[0] and "dataset" in new[0]:
        quantities["Dataset"] = lambda row: row["dataset"]
    for title, value in quantities.items():
        samples = [Sample([value(row) for row in rows], [row["case_id"] for row in rows]) for rows in (old, new)]
        yield Known(title, *samples)


def _kind(row: dict[str, Any], closed: dict[str, list[str]]) -> str:
    kind = closed_kind(*last_question(row["conversation"]), closed)
    return "open" if kind is None else "yes or no" if kind == YES_NO else "closed in training"


class _Names:
    """How values of a column are shown: as they are, hidden if they look personal, or numbered."""

    def __init__(self, with_texts: bool) -> None:
        self.with_texts = with_texts
        self.shown: dict[str, str] = {}

    def of(self, value: str) -> str:
        """Returns the name of a value."""
        if value not in self.shown:
            personal = HIDDEN if personal_patterns(value) else value
            self.shown[value] = personal if self.with_texts else f"value {len(self.shown) + 1}"
        return self.shown[value]


def _of_images(
    old: _Rows, old_rows: Sequence[dict[str, Any]], now: _Rows, new_rows: Sequence[dict[str, Any]]
) -> Iterator[Known]:
    """Yields the quantities of the images that training rows show, and of those that only new rows show."""
    trained, cases = _first_cases(old_rows), _first_cases(new_rows)
    seen = {old.hashes[index] for index in trained}
    added = {index: case for index, case in cases.items() if now.hashes[index] not in seen}
    if not trained or not added:
        return
    facts = [_facts(rows.images, of) for rows, of in ((old, trained), (now, added))]
    sides = list(zip(facts, (trained, added), strict=True))
    if any(fact["Modality"] != NONE for side in facts for fact in side):
        yield Known("Modality", *(Sample([f["Modality"] for f in side], [*of.values()]) for side, of in sides))
    yield Known("Pixels", *(Sample([f["Pixels"] for f in side], [*of.values()]) for side, of in sides))
    decoded = [_grey_values(rows.images, of) for rows, of in ((old, trained), (now, added))]
    for title in ("Brightness", "Contrast"):
        yield Known(title, *(Sample(side[title], side["cases"]) for side in decoded))


def _first_cases(rows: Iterable[dict[str, Any]]) -> dict[int, str]:
    """Returns `{index of an image: case of the first row that shows it}`."""
    found: dict[int, str] = {}
    for row in rows:
        for index in image_indices(row):
            found.setdefault(index, row["case_id"])
    return found


def _facts(images: Any, of: Iterable[int]) -> list[dict[str, Any]]:
    """Returns `{Modality, Pixels}` of images; DICOM's modality is a code such as CT."""
    found = []
    for index in of:
        image = images[index]
        header = json.loads(image["medical"]) if image["medical"] else {}
        code = str(header.get("modality") or NONE)
        is_code = code == NONE or (len(code) <= 4 and code.isalpha() and code.isupper())
        found.append({"Modality": code if is_code else HIDDEN, "Pixels": image["width"] * image["height"]})
    return found


def _grey_values(images: Any, of: dict[int, str]) -> dict[str, list[Any]]:
    """Returns `{Brightness, Contrast, cases}`: mean and standard deviation of grey values, 0 to 255, of some images."""
    step = -(-len(of) // MOST_DECODED)
    found: dict[str, list[Any]] = {"Brightness": [], "Contrast": [], "cases": []}
    for index, case in [*of.items()][::step]:
        grey = np.asarray(decode_image(images[index]["encoded"]).convert("L"), dtype=np.float64)
        found["Brightness"].append(round(float(grey.mean()), 1))
        found["Contrast"].append(round(float(grey.std()), 1))
        found["cases"].append(case)
    return found
