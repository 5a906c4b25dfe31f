"""Folders that cannot be read as they are: what is wrong is said, with the file, the line and the remedy."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from tests.data.scans import NAMES, ROWS, csv_text, stored, write_images
from vlm_core.cache import read_manifest
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.pages.data_report import write_data_report


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        (
            ["image", "img", "question", "answer"],
            {},
            "the image may be in the column image or img; set dataset.image_column",
        ),
        (
            ["image", "text", "answer", "x"],
            {},
            "lacks the column of the question .*it has image, text, answer, x; set ",
        ),
        (
            ["image", "question", "answer", "x"],
            {"dataset.answer_column": "answers"},
            "answers: .*did you mean 'answer'",
        ),
        (["image", "question", "answer", "x"], {"dataset.mode_column": "modality"}, "lacks the column modality"),
        (
            ["image", "question", "answer", "x"],
            {"dataset.split_by": "published"},
            "has no validation split; it has train",
        ),
        (["image", "question", "answer", "x"], {"validation_dataset.split": "val"}, "has no split 'val'; it has train"),
        (["image", "messages", "x", "y"], {}, "set dataset.conversation_column=messages"),
        (["image", "question", "answer", "answer"], {}, "line 1: two columns are named 'answer'"),
        (
            ["patient", "subject", "question", "answer"],
            {"dataset.image_column": None},
            "patient or subject.*or to null",
        ),
    ],
)
def test_ambiguous_columns_are_refused(header: list[str], settings: dict[str, Any], message: str, home: Path) -> None:
    write_images(home / "scans")
    rows = [[NAMES[i], NAMES[i], f"{i}?", "Yes."] for i in range(8)]
    (home / "scans" / "x.csv").write_text(csv_text(rows, header=header), newline="")
    with pytest.raises(ValueError, match=message):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "scans")} | settings))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer,image\nWhere?,left, upper,0.png\n", "line 2: the row has 4 fields, and the header has 3"),
        (b"question,answer,image\nWhere?,left,0.png\n\nWhy?,right\n", "x.csv, line 4: the row has 2 fields"),
        (b'question,answer,image\n"two\nlines",left,0.png\nWhy?,right\n', "x.csv, line 4: the row has 2 fields"),
        (b'question,answer,image\n"Where",left,"0.png\n', "x.csv, line 2: the quotes do not fit"),
        (b'question,answer,image\n"Where" is it,left,0.png\n', "x.csv, line 2: the quotes do not fit"),
        (b"question,answer,image\nWhere?,l\x81ft,0.png\n", "x.csv, line 2: byte 0x81 is not UTF-8"),
        ("question,answer,image\nWhere?,lesi\u00f3n,0.png\n".encode("cp1252"), "line 2: byte 0xf3 is not UTF-8"),
        (b"question,answer,image\n" + b"Where?,left,0.png\n" * 70_000 + b"Where?,l\xe4", "line 70002: byte 0xe4"),
        (b"\x00\x01question,answer,image\n", "x.csv holds NUL bytes"),
        (b"question,answer,question\n1,2,3\n", "line 1: two columns are named 'question'"),
        (b"", "x.csv is empty"),
        (b"a,b|c,d\n1,2|3,4\n", "lacks the column of the image"),
        (b"a,b;c\n1,2;3\n", "the separator may be comma or semicolon"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(content: bytes, message: str, home: Path) -> None:
    (home / "scans").mkdir()
    (home / "scans" / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "scans")}))


def test_several_tables_that_are_no_splits_are_listed(home: Path) -> None:
    write_images(home / "scans")
    for name in ("chest.csv", "brain.csv"):
        (home / "scans" / name).write_text(csv_text(ROWS), newline="")
    with pytest.raises(
        ValueError, match=r"2 tables whose names say no split: brain.csv, chest.csv. Name one .*brain.csv"
    ):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "scans")}))
    assert len(stored(home / "scans" / "chest.csv")) == 8
    (home / "sheet").mkdir()
    (home / "sheet" / "data.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="no table but data.xlsx: save it as CSV"):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "sheet")}))


def test_images_that_are_not_there_are_rejected_by_name(home: Path) -> None:
    folder = home / "scans"
    write_images(folder, ["a/one.png", "b/one.png", "p1/two.png", "scan_3.png", "four.jpg.png", "five.png", "six.png"])
    cells = ["one.png", "p2/two.png", "scan_33.png", "five.png", "/elsewhere/six.png", "one", "../scans/five.png"]
    rows = [[cell, "What?", "This.", "1"] for cell in cells]
    (folder / "x.csv").write_text(csv_text(rows), newline="")
    settings = {
        "dataset.path_or_dataset": str(folder),
        "dataset.split": "train[:6]",
        "validation_dataset.split": "train[3:4]",
    }
    cache, _ = prepare_conversations(small_config(**settings, **{"dataset.max_reject_share": 1.0}))
    rejects = read_manifest(cache)["rejects"]
    assert rejects["image name that several files have"]["rows"] == 2
    about = rejects["image name that several files have"]["about"]
    assert (
        about == "dataset.image_column=image_path: 'one.png' may be a/one.png or b/one.png; write the path in the table"
    )
    missing = rejects["image file is missing"]
    assert (missing["rows"], missing["examples"]) == (3, ["train-1", "train-2", "train-4"])
    assert f"'p2/two.png' was looked for as {folder / 'p2/two.png'}; did you mean p1/two.png?" in missing["about"]
    page = home / "report.html"
    for images, named in ((True, True), (False, False)):
        write_data_report(small_config(**settings, **{"report.images": images}), cache, page)
        assert ("did you mean p1/two.png" in page.read_text()) is named
        assert "image name that several files have" in page.read_text()
    with pytest.raises(ValueError, match=r"5 rows .*image file is missing: 3 rows, .*did you mean p1/two.png"):
        prepare_conversations(small_config(**settings))


def test_nothing_outside_the_folder_is_searched(home: Path) -> None:
    write_images(home / "elsewhere")
    (home / "scans").mkdir()
    (home / "scans" / "link").symlink_to(home / "elsewhere", target_is_directory=True)
    (home / "scans" / "x.csv").write_text(csv_text(ROWS), newline="")
    with pytest.raises(ValueError, match="no row is left for train.*image file is missing: 8 rows"):
        stored(home / "scans")
