"""Which rows train and which validate, and what the statistics say about it."""

import json
import random
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.division import ConnectedImages
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.data.tally import spread
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


def write_pictures(directory: Path, shown: list[list[int]]) -> dict[str, Any]:
    """Writes a row an entry of `shown`, the numbers of its images; returns the settings that read it."""
    directory.mkdir()
    for number in {number for row in shown for number in row}:
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(directory / f"{number}.png")
    rows = [
        {"image_id": [f"{n}.png" for n in row], "question": f"{i}?", "answer": "Yes."} for i, row in enumerate(shown)
    ]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path_or_dataset": str(directory), "split_by": "image", "case_column": None, "mode_column": None}


def divided(directory: Path, shown: list[list[int]], **settings: Any) -> dict[int, str]:
    """Returns the side of each row."""
    rules = write_pictures(directory, shown) | settings
    config = {f"dataset.{key}": value for key, value in rules.items()} | {"validation_dataset.split": None}
    cache, _ = prepare_conversations(small_config(**config))
    assert not list(cache.glob("rows*"))
    return {
        int(row["example_id"].rpartition("-")[2]): split
        for split in ("train", "validation")
        for row in ConversationDataset(cache, split).conversations
    }


def test_images_that_are_shown_together_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search through a graph: a row's images, those of rows that share one of them, and so on."""
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    generator = random.Random(5)
    shown = [[generator.randrange(60) for _ in range(generator.choice([1, 1, 1, 2, 3]))] for _ in range(50)]
    sides = divided(tmp_path / "pictures", shown, validation_share=0.5)
    assert len(sides) == 50
    groups = []
    for row in shown:
        touched = [group for group in groups if group & set(row)]
        groups = [group for group in groups if group not in touched] + [set(row).union(*touched)]
    assert max(map(len, groups)) > 4
    found = [{sides[i] for i, row in enumerate(shown) if set(row) <= group} for group in groups]
    assert all(len(of_group) == 1 for of_group in found)
    assert {*map(tuple, found)} == {("train",), ("validation",)}
    # The order of the rows moves none of them.
    backwards = divided(tmp_path / "backwards", shown[::-1], validation_share=0.5)
    assert backwards == {49 - i: side for i, side in sides.items()}


def test_single_images_are_drawn_by_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    sides = divided(tmp_path / "pictures", [[number] for number in range(20)], validation_share=0.5)
    pixels = [Image.open(tmp_path / "pictures" / f"{n}.png").convert("RGB").tobytes() for n in range(20)]
    digests = [sha256(b"8 8 " + content).hexdigest() for content in pixels]
    drawn = [int.from_bytes(sha256(f"0|{digest}".encode()).digest()[:8]) / 2**64 for digest in digests]
    assert [sides[n] for n in range(20)] == ["validation" if share < 0.5 else "train" for share in drawn]


def test_many_connected_images_are_joined_in_no_time() -> None:
    connected, names = ConnectedImages(), [sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(20_000)]
    started = time.perf_counter()
    for pair in pairwise(names):  # one chain: the worst that there is
        connected.join(pair)
    assert {connected.name(name) for name in names} == {min(names)}
    assert time.perf_counter() - started < 2


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
        small_config(**{"validation_dataset.split": None, "dataset.split_by": "published"})
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
    for words in ("100% of the validation images", "word for word", "1 rows repeat", "different answers", "too few"):
        assert words in said


@pytest.mark.parametrize("values", [[3], [1, 1, 1], list(range(100)), [0, 1_000_000]])
def test_a_histogram_holds_every_value(values: list[int]) -> None:
    histogram = spread(values)["histogram"]
    assert sum(histogram["counts"]) == len(values)
    assert len(histogram["counts"]) <= 21
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert spread([]) == {}
