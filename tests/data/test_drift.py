"""Drift: distances equal a plain computation, planted changes are found where they are, and equal data shows none."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import small_config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.drift import LEVEL, Known, Sample, drift_of
from vlm_core.data.drift_values import compare
from vlm_core.data.prepare import prepare_conversations
from vlm_core.pages.drift import summary_of, write_drift


def plain_distance(one: Sequence[str], other: Sequence[str]) -> float:
    """Returns the Jensen-Shannon distance to base 2, by its definition."""
    p, q = ({key: count / len(side) for key, count in Counter(side).items()} for side in (one, other))
    total = 0.0
    for share, rest in ((p, q), (q, p)):
        for key, value in share.items():
            total += value * math.log2(value / ((value + rest.get(key, 0.0)) / 2)) / 2
    return math.sqrt(total)


def known(training: Sequence[str | float], new: Sequence[str | float]) -> Known:
    return Known("Q", Sample(training, [f"t{i}" for i in range(len(training))]),
                 Sample(new, [f"n{i}" for i in range(len(new))]))  # fmt: skip


def test_the_distance_is_that_of_the_definition() -> None:
    training, new = ["CT"] * 30 + ["MR"] * 10, ["CT"] * 15 + ["MR"] * 5 + ["US"] * 10
    found = drift_of(known(training, new))
    assert found["distance"] == pytest.approx(plain_distance(training, new), abs=1e-4)
    assert found["bins"] == ["CT", "MR", "US"]
    assert (found["training"], found["new"]) == ([0.75, 0.25, 0.0], [0.5, 0.1667, 0.3333])
    assert found["drifted"]
    assert drift_of(known(training, training))["distance"] == 0
    assert drift_of(known(["a"] * 20, ["b"] * 20))["distance"] == 1


@pytest.mark.parametrize("new", [3.0, 7.0])
def test_a_number_that_training_always_had_drifts_to_both_sides(new: float) -> None:
    found = drift_of(known([5.0] * 200, [5.0] * 15 + [new] * 5))
    assert found["drifted"]
    assert sorted(found["bins"]) == sorted(["5", f"{new:g}"])


def test_data_of_the_same_kind_seldom_drifts() -> None:
    """Cases have rows in common, so a test that took rows for independent would report far more."""
    generator, reported = np.random.default_rng(0), 0
    for _ in range(40):
        cases = [f"c{i}" for i in range(60) for _ in range(8)]
        values = np.repeat(generator.normal(size=60), 8) + 0.1 * generator.normal(size=480)
        training = Sample(values[:320].tolist(), cases[:320])
        reported += bool(drift_of(Known("Q", training, Sample(values[320:].tolist(), cases[320:])))["drifted"])
    assert reported / 40 <= 3 * LEVEL


def test_few_new_cases_say_nothing() -> None:
    found = drift_of(known(["a"] * 100, ["b"] * 9))
    assert (found["distance"], found["p"], found["drifted"]) == (1, None, None)
    assert "too few new cases" in summary_of([found])


HEADER = ["image", "case", "question", "answer", "modality"]


def write_rows(folder: Path, cases: range, grey: int, answer: str, mode: str) -> None:
    """Appends three rows about the image of each case to the folder's table."""
    table = folder / "table.csv"
    is_new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerows([HEADER] if is_new else [])
        for case in cases:
            noise = np.random.default_rng(case).integers(-40, 40, (16, 16))
            Image.fromarray((grey + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{case}.png")
            rows.writerows([f"{case}.png", f"case-{case}", f"Q{n} of Smith?", answer, mode] for n in range(3))


def test_a_folder_that_grew_drifts_in_what_changed_and_old_rows_train_with_the_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    columns = {"dataset.path_or_dataset": str(folder), "dataset.mode_column": "modality", "dataset.case_column": "case"}

    def prepared() -> Path:
        return prepare_conversations(small_config(**columns))[0]

    write_rows(folder, range(40), 90, "a lesion", "CT")
    before = prepared()
    assert compare(before, before, with_texts=True)[1] == []
    write_rows(folder, range(40, 55), 180, "a large lesion in the left lung", "Dr. John Smith")
    after = prepared()
    counts, quantities = compare(before, after, with_texts=True)
    assert (counts["new_rows"], counts["new_cases"]) == (45, 15)
    # All rows that trained before train again, with some of the new ones.
    first, then = (set(ConversationDataset(cache, "train").conversations["example_id"]) for cache in (before, after))
    assert first < then
    found = [drift_of(quantity) for quantity in quantities]
    assert {one["title"] for one in found if one["drifted"]} == {"Words per answer", "Mode", "Brightness"}
    assert {one["title"] for one in found} >= {"Kind of question", "Words per question", "Pixels", "Contrast"}
    about = {"name": "medpix-x", "version": "3", "trained": before.name, "present": after.name, **counts}
    write_drift(about, found, tmp_path / "drift.html")
    page = (tmp_path / "drift.html").read_text()
    assert "The new rows differ from the training data in words per answer, mode, brightness." in page
    assert "45 new rows about 15 cases" in page
    assert page.count("<svg") == len(found)
    for personal in ("Smith", "case-4", "lesion", str(tmp_path)):
        assert personal not in page
    _, numbered = compare(before, after, with_texts=False)
    (mode,) = (drift_of(one) for one in numbered if one.title == "Mode")
    assert mode["bins"] == ["value 1", "value 2"]
