"""Several datasets in one cache: their columns and limits, leaks across them, external validation, the data report."""

import csv
import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import small_config
from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.explained_row import explain_row, explain_some
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits, resolved_config
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.pages.data_report import overview, write_data_report
from vlm_core.prepare import summary

COLUMNS = {"image_column": "Bild", "question_column": "Frage", "answer_column": "Antwort", "case_column": "Patient"}


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(path)


def english(directory: Path, splits: dict[str, list[int]]) -> dict[str, Any]:
    """Writes a dataset with published splits: two questions for each number, which is an image and a case `cN`."""
    for split, numbers in splits.items():
        rows = []
        for number in numbers:
            picture(directory / f"{number}.png", number)
            common = {"image_id": f"{number}.png", "case_id": f"c{number}", "mode": "CT"}
            rows += [common | {"question": f"{split} {i}?", "answer": "Yes."} for i in range(2)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path_or_dataset": str(directory), "split_by": "published"}


def german(directory: Path, numbers: list[int], patient: str = "p") -> dict[str, Any]:
    """Writes a table in other columns, without published splits: a question for each number."""
    directory.mkdir(parents=True)
    with (directory / "tabelle.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS.values())
        for number in numbers:
            picture(directory / f"{number}.png", number)
            writer.writerow([f"{number}.png", f"{number}?", "Ja.", f"{patient}{number}"])
    return {"path_or_dataset": str(directory), **COLUMNS}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    return tmp_path


def prepared(*datasets: dict[str, Any], **settings: Any) -> tuple[Config, Path]:
    """Returns the resolved config of the datasets and their cache."""
    config = small_config(dataset=list(datasets), **settings)
    splits = fetch_splits(config)
    return resolved_config(config, splits), prepare_conversations(config, splits)[0]


def rows(cache: Path, split: str) -> list[dict[str, Any]]:
    return ConversationDataset(cache, split).conversations.to_list()


def test_each_dataset_is_read_by_its_own_rules(home: Path) -> None:
    config, cache = prepared(
        english(home / "one", {"train": [1, 2, 3], "validation": [4]}),
        german(home / "two", list(range(100, 120))) | {"where": {"Frage": [f"{n}?" for n in range(101, 120)]}},
        german(home / "far", [200, 201], "far") | {"split": None},
    )
    train, validation = rows(cache, "train"), rows(cache, "validation")
    assert Counter(row["dataset"] for row in train).keys() == {"one", "two"}
    assert Counter(row["dataset"] for row in validation).keys() == {"one", "two", "far"}
    assert {row["example_id"].split("-")[0] for row in validation} == {"one/validation", "two/train", "far/validation"}
    assert {row["mode"] for row in train if row["dataset"] == "two"} == {"none"}
    counts = read_manifest(cache)["datasets"]
    assert counts["one"] == {
        "rows": {"train": 6, "validation": 2},
        "rejected": 0,
        "left_out": 0,
        "named": 0,
        "trains": True,
    }
    assert (sum(counts["two"]["rows"].values()), counts["two"]["left_out"]) == (19, 1)
    assert (counts["far"]["rows"], counts["far"]["trains"]) == ({"train": 0, "validation": 2}, False)
    # Every `auto` is resolved for each dataset, and the result reads the same data.
    two, far = config.more_datasets["two"], config.more_datasets["far"]
    assert (two.split_by, two.validation_split, two.split, two.mode_column) == ("case", None, "train", None)
    assert (far.split_by, far.validation_split, far.split) == ("published", "train", None)
    assert prepare_conversations(config) == (cache, True)


def test_leaks_are_found_within_and_across_datasets(home: Path) -> None:
    config, cache = prepared(
        english(home / "one", {"train": [1, 2], "validation": [3, 4]}),
        english(home / "two", {"train": [4, 5], "validation": [2, 6]}),
        german(home / "far", [5, 300], "far") | {"split": None},
    )
    found = read_json(cache / STATISTICS)
    images = {(leak["train"], leak["validation"]): leak["images"]["shared"] for leak in found["leaks"]}
    assert images == {("two", "one"): 1, ("one", "two"): 1, ("two", "far"): 1}
    (first, *_) = [text for text in found["findings"] if "validation images of one" in text]
    assert first.startswith("50% of the validation images of one (1) are also in the training of two: scores")
    assert "Set split_by=image, or case, of all these datasets" in first
    (external,) = [text for text in found["findings"] if "validation images of far" in text]
    assert "leave these rows out of two" in external
    cases = [text for text in found["findings"] if "validation cases of one" in text]
    assert len(cases) == 1
    assert "Patients of two places may have one id by chance" in cases[0]
    # The remedy of the finding helps: what both have is drawn once, though the shares differ.
    datasets = [dict(config.datasets[name].model_dump(), split_by="image", name=name) for name in ("one", "two")]
    datasets[1] |= {"validation_share": 0.6, "split_seed": 3}
    _, cache = prepared(*datasets, **{"validation_dataset.split": "validation"})
    assert read_json(cache / STATISTICS)["leaks"] == []


def test_a_case_that_was_drawn_for_one_dataset_is_on_the_same_side_in_another(home: Path) -> None:
    numbers = list(range(40))
    one = german(home / "one", numbers) | {"split_by": "case", "validation_share": 0.2}
    two = german(home / "two", numbers[::-1]) | {"split_by": "case", "validation_share": 0.7, "split_seed": 9}
    _, cache = prepared(one, two)
    sides = {split: {row["case_id"] for row in rows(cache, split)} for split in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert len(sides["train"] | sides["validation"]) == 40


def test_an_image_in_two_datasets_is_stored_once(home: Path) -> None:
    one = english(home / "one", {"train": [1, 2], "validation": [3]})
    _, cache = prepared(one, german(home / "two", [1, 2, 7]))
    assert read_manifest(cache)["images"] == 4


def test_a_tiny_dataset_gets_both_sides(home: Path) -> None:
    one = english(home / "one", {"train": [1, 2], "validation": [3]})
    _, cache = prepared(one, german(home / "two", [10, 11]) | {"validation_share": 0.0001})
    assert read_manifest(cache)["datasets"]["two"]["rows"] == {"train": 1, "validation": 1}


def test_the_cache_of_one_dataset_is_the_one_of_earlier_versions(home: Path) -> None:
    one = english(home / "one", {"train": [1, 2], "validation": [3]})
    plain = small_config(**{f"dataset.{key}": value for key, value in one.items()})
    splits = fetch_splits(plain)
    identity = {name: source.fingerprint for name, source in splits.sources.items()}
    before = hashlib.sha256(json.dumps([identity, ["published"]], sort_keys=True).encode()).hexdigest()
    assert splits.fingerprint == before
    cache, _ = prepare_conversations(plain, splits)
    assert rows(cache, "train")[0].keys() == {"example_id", "case_id", "mode", "conversation"}
    assert "datasets" not in read_manifest(cache)
    assert rows(cache, "train")[0]["example_id"] == "train-0"
    assert prepared(one | {"name": "another", "weight": 2})[1] == cache  # a list of one is that one


def test_the_key_has_the_datasets_and_not_their_weights(home: Path) -> None:
    one, two = english(home / "one", {"train": [1, 2], "validation": [3]}), german(home / "two", [10, 11, 12])

    def key(*datasets: dict[str, Any], **settings: Any) -> str:
        return fetch_splits(small_config(dataset=list(datasets), **settings)).fingerprint

    usual = key(one, two)
    assert key(one | {"weight": 1}, two | {"weight": 2}) == key(one, two, **{"mixture.temperature": 2}) == usual
    assert (
        len({usual, key(one), key(two, one), key(one, two | {"name": "x"}), key(one, two | {"split": "train[:2]"})})
        == 5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_column": "Farge"}, "dataset two: .*lacks the column Farge.*set more_datasets.two.question_column"),
        ({"question_column": "auto"}, "dataset two: .*the column of the question.*more_datasets.two.question_column"),
        ({"images": {"modality_column": "M"}}, "dataset two: .*column M of more_datasets.two.images.modality_column"),
        ({"where": {"M": "x"}}, "dataset two: .*column M of more_datasets.two.where"),
        ({"split_by": "published"}, "dataset two: .*has no validation split.*Leave more_datasets.two.split_by out"),
        ({"validation_split": "dev"}, "dataset two: .*dev"),
        ({"validation_split": "dev", "split": None}, "no split 'dev'.*set more_datasets.two.validation_split to one"),
        ({"path_or_dataset": "/nowhere/x"}, "dataset two: no dataset '/nowhere/x'"),
        ({"split": "train[:0]"}, "dataset two: .*is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_second_dataset_is_named(home: Path, changes: dict[str, Any], message: str) -> None:
    one, two = english(home / "one", {"train": [1, 2], "validation": [3]}), german(home / "two", [10, 11, 12])
    with pytest.raises(ValueError, match=message):
        fetch_splits(small_config(dataset=[one, two | {"name": "two"} | changes]))


def test_limits_hold_for_each_dataset(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (
        english(home / "one", {"train": [*range(60)], "validation": [70]}),
        german(home / "two", [*range(99, 109)]),
    )
    (home / "two" / "105.png").write_bytes(b"no image")
    # One reject is few among all 132 rows, and many among the ten of its dataset.
    with pytest.raises(ValueError, match=r"two': 1 rows \(10.00%\).*more_datasets.two.max_reject_share=0.05 allows"):
        prepared(one, two)
    prepared(one, two | {"max_reject_share": 0.1})
    table = home / "two" / "tabelle.csv"
    table.write_text(table.read_text().replace("Ja.", "Ja. Mail: meier@example.org"))
    allowed = two | {"max_reject_share": 0.1}
    prepared(one | {"max_personal_data": 0}, allowed)
    with pytest.raises(ValueError, match=r"signs of personal data.*more_datasets.two.max_personal_data=0 allows fewer"):
        prepared(one, allowed | {"max_personal_data": 0})
    with pytest.raises(ValueError, match=r"no row is left for train .*more_datasets.two.where left out all 10"):
        prepared(one, two | {"where": {"Frage": "none"}})


def test_settings_of_mixtures_without_effect_warn(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = english(home / "one", {"train": [1, 2], "validation": [3]})
    far = german(home / "far", [9]) | {"split": None, "images": {"window": "lung"}}
    with caplog.at_level(logging.INFO):
        fetch_splits(small_config(dataset=[one | {"weight": 2}, far]))
        fetch_splits(small_config(dataset=[one, far], **{"mixture.temperature": 2}))
    assert "dataset.weight=2 has no effect: only one dataset trains" in caplog.text
    assert "mixture.temperature=2 has no effect" in caplog.text
    assert "image settings of far differ from those of one" in caplog.text
    assert "far: columns of" in caplog.text


def test_the_pages_show_each_dataset_and_all_together(home: Path) -> None:
    config, cache = prepared(
        english(home / "one", {"train": [1, 2], "validation": [3]}) | {"weight": 3},
        english(home / "two", {"train": [3, 5], "validation": [6]}) | {"weight": 1},
        german(home / "far", [300], "far") | {"split": None},
    )
    splits = fetch_splits(config)
    explained = explain_some(splits)
    assert [row.name for row in explained] == ["one/train-0", "two/train-0", "far/validation-0"]
    assert explain_row(splits, "far/validation-0").cells["Frage"] == "300?"
    assert explain_row(splits, "1").name == "one/train-1"
    with pytest.raises(ValueError, match="write one/train-12 or .* or far/validation-12, or 12 for one/train-12"):
        explain_row(splits, "three/train-1")
    write_data_report(config, cache, home / "report.html", explained)
    page = (home / "report.html").read_text()
    for words in ("<th>one</th><td>75.0%</td>", "<th>two</th><td>25.0%</td>", "nothing (external validation)",
                  '<tr><td class="word">two</td><td class="word">one</td><td>1</td><td>100.0%</td>'):  # fmt: skip
        assert words in page
    assert [row["split"] for row in overview(cache)] == [
        "train", "validation", "one: train", "one: validation", "two: train", "two: validation", "far: validation",
    ]  # fmt: skip
    lines = summary(config, read_json(cache / STATISTICS), {})
    assert "dataset     one: 75.0% of the training questions" in lines
    assert "dataset     far: only validates" in lines


def test_a_dataset_may_only_train(home: Path) -> None:
    one = english(home / "one", {"train": [1, 2], "validation": [3]})
    _, cache = prepared(one, german(home / "two", [10, 11, 12]) | {"split_by": "published", "validation_split": None})
    assert read_manifest(cache)["datasets"]["two"]["rows"] == {"train": 3, "validation": 0}
    _, cache = prepared(german(home / "x", [10, 11]) | {"split_by": "published", "validation_split": None}, one)
    assert read_manifest(cache)["datasets"]["x"]["rows"] == {"train": 2, "validation": 0}
