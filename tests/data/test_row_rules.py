"""Rules about files and rows: which files are read, which rows are kept, how columns form a question."""

import json
import stat
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from tests.data.corpus import png
from vlm_core.cache import read_manifest
from vlm_core.config import DatasetConfig
from vlm_core.data import archives
from vlm_core.data.archives import unpacked
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.explained_row import explain_row, explain_some
from vlm_core.data.hub_files import hub_files
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.row_rules import Where, filled
from vlm_core.data.source import fetch_split
from vlm_core.data.splits import SPLITS, fetch_splits

ROWS = [
    {"image": f"{i % 4}.png", "text": f"q{i}?", "a": "left", "b": " right " if i % 2 else None, "answer": f"x{i}",
     "lang": ["en", "zh", "EN ", None][i % 4], "year": float(2020 + i % 2), "tags": ["en"]}
    for i in range(8)
]  # fmt: skip


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "data").mkdir()
    for number in range(4):
        (home / "data" / f"{number}.png").write_bytes(png(number))
    (home / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return home / "data"


def config(folder: Path, **settings: Any) -> Any:
    split = {"validation_dataset.split": None, "dataset.split_by": "image", "dataset.validation_share": 0.4}
    columns = {"dataset.question_column": "text"} if "question_template" not in settings else {}
    own = {f"dataset.{key}": value for key, value in settings.items()}
    return small_config(**{"dataset.path_or_dataset": str(folder)} | split | columns | own)


def read(folder: Path, **settings: Any) -> tuple[dict[str, str], Path]:
    """Returns `{answer: question}` of the rows that are stored, and the cache."""
    cache, _ = prepare_conversations(config(folder, **settings))
    rows = [row for split in SPLITS for row in ConversationDataset(cache, split).conversations]
    return {
        row["conversation"][1]["content"][0]["text"]: row["conversation"][0]["content"][-1]["text"] for row in rows
    }, cache


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([], range(8)),
        (["lang=en"], [0, 4]),
        (["lang=en", "lang=zh"], [0, 1, 4, 5]),
        (["lang=EN", "year=2020"], [2, 6]),  # spaces around a text do not count, its case does
        (["lang="], [3, 7]),
        (["year=2021"], [1, 3, 5, 7]),
        (["tags=en"], []),  # a list equals nothing
        (["a=a=b"], []),
    ],
)
def test_where_compares_texts(pairs: list[str], kept: list[int]) -> None:
    assert [i for i, row in enumerate(ROWS) if Where.of(pairs).keeps(row)] == [*kept]


@pytest.mark.parametrize("written", [{"lang": ["en", "zh"]}, ["lang=en", "lang=zh"]])
def test_rows_are_left_out_and_counted_and_keep_their_numbers(folder: Path, written: Any) -> None:
    found, cache = read(folder, where=written)
    assert {*found} == {"x0", "x1", "x4", "x5"}
    assert read_manifest(cache)["left_out"] == 4
    ids = {
        i for split in ("train", "validation") for i in ConversationDataset(cache, split).conversations["example_id"]
    }
    assert ids == {"train-0", "train-1", "train-4", "train-5"}
    splits = fetch_splits(config(folder, where=written))
    assert [row.name for row in explain_some(splits)] == ["train-0", "train-1", "train-5"]
    assert explain_row(splits, "2").rejected == "left out by dataset.where (lang=en or zh)"
    assert cache != read(folder)[1]


def test_a_template_makes_the_question(folder: Path) -> None:
    found, _ = read(folder, question_template="<image> {text}\nA: {a}\nB: {b}\nWhich?\n")
    assert found["x1"] == " q1?\nA: left\nB: right\nWhich?"
    assert found["x0"] == " q0?\nA: left\nWhich?"  # the line of an empty choice is left out
    assert filled("{a} {__class__}", {"a": "x", "__class__": "y"}.get) == "x y"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": {"language": "en"}}, "lacks the column language of dataset.where: it has image, text"),
        ({"question_template": "{text} {c}"}, "lacks the column c of dataset.question_template"),
        ({"question_template": "{text}", "question_column": "text"}, "both say what the question is"),
        ({"question_template": "{text}", "conversation_column": "text"}, "both say what the question is"),
        ({"question_template": "no column"}, "names no column; write {COLUMN}"),
        ({"where": ["lang"]}, "'lang' is not a pair; write NAME=VALUE"),
        ({"where": {"lang": "fr"}}, "dataset.where left out all 8"),
        ({"data_files": {"train": "other.jsonl"}}, "dataset.data_files=train=other.jsonl: .* has no such file"),
        ({"column_names": ["a", "b"]}, "dataset.column_names is for CSV files without a header, not for rows.jsonl"),
        ({"archives": ["../images.zip"]}, r"dataset.archives=../images.zip must name a file of the dataset"),
        ({"archives": ["rows.jsonl"]}, r"rows.jsonl cannot be unpacked \(File is not a zip file\); download it again"),
    ],
)
def test_rules_that_cannot_be_followed(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, **settings)


def test_named_files_replace_the_search(folder: Path) -> None:
    for name in ("notes.csv", "train_2.csv"):
        (folder / name).write_text("image,text,answer\n0.png,q?,a\n")
    (folder / "part-1.txt").write_text("image;text;answer\n1.png;r, s?;b\n")
    found, _ = read(folder, data_files={"train": ["train_2.csv", "part-*.txt"]})
    assert found == {"a": "q?", "b": "r, s?"}


def test_a_csv_file_without_a_header(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    (folder / "rows.csv").write_text("0.png|a, b, c?|left\n1.png|d?|right\n2.png|e, f?|up\n")
    assert read(folder, column_names=["image", "text", "answer"])[0] == {
        "left": "a, b, c?",
        "right": "d?",
        "up": "e, f?",
    }
    with pytest.raises(ValueError, match=r"line 1: the row has 3 fields, and dataset.column_names has 4 names"):
        read(folder, column_names=["image", "text", "answer", "case"])


def zipped(path: Path, files: dict[str, bytes], **attributes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


def test_an_archive_is_unpacked_once_and_its_images_are_found_by_path_or_name(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        (folder / f"{number}.png").unlink()
    inside = {"a/0.png": png(0), "a\\1.png": png(1), "2.PNG": png(2), "b/c/3.png": png(3), "b/": b""}
    zipped(folder / "images.zip", inside | {"__MACOSX/a/._0.png": b"x"})
    with caplog.at_level("INFO"):
        assert len(read(folder, archives=["images.zip", "more.zip"])[0]) == 8
        assert len(read(folder, archives="images.zip")[0]) == 8
    assert "has no archive more.zip" in caplog.text
    with pytest.raises(ValueError, match=r"dataset.archives=images.zip unpacks the images in it"):
        read(folder, image_column="image")
    assert caplog.text.count(": unpacked\n") == 1
    (stored,) = [path for path in (folder.parent / "home" / "cache" / "archives").iterdir() if path.is_dir()]
    assert len(read_manifest(stored)["files"]) == 4


def encrypted(path: Path) -> None:
    content = bytearray(zipped(path, {"0.png": b"x"}).read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)


def changed(path: Path) -> None:
    content = bytearray(zipped(path, {"0.png": bytes(range(256)) * 9}).read_bytes())
    content[60] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: zipped(path, {"../../x.png": b"x"}), "leads out of it"),
        (lambda path: zipped(path, {"/etc/x.png": b"x"}), "leads out of it"),
        (lambda path: zipped(path, {"..\\x.png": b"x"}), "leads out of it"),
        (lambda path: zipped(path, {"x": bytes(20_000)}), "would become 20,000 bytes"),
        (encrypted, "is encrypted"),
        (changed, "invalid|CRC|Error"),
        (lambda path: path.write_bytes(zipped(path, {"a": b"x" * 99}).read_bytes()[:-30]), "not a zip file"),
        (lambda path: zipped(path, {"a": b"x", "a/b": b"x"}), "cannot be unpacked"),
    ],
)
def test_bad_archives_are_refused_and_leave_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, write: Any, message: str
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 10_000)
    write(home / "x.zip")
    with pytest.raises(ValueError, match=message):
        unpacked(home, ["x.zip"], "lab/data", None)
    assert [path for path in home.rglob("*") if path.is_file() and path.suffix not in (".zip", ".lock")] == []


def test_a_link_in_an_archive_becomes_a_file_with_its_text(home: Path) -> None:
    zipped(home / "x.zip", {"0.png": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16, create_system=3)
    (directory,) = unpacked(home, ["x.zip"], "lab/data", None)
    assert not (directory / "0.png").is_symlink()
    assert (directory / "0.png").read_bytes() == b"/etc/passwd"


def test_only_named_files_of_a_hub_dataset_are_downloaded() -> None:
    there = ["README.md", "train.csv", "train_2.csv", "images.zip", "images_2.zip", "a.jpg", "data/x.parquet"]

    def downloaded(data_files: list[str], zips: list[str]) -> list[list[str]]:
        return [[f for f in there if any(fnmatch(f, p) for p in patterns)] for patterns in hub_files(data_files, zips)]

    assert downloaded([], [])[0] == ["README.md", "data/x.parquet"]
    assert downloaded(["train_2.csv"], ["images_2.zip"]) == [["README.md", "train_2.csv", "images_2.zip"]]
    assert downloaded([], ["images.zip"]) == [["README.md", "train.csv", "train_2.csv", "images.zip", "data/x.parquet"]]
    assert downloaded(["train.csv"], []) == [["README.md", "train.csv", "a.jpg"]]


def test_a_source_without_rules_has_the_identity_that_it_had(folder: Path) -> None:
    plain = DatasetConfig(path_or_dataset=str(folder), question_column="text")
    assert fetch_split(plain).fingerprint != fetch_split(plain.model_copy(update={"where": ["lang=en"]})).fingerprint
