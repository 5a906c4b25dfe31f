"""The same rows in every form that a dataset can have on disk give the same conversations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from tests.conftest import small_config
from tests.data.rows import shape, write_images
from vlm_core.cache import read_manifest
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.dataset_files import read_table
from vlm_core.data.images import decode_image
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.hub import is_repository_id

COLUMNS = {
    "dataset.image_column": "picture",
    "dataset.question_column": "ask",
    "dataset.answer_column": "reply",
    "dataset.case_column": "patient",
    "dataset.mode_column": None,
}
ROWS = [
    {"picture": f"images/{i // 2}.png", "ask": f"What is {i}?", "reply": f"It is {i}.", "patient": f"p{i // 4}"}
    for i in range(12)
]


def write_jsonl(directory: Path) -> None:
    write_images(directory)
    for split, rows in (("train", ROWS[:8]), ("validation", ROWS[8:])):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(directory: Path) -> None:
    write_images(directory)
    for split, rows in (("train", ROWS[:8]), ("validation", ROWS[8:])):
        lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in rows)]
        (directory / f"{split}.csv").write_text("\n".join(lines) + "\n")


def write_parquet_of_paths(directory: Path) -> None:
    write_images(directory)
    for split, rows in (("train", ROWS[:8]), ("validation", ROWS[8:])):
        pq.write_table(pa.Table.from_pylist(rows), directory / f"{split}.parquet")


def write_saved(directory: Path) -> None:
    write_images(directory)
    pictures = []
    for row in ROWS:
        with Image.open(directory / row["picture"]) as image:
            pictures.append(row | {"picture": image.copy()})
    splits = {"train": Dataset.from_list(pictures[:8]), "validation": Dataset.from_list(pictures[8:])}
    DatasetDict(splits).save_to_disk(directory / "saved")


def write_image_folder(directory: Path) -> None:
    for split, rows in (("train", ROWS[:8]), ("validation", ROWS[8:])):
        folder = directory / split
        folder.mkdir(parents=True)
        # Of this form an image is a row: the question about it stands in its metadata.
        with (folder / "metadata.jsonl").open("w") as stream:
            for i, row in enumerate(rows):
                Image.new("L", (8, 8), 40 * (int(row["picture"][7:-4]))).save(folder / f"{i}.png")
                stream.write(json.dumps(row | {"file_name": f"{i}.png", "picture": None}) + "\n")


FORMS: dict[str, tuple[Callable[[Path], None], str, dict[str, str]]] = {
    "jsonl": (write_jsonl, ".", {}),
    "csv": (write_csv, ".", {}),
    "parquet of paths": (write_parquet_of_paths, ".", {}),
    "save_to_disk": (write_saved, "saved", {}),
    "image folder": (write_image_folder, ".", {"dataset.image_column": "image"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_conversations(form: str, home: Path) -> None:
    write, inside, columns = FORMS[form]
    write(home / "data-set")
    config = small_config(**COLUMNS | columns | {"dataset.path_or_dataset": str(home / "data-set" / inside)})
    cache, _ = prepare_conversations(config)
    assert read_manifest(cache)["rows"] == {"train": 8, "validation": 4}
    assert read_manifest(cache)["rejects"] == {}
    rows = [row for split in ("train", "validation") for row in ConversationDataset(cache, split)]
    for example, row in zip(rows, ROWS, strict=True):
        (picture, question), (answer,) = (turn["content"] for turn in example["conversation"])
        assert (question["text"], answer["text"], example["case_id"]) == (row["ask"], row["reply"], row["patient"])
        assert picture["image"].getpixel((0, 0)) == (40 * int(row["picture"][7:-4]),) * 3
        assert example["mode"] == "all"
    assert prepare_conversations(config) == (cache, True)


def test_a_changed_byte_of_an_image_that_is_referred_to_makes_another_cache(home: Path) -> None:
    write_jsonl(home / "data-set")
    config = small_config(**COLUMNS, **{"dataset.path_or_dataset": str(home / "data-set")})
    before = fetch_splits(config).fingerprint
    image = home / "data-set" / "images" / "0.png"
    image.touch()
    assert fetch_splits(config).fingerprint == before
    Image.new("L", (8, 8), 1).save(image)
    assert fetch_splits(config).fingerprint != before


def test_a_single_file_and_its_own_validation_file(home: Path) -> None:
    write_jsonl(home / "data-set")
    files = {
        "dataset.path_or_dataset": str(home / "data-set" / "train.jsonl"),
        "validation_dataset.path_or_dataset": str(home / "data-set" / "validation.jsonl"),
        "validation_dataset.split": "train[:50%]",
    }
    cache, _ = prepare_conversations(small_config(**COLUMNS | files))
    assert read_manifest(cache)["rows"] == {"train": 8, "validation": 2}


def test_a_table_that_cannot_be_read_says_so(home: Path) -> None:
    (home / "train.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: the JSON ends before it is complete"):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "train.jsonl")}))
    (home / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"is not a file of .parquet, .jsonl"):
        fetch_splits(small_config(**{"dataset.path_or_dataset": str(home / "notes.txt")}))


def test_a_missing_image_that_was_added_is_noticed(home: Path) -> None:
    write_parquet_of_paths(home / "data-set")
    image = home / "data-set" / "images" / "0.png"
    content = image.read_bytes()
    image.unlink()
    rows = [row | {"picture": {"bytes": None, "path": row["picture"]}} for row in ROWS]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, part in (("train", rows[:8]), ("validation", rows[8:])):
        columns: dict[str, Any] = {name: [row[name] for row in part] for name in ROWS[0]}
        columns["picture"] = pa.array(columns["picture"], kind)
        pq.write_table(pa.table(columns), home / "data-set" / f"{split}.parquet")
    config = small_config(**COLUMNS, **{"dataset.path_or_dataset": str(home / "data-set")})
    with pytest.raises(ValueError, match="image file is missing: 2 rows"):
        prepare_conversations(config)
    image.write_bytes(content)
    assert read_manifest(prepare_conversations(config)[0])["rows"]["train"] == 8


def test_answers_are_what_the_table_says(home: Path) -> None:
    """A number is an answer, and so is None; a case keeps its zeros."""
    lines = ["ask,reply,patient", "How many?,2,001", "How many?,0,001", "Any finding?,None,002", "Which?,N/A,002"]
    (home / "table").mkdir()
    for split in ("train", "validation"):
        (home / "table" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    settings = COLUMNS | {"dataset.image_column": None, "dataset.path_or_dataset": str(home / "table")}
    rows = list(ConversationDataset(prepare_conversations(small_config(**settings))[0], "train"))
    assert [shape(row)[1] for row in rows] == [["2"], ["0"], ["None"], ["N/A"]]
    assert [row["case_id"] for row in rows] == ["001", "001", "002", "002"]
    numbers = home / "numbers"
    numbers.mkdir()
    for split in ("train", "validation"):
        (numbers / f"{split}.jsonl").write_text('{"ask": "How many?", "reply": 0, "patient": 7}\n')
    settings["dataset.path_or_dataset"] = str(numbers)
    (row,) = ConversationDataset(prepare_conversations(small_config(**settings))[0], "train")
    assert (shape(row)[1], row["case_id"]) == (["0"], "7")


def test_a_card_cannot_name_files_outside_of_its_dataset(home: Path) -> None:
    write_jsonl(home / "private")
    (home / "snapshot").mkdir()
    path = home / "private" / "train.jsonl"
    for named in (str(path), "../private/train.jsonl"):
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n---\n"
        (home / "snapshot" / "README.md").write_text(card)
        with pytest.raises(ValueError, match="names files outside of itself"):
            read_table(home / "snapshot", "lab/data", anywhere=False)


def test_a_local_file_is_no_repository(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(home / "data")
    monkeypatch.chdir(home)
    assert not is_repository_id("data/train.jsonl")
    assert is_repository_id("lab/train.jsonl")


def test_text_alone_needs_no_image_column(home: Path) -> None:
    write_jsonl(home / "data-set")
    columns = COLUMNS | {"dataset.image_column": None, "dataset.path_or_dataset": str(home / "data-set")}
    cache, _ = prepare_conversations(small_config(**columns))
    assert read_manifest(cache)["images"] == 0
    assert shape(ConversationDataset(cache, "train")[0]) == [["What is 0?"], ["It is 0."]]


def pictures_of_two_patients(path_or_dataset: str, split: str) -> list[dict[str, Any]]:
    """What a user's own function returns: conversations, with images as Pillow has them."""
    folder = Path(path_or_dataset)
    return [
        {
            "conversation": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.open(folder / row["picture"])},
                        {"type": "text", "text": f"{row['ask']} ({split})"},
                    ],
                },
                {"role": "assistant", "content": row["reply"]},
            ],
            "case_id": row["patient"],
        }
        for row in (ROWS[:8] if split == "train" else ROWS[8:])
    ]


TARGET = f"{__name__}.pictures_of_two_patients"


def test_a_function_of_the_users_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(home / "data-set")
    config = small_config(**{"dataset.path_or_dataset": str(home / "data-set"), "dataset._target_": TARGET})
    with pytest.raises(ValueError, match="MEDPIX_TARGETS"):
        fetch_splits(config)
    monkeypatch.setenv("MEDPIX_TARGETS", __name__)
    cache, _ = prepare_conversations(config)
    example = ConversationDataset(cache, "validation")[0]
    assert shape(example) == [["IMAGE", "What is 8? (validation)"], ["It is 8."]]
    assert (example["case_id"], example["mode"]) == ("p2", "none")
    assert example["conversation"][0]["content"][0]["image"].getpixel((0, 0)) == (160,) * 3
    # What is there already is found without calling it, and a changed image is noticed.
    monkeypatch.setattr(f"{__name__}.ROWS", None)
    assert prepare_conversations(config) == (cache, True)
    Image.new("L", (8, 8), 1).save(home / "data-set" / "images" / "0.png")
    with pytest.raises(TypeError):
        prepare_conversations(config)


def test_a_function_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_TARGETS", "tests,  os.path ")
    for target, message in (
        ("os.system", "module 'os' is not allowed"),
        ("testsuite.load", "not allowed"),
        ("tests.data.test_formats.nothing", "cannot be loaded"),
        ("tests.data.test_formats.ROWS", "is not a function"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch_splits(small_config(**{"dataset._target_": target}))


def test_the_guides_own_function_is_what_happens_anyway() -> None:
    guide = "nemo_automodel.datasets.vlm.datasets.make_medpix_vqa_dataset"
    assert fetch_splits(small_config(**{"dataset._target_": guide})) == fetch_splits(small_config())


def test_images_are_decoded_as_they_were(home: Path) -> None:
    write_saved(home / "data-set")
    settings = COLUMNS | {"dataset.path_or_dataset": str(home / "data-set" / "saved")}
    dataset = ConversationDataset(prepare_conversations(small_config(**settings))[0], "train")
    assert len(dataset.images) == 6
    assert decode_image(dataset.images[5]["encoded"]).getpixel((0, 0)) == (200,) * 3
    assert (dataset.images[5]["width"], dataset.images[5]["mode"], dataset.images[5]["format"]) == (8, "L", "PNG")


PICTURE = "images/0.png"
QUESTION = {"type": "text", "text": "What?"}


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, QUESTION]}, {"role": "assistant", "content": "This."}]


# The cells that name one image file: of an image column, or of a conversation.
CELLS = {
    "a path": ("picture", PICTURE),
    "a path with backslashes": ("picture", "images\\0.png"),
    "a name alone": ("picture", "0.png"),
    "a number": ("picture", 0),
    "an object": ("picture", {"path": PICTURE}),
    "an object with empty bytes": ("picture", {"bytes": None, "path": PICTURE}),
    "a list": ("picture", [PICTURE]),
    "a list of objects": ("picture", [{"path": PICTURE}]),
    "JSON text of a list": ("picture", json.dumps([PICTURE])),
    "JSON text of an object": ("picture", json.dumps({"path": PICTURE})),
    "a part": ("talk", asked({"type": "image", "image": PICTURE})),
    "a part with an object": ("talk", asked({"type": "image", "image": {"path": PICTURE}})),
    "a part with image_url": ("talk", asked({"type": "image_url", "image_url": {"url": PICTURE}})),
    "a part with path": ("talk", asked({"type": "image", "path": PICTURE})),
    "a conversation as JSON text": ("talk", json.dumps(asked({"type": "image", "image": PICTURE}))),
    "turns as JSON text": ("talk", [json.dumps(turn) for turn in asked({"image": PICTURE})]),
}


@pytest.mark.parametrize("form", CELLS)
def test_a_changed_image_makes_another_key_in_any_form_of_its_cell(form: str, home: Path) -> None:
    column, cell = CELLS[form]
    write_images(home / "data-set")
    row = {column: cell} if column == "talk" else {column: cell, "ask": "What?", "reply": "This."}
    for split in ("train", "validation"):
        (home / "data-set" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    columns = {"dataset.conversation_column": "talk", "dataset.image_column": None} if column == "talk" else {}
    settings = COLUMNS | {"dataset.case_column": None, "dataset.path_or_dataset": str(home / "data-set")} | columns
    config = small_config(**settings)
    before, (example,) = (
        fetch_splits(config).fingerprint,
        ConversationDataset(prepare_conversations(config)[0], "train"),
    )
    assert example["conversation"][0]["content"][0]["image"].getpixel((0, 0)) == (0, 0, 0)
    Image.new("L", (8, 8), 99).save(home / "data-set" / PICTURE)
    assert fetch_splits(config).fingerprint != before
    (example,) = ConversationDataset(prepare_conversations(config)[0], "train")
    assert example["conversation"][0]["content"][0]["image"].getpixel((0, 0)) == (99, 99, 99)
