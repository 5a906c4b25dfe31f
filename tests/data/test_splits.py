"""Which rows train and which validate, and what the statistics say about it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.data.conversations import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.data.statistics import STATISTICS, spread
from vlm_core.files import read_json


def prepared(**settings: Any) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the cache, and the rows of both its splits."""
    cache, _ = prepare_conversations(small_config(**{f"dataset.{key}": value for key, value in settings.items()}))
    train, validation = (ConversationDataset(cache, split).conversations.to_list() for split in ("train", "validation"))
    return cache, train, validation


def images(rows: list[dict[str, Any]]) -> set[int]:
    return {row["conversation"][0]["content"][0]["image"] for row in rows}


def cases(rows: list[dict[str, Any]]) -> set[str]:
    return {row["case_id"] for row in rows}


def test_the_published_split_shares_cases() -> None:
    cache, train, validation = prepared()
    assert cases(train) & cases(validation)
    overlap = read_json(cache / STATISTICS)["overlap"]
    assert overlap["cases"]["shared"] == len(cases(train) & cases(validation))
    rows = sum(row["case_id"] in cases(train) for row in validation)
    assert overlap["cases"]["share_of_validation_rows"] == round(rows / len(validation), 4)
    assert overlap["images"]["shared"] == 0


@pytest.mark.parametrize(("split_by", "of"), [("case", cases), ("image", images)])
def test_a_division_keeps_what_it_says_on_one_side(split_by: str, of: Any) -> None:
    cache, train, validation = prepared(split_by=split_by, validation_share=0.4)
    assert not of(train) & of(validation)
    assert len(train) + len(validation) == 400  # all rows of both published splits
    assert 0.1 < len(validation) / 400 < 0.7
    assert any(row["example_id"].startswith("train-") for row in validation)  # the name of its published row
    assert {row["example_id"].rpartition("-")[0] for row in [*train, *validation]} == {"train", "validation"}
    found = read_json(cache / STATISTICS)
    assert found["splits"]["validation"]["rows"] == len(validation)
    assert not any(("case" if split_by == "case" else "image") + "s are also" in text for text in found["findings"])


def test_a_division_is_part_of_the_key_and_seeded() -> None:
    keys = [
        fetch_splits(small_config(**{f"dataset.{key}": value for key, value in rule.items()})).fingerprint
        for rule in (
            {},
            {"split_by": "case"},
            {"split_by": "image"},
            {"split_by": "case", "split_seed": 1},
            {"split_by": "case", "validation_share": 0.4},
        )
    ]
    assert len(set(keys)) == 5
    # What has no effect makes no other key.
    assert fetch_splits(small_config(**{"dataset.split_seed": 1})).fingerprint == keys[0]
    _, train, _ = prepared(split_by="case", validation_share=0.4)
    _, other, _ = prepared(split_by="case", split_seed=1, validation_share=0.4)
    assert cases(train) != cases(other)


def test_a_dataset_that_grows_moves_no_case() -> None:
    _, train, validation = prepared(split_by="case", split="train[:50%]", validation_share=0.4)
    _, more_train, more_validation = prepared(split_by="case", validation_share=0.4)
    assert cases(train) <= cases(more_train)
    assert cases(validation) <= cases(more_validation)


def test_one_published_split_is_enough_to_divide() -> None:
    divided = {"dataset.split_by": "case", "dataset.validation_share": 0.4}
    config = small_config(**divided, **{"validation_dataset.split": None})
    cache, _ = prepare_conversations(config)
    assert sum(read_manifest(cache)["rows"].values()) == 340
    with pytest.raises(ValueError, match=r"leaves nothing to validate on.*dataset.split_by=case"):
        small_config(**{"validation_dataset.split": None})
    with pytest.raises(ValueError, match="no row is left for validation .*none was drawn"):
        prepared(split_by="case", validation_share=0.0)


def test_the_statistics_are_those_of_the_rows() -> None:
    cache, train, validation = prepared()
    found = read_json(cache / STATISTICS)
    described = found["splits"]["train"]
    assert (described["rows"], described["images"], described["cases"]) == (340, 34, len(cases(train)))
    assert described["questions_an_image"]["mean"] == 10
    answers = [len(row["conversation"][1]["content"][0]["text"].split()) for row in train]
    assert described["answer_words"]["max"] == max(answers)
    assert sum(described["answer_words"]["histogram"]["counts"]) == 340
    assert sum(described["modes"].values()) == 340
    assert found["images"]["count"] == 40
    assert found["images"]["sizes"] == {"56 x 56": 40}
    assert found["splits"]["validation"]["cases"] == len(cases(validation))
    # Nothing but numbers and names of columns' values: no question and no answer.
    text = (cache / STATISTICS).read_text()
    assert not any(row["conversation"][0]["content"][1]["text"] in text for row in train)


def test_duplicates_and_contradictions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    source = fetch_splits(small_config()).sources["train"]
    table = pq.read_table(source.rows.files[0]).slice(0, 20)
    rows = table.to_pylist()
    rows[1] = rows[0]
    rows[2] = rows[0] | {"answer": "Quite another answer."}
    directory = tmp_path / "data-set"
    directory.mkdir()
    for name, part in (("train", rows), ("validation", rows[:1])):
        pq.write_table(table.from_pylist(part, table.schema), directory / f"{name}.parquet")
    cache, _, _ = prepared(path_or_dataset=str(directory))
    found = read_json(cache / STATISTICS)
    assert found["splits"]["train"]["duplicates"] == 1
    assert found["splits"]["train"]["contradictions"] == 1
    assert found["overlap"]["questions"]["shared"] == 1
    said = " ".join(found["findings"])
    for words in ("100% of the validation images", "word for word", "1 rows repeat", "more than one way", "too few"):
        assert words in said


@pytest.mark.parametrize("values", [[3], [1, 1, 1], list(range(100)), [0, 1_000_000]])
def test_a_histogram_holds_every_value(values: list[int]) -> None:
    histogram = spread(values)["histogram"]
    assert sum(histogram["counts"]) == len(values)
    assert len(histogram["counts"]) <= 21
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert spread([]) == {}
