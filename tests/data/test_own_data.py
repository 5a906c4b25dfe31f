"""Folders as people have them: images, one table, and names that were not chosen for this project."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import small_config
from tests.data.scans import HEADER, NAMES, ROWS, as_dicts, csv_text, stored, write_images
from vlm_core.cache import read_manifest
from vlm_core.data.dataset_files import read_table
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits, resolved_config

EXPECTED = [(row[1], row[2], row[3], i) for i, row in enumerate(ROWS)]


def semicolons_and_mark(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "Befunde 2026.csv").write_text(csv_text(ROWS, ";"), encoding="utf-8-sig", newline="")


def beside_in_tabs(folder: Path) -> None:
    write_images(folder)
    (folder / "TABLE.TSV").write_text(csv_text(ROWS, "\t"), encoding="utf-8", newline="")


def unicode_text_of_excel(folder: Path) -> None:
    write_images(folder / "deep" / "er")
    (folder / "export.csv").write_text(csv_text(ROWS, "\t"), encoding="utf-16", newline="")


def big_endian(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "x.csv").write_bytes(b"\xfe\xff" + csv_text(ROWS).encode("utf-16-be"))


def bars(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "x.csv").write_text(csv_text(ROWS, "|"), encoding="utf-8", newline="")


def hint_of_excel(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "x.csv").write_text("sep=;\r\n" + csv_text(ROWS, ";"), encoding="utf-8", newline="")


def index_of_pandas(folder: Path) -> None:
    write_images(folder / "images")
    rows = [[str(i), *row, ""] for i, row in enumerate(ROWS)]
    (folder / "x.csv").write_text(csv_text(rows, header=["", *HEADER, ""]), encoding="utf-8", newline="")


def backslashes(folder: Path) -> None:
    write_images(folder / "images")
    rows = [[f"images\\{row[0]}", *row[1:]] for row in ROWS]
    (folder / "x.csv").write_text(csv_text(rows), encoding="utf-8", newline="")


def no_suffix(folder: Path) -> None:
    write_images(folder / "images")
    rows = [[row[0].removesuffix(".png"), *row[1:]] for row in ROWS]
    (folder / "x.csv").write_text(csv_text(rows), encoding="utf-8", newline="")


def another_case(folder: Path) -> None:
    write_images(folder / "images", [name.upper() for name in NAMES])
    (folder / "x.csv").write_text(csv_text(ROWS, header=["Image Path", "QUESTION", "Answer", "Patient ID"]), newline="")


def table_in_a_folder(folder: Path) -> None:
    write_images(folder / "pictures")
    (folder / "tables").mkdir()
    (folder / "tables" / "x.csv").write_text(csv_text(ROWS), encoding="utf-8", newline="")


def metadata_table(folder: Path) -> None:
    write_images(folder)
    (folder / "metadata.csv").write_text(
        csv_text(ROWS, ";", ["file_name", "prompt", "response", "subject"]), encoding="utf-8-sig", newline=""
    )


def json_lines(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "DATA.JSONL").write_text("".join(json.dumps(row) + "\n" for row in as_dicts()))
    (folder / "settings.json").write_text("{}")


def json_list(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "data.json").write_text(json.dumps(as_dicts(["img_name", "question", "answer", "patient_id"])))


def parquet(folder: Path) -> None:
    write_images(folder / "images")
    pq.write_table(pa.Table.from_pylist(as_dicts()), folder / "data.PARQUET")


def folders_of_patients(folder: Path) -> None:
    names = [f"p{i // 2}/{i % 2}.png" for i in range(8)]
    write_images(folder / "images", names)
    rows = [[name, *row[1:]] for name, row in zip(names, ROWS, strict=True)]
    (folder / "x.csv").write_text(csv_text(rows), encoding="utf-8", newline="")


def ids_beside_paths(folder: Path) -> None:
    write_images(folder / "images")
    rows = [{"image_id": 9000 + i} | row for i, row in enumerate(as_dicts())]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def named_as_a_test(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "chest-test.csv").write_text(csv_text(ROWS), encoding="utf-8", newline="")


@pytest.mark.parametrize(
    "write",
    [
        semicolons_and_mark, beside_in_tabs, unicode_text_of_excel, big_endian, bars, hint_of_excel,
        index_of_pandas, backslashes, no_suffix, another_case, table_in_a_folder, metadata_table, json_lines, json_list,
        parquet, folders_of_patients, ids_beside_paths, named_as_a_test,
    ],
)  # fmt: skip
def test_a_folder_loads_at_the_first_try(write: Callable[[Path], None], home: Path) -> None:
    write(home / "scans")
    assert stored(home / "scans") == EXPECTED


def test_a_snapshot_of_the_hub_with_images_and_a_table(home: Path) -> None:
    """`datasets` alone would take it for an image folder, and leave the table out."""
    semicolons_and_mark(home / "snapshot")
    tables = read_table(home / "snapshot", "lab/data", anywhere=False)
    assert tables.by_split["train"].rows.columns == HEADER


def test_numbers_name_files(home: Path) -> None:
    write_images(home / "scans" / "images", [f"{700 + i}.png" for i in range(8)])
    rows = [row | {"image_path": 700 + i} for i, row in enumerate(as_dicts())]
    (home / "scans" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stored(home / "scans") == EXPECTED
    config = small_config(**{"dataset.path_or_dataset": str(home / "scans")})
    before = fetch_splits(config).fingerprint
    Image.new("L", (8, 8), 1).save(home / "scans" / "images" / "703.png")
    assert fetch_splits(config).fingerprint != before


def test_what_was_looked_up_is_said(home: Path) -> None:
    semicolons_and_mark(home / "scans")
    config = small_config(**{"dataset.path_or_dataset": str(home / "scans")})
    splits = fetch_splits(config)
    said = "\n".join(splits.notes)
    assert "Befunde 2026.csv: read as UTF-8 with a byte-order mark, separated by semicolons" in said
    assert "image=image_path, question=question, answer=answer, case=patient, mode=null" in said
    assert "8 images were found by name, not at the path in the table: scan_0.png is images/scan_0.png" in said
    assert "15% of the cases (column patient) are held out for validation" in said
    resolved = resolved_config(config, splits)
    assert (resolved.dataset.case_column, resolved.dataset.mode_column, resolved.dataset.split_by) == (
        "patient", None, "case",
    )  # fmt: skip
    assert resolved.validation_dataset.split is None
    again = fetch_splits(resolved)
    assert again.fingerprint == splits.fingerprint


@pytest.mark.parametrize(
    ("tables", "settings", "train", "validation", "split_by"),
    [
        (["train.csv", "validation.csv"], {}, "train", "validation", "published"),
        (["train.csv", "val.csv", "test.csv"], {}, "train", "validation", "published"),
        (["TRAIN.CSV", "Dev.csv"], {}, "train", "validation", "published"),
        (["train/x.csv", "valid/x.csv"], {}, "train", "validation", "published"),
        (["train.csv", "test.csv"], {}, "train", "test", "published"),
        (["train.csv", "test.csv"], {"dataset.split_by": "case"}, "train", None, "case"),
        (["train.csv", "validation.csv"], {"dataset.split_by": "case"}, "train", "validation", "case"),
        (["train.csv", "val.csv"], {"validation_dataset.split": None}, "train", None, "case"),
        (["all.csv"], {}, "train", None, "case"),
        (["all.csv"], {"dataset.case_column": None}, "train", None, "image"),
        (["all.csv"], {"dataset.split_by": "image"}, "train", None, "image"),
        (["part-0001.csv", "part-0002.csv"], {}, "train", None, "case"),
        (["train.csv", "test.csv"], {"validation_dataset.split": "train[50%:]"}, "train", "train", "published"),
    ],
)
def test_which_rows_validate(
    tables: list[str], settings: dict[str, Any], train: str, validation: str | None, split_by: str, home: Path
) -> None:
    write_images(home / "scans" / "images")
    for table in tables:
        (home / "scans" / table).parent.mkdir(exist_ok=True)
        (home / "scans" / table).write_text(csv_text(ROWS), encoding="utf-8", newline="")
    splits = fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "scans")} | settings))
    found = {name: source.split for name, source in splits.sources.items()}
    assert (found["train"], found.get("validation"), splits.split_by) == (train, validation, split_by)
    if "part-0001.csv" in tables:
        assert splits.sources["train"].stop == 16


def test_each_side_of_few_cases_gets_one(home: Path) -> None:
    write_images(home / "scans")
    rows = [[row[0], row[1], row[2], f"p{i % 2}"] for i, row in enumerate(ROWS)]
    (home / "scans" / "x.csv").write_text(csv_text(rows), newline="")
    for seed in range(6):
        for share in (0.001, 0.999):
            config = small_config(
                **{
                    "dataset.path_or_dataset": str(home / "scans"),
                    "dataset.split_seed": seed,
                    "dataset.validation_share": share,
                }
            )
            cache, _ = prepare_conversations(config)
            assert read_manifest(cache)["rows"] == {"train": 4, "validation": 4}
