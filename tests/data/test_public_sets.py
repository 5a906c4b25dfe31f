"""The recipes of public datasets read each set in its published layout: the right rows, images and splits."""

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.dicom_files import dicom_file, series
from vlm_core.cache import read_manifest
from vlm_core.data import source
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import SPLITS
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.recipe import load_config

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PLAIN_STYLE = {"quoting": csv.QUOTE_MINIMAL, "lineterminator": "\n"}


def jpg(number: int) -> bytes:
    """Returns a grey image of its own for each number."""
    stream = io.BytesIO()
    Image.new("L", (16, 16), 10 * number).save(stream, "jpeg")
    return stream.getvalue()


def write_parquet(path: Path, rows: Sequence[tuple[int, str, str]]) -> None:
    """Writes a table as `push_to_hub` does, from (number of the image, question, answer)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": pa.array([{"bytes": jpg(number), "path": None} for number, _, _ in rows], type=IMAGE),
        "question": [question for _, question, _ in rows],
        "answer": [answer for _, _, answer in rows],
    }
    text = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "question": text, "answer": text}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def read(recipe: str, folder: Path, **settings: Any) -> tuple[dict[str, list[tuple[int, str, str]]], Path]:
    """Returns what a recipe stores of a folder, as (number of the image, question, answer) by split, and the cache."""
    cache, _ = prepare_conversations(load_config(recipe, {"dataset.path_or_dataset": str(folder)} | settings))
    return {split: [stored(row) for row in ConversationDataset(cache, split)] for split in SPLITS}, cache


def stored(row: dict[str, Any]) -> tuple[int, str, str]:
    image, question = row["conversation"][0]["content"]
    number = round(image["image"].getpixel((0, 0))[0] / 10)
    return number, question["text"], row["conversation"][1]["content"][0]["text"]


def images(rows: Sequence[tuple[int, str, str]]) -> set[int]:
    return {number for number, _, _ in rows}


RAD_TRAIN = [(number, f"is there a mass {number}?", "yes") for number in range(12)]
RAD_TEST = [(number, f"which organ {number}?", "brain") for number in range(0, 12, 2)]


def test_vqa_rad_divides_by_image_what_was_published_by_question(home: Path) -> None:
    folder = home / "vqa-rad"
    write_parquet(folder / "data" / "train-00000-of-00001-eb8844602202be60.parquet", RAD_TRAIN)
    write_parquet(folder / "data" / "test-00000-of-00001-e5bc3d208bb4deeb.parquet", RAD_TEST)
    found, cache = read("vqa_rad", folder)
    assert sorted(found["train"] + found["validation"]) == sorted(RAD_TRAIN + RAD_TEST)
    assert found["validation"]
    assert not images(found["train"]) & images(found["validation"])
    published, leaking = read("vqa_rad", folder, **{"dataset.split_by": "published"})
    assert published == {"train": RAD_TRAIN, "validation": RAD_TEST}
    shared = [read_json(c / STATISTICS)["overlap"]["images"]["share_of_validation_images"] for c in (cache, leaking)]
    assert shared == [0, 1]


def test_vqa_rad_as_its_authors_publish_it_is_divided_by_case(home: Path) -> None:
    folder = home / "osf"
    (folder / "VQA_RAD Image Folder").mkdir(parents=True)
    rows = []
    for number in range(12):
        (folder / "VQA_RAD Image Folder" / f"synpic{number}.jpg").write_bytes(jpg(number))
        rows += [
            {"qid": f"{number}", "phrase_type": phrase, "qid_linked_id": "03f451ca", "evaluation": "not evaluated",
             "image_case_url": f"https://medpix.nlm.nih.gov/case?id={number // 2}", "image_organ": "CHEST",
             "image_name": f"synpic{number}.jpg", "question": f"{phrase} {number}?", "answer": answer,
             "question_type": "PRES", "answer_type": "CLOSED"}
            for phrase, answer in (("freeform", "Yes"), ("test_freeform", 3.5))
        ]  # fmt: skip
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    found, _ = read(
        "vqa_rad",
        folder,
        **{
            "dataset.image_column": "image_name",
            "dataset.case_column": "image_case_url",
            "dataset.mode_column": "image_organ",
            "dataset.split_by": "case",
            "validation_dataset.split": None,
        },
    )
    assert len(found["train"]) + len(found["validation"]) == 24
    assert {answer for _, _, answer in found["train"]} == {"Yes", "3.5"}
    cases = [{number // 2 for number in images(rows)} for rows in found.values()]
    assert cases[1]
    assert not cases[0] & cases[1]


def slake_rows(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": question, "answer": answer,
         "q_lang": language, "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN", "base_type": "vqa",
         "content_type": "Modality", "triple": ["vhead", "_", "_"], "qid": 10 * number}
        for number in numbers
        for language, question, answer in (("en", f"modality {number}?", "MRI"), ("zh", f"模态 {number}?", "核磁共振"))
    ]  # fmt: skip


SLAKE = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}


def write_slake(folder: Path, form: str) -> None:
    """Writes the dataset as the hub has it, with archives, or as the website's download unpacks."""
    folder.mkdir(parents=True)
    pictures = {f"imgs/xmlab{n}/source.jpg": jpg(n) for numbers in SLAKE.values() for n in numbers}
    beside = {f"imgs/xmlab{n}/question.json": json.dumps(slake_rows([n])).encode() for n in range(10)}
    for split, numbers in SLAKE.items():
        name = "validate" if (split, form) == ("validation", "website") else split
        (folder / f"{name}.json").write_text(json.dumps(slake_rows(numbers), ensure_ascii=False), encoding="utf-8")
    if form == "hub":
        write_zip(folder / "imgs.zip", pictures | beside | {"__MACOSX/imgs/xmlab0/._source.jpg": b"x"})
        write_zip(folder / "KG.zip", {"KG/en_disease.csv": b"a#b#c"})
    else:
        for name, content in (pictures | beside).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["hub", "website"])
def test_slake_keeps_its_english_part(home: Path, form: str) -> None:
    folder = home / "SLAKE"
    write_slake(folder, form)
    found, cache = read("slake", folder)
    assert found == {s: [(n, f"modality {n}?", "MRI") for n in SLAKE[s]] for s in ("train", "validation")}
    assert read_manifest(cache)["left_out"] == 8
    assert read_json(cache / STATISTICS)["splits"]["train"]["modes"] == {"MRI": 6}
    assert read_json(cache / STATISTICS)["overlap"]["images"]["shared"] == 0
    final, _ = read("slake", folder, **{"validation_dataset.split": "test"})
    assert images(final["validation"]) == {8, 9}


def test_slake_is_read_from_the_hub_without_its_other_archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, asked = home / "snapshots" / ("0" * 40), []
    write_slake(snapshot, "hub")

    def download(*arguments: Any) -> Path:
        asked.append(arguments)
        return snapshot

    monkeypatch.setattr(source, "download", download)
    cache, _ = prepare_conversations(load_config("slake"))
    assert [len(ConversationDataset(cache, split)) for split in SPLITS] == [6, 2]
    assert {name for name, *_ in asked} == {"BoKelvin/SLAKE"}
    assert not any(fnmatch("KG.zip", pattern) for pattern in asked[0][3])
    assert [path.name for path in (home / "home" / "cache" / "archives").glob("0*/")] == ["0" * 40 + "-imgs.zip"]


def test_path_vqa(home: Path) -> None:
    folder = home / "path-vqa"
    rows = {s: [(n, f"what is present {n}?", "colon") for n in numbers] for s, numbers in SLAKE.items()}
    for split, content in rows.items():
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", content)
    assert read("path_vqa", folder)[0] == {split: rows[split] for split in SPLITS}


def write_pmc(path: Path, numbers: Sequence[int], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        for number in numbers:
            choices = {f"Choice {letter}": f" {letter}:pattern {letter}, {number} " for letter in "ABCD"}
            label = "ABCD"[number % 4]
            writer.writerow({
                "": number, "index": number, "Figure_path": f"PMC{number}_Fig1_{number}.jpg", "Caption": 'A "figure".',
                "Question": f" Which pattern, {number}? ", **choices, "Answer_label": label,
                "Answer": label if "Answer_label" not in columns else f"pattern {label}", "split": "train",
            })  # fmt: skip


CHOICES = [f"Choice {letter}" for letter in "ABCD"]


@pytest.mark.parametrize("version", [1, 2])
def test_pmc_vqa_asks_with_choices_and_keeps_the_test_file(home: Path, version: int) -> None:
    folder = home / "PMC-VQA"
    folder.mkdir()
    first = ["Figure_path", "Question", "Answer", *CHOICES, "Answer_label"]
    second = ["", "Figure_path", "Caption", "Question", *CHOICES, "Answer", "split"]
    for names, columns in ((("train", "test", "test_clean"), first), (("train_2", "test_2"), second)):
        for name in names:
            write_pmc(folder / f"{name}.csv", range(20, 24) if name.startswith("test") else range(20), columns)
    pictures = {f"PMC{n}_Fig1_{n}.jpg": jpg(n) for n in range(24)}
    write_zip(folder / "images.zip", {f"images/{name}": content for name, content in pictures.items()})
    write_zip(folder / "images_2.zip", {f"figures/{name}": content for name, content in pictures.items()})
    changes: dict[str, Any] = {"dataset.validation_share": 0.3}
    if version == 1:
        changes |= {
            "dataset.data_files": ["train=train.csv", "test=test.csv"],
            "dataset.archives": ["images.zip"],
            "dataset.answer_column": "Answer_label",
        }
    found, _ = read("pmc_vqa", folder, **changes)
    number, question, answer = found["train"][0]
    assert question.splitlines() == [
        f"Which pattern, {number}?",
        *(f"{letter}:pattern {letter}, {number}" for letter in "ABCD"),
        "Answer with the letter.",
    ]
    assert answer == "ABCD"[number % 4]
    assert images(found["train"]) | images(found["validation"]) == set(range(20))
    assert not images(found["train"]) & images(found["validation"])
    tested = {"dataset.split_by": "published", "validation_dataset.split": "test"}
    assert images(read("pmc_vqa", folder, **changes | tested)[0]["validation"]) == {20, 21, 22, 23}


def test_vqa_med_has_files_without_a_header_and_images_without_a_suffix(home: Path) -> None:
    folder = home / "VQA-Med-2019"
    for word, split, numbers in (("Training", "train", range(6)), ("Validation", "val", range(6, 8))):
        part = folder / f"ImageClef-2019-VQA-Med-{word}"
        pictures, categories = part / f"{split.title()}_images", part / "QAPairsByCategory"
        pictures.mkdir(parents=True)
        categories.mkdir()
        lines = []
        for number in numbers:
            (pictures / f"synpic{number}.jpg").write_bytes(jpg(number))
            lines.append(f'synpic{number}|is this a "t1" weighted image, or t{number}?|"halo" sign, in the lung\n')
        (part / f"All_QA_Pairs_{split}.txt").write_text("".join(lines))
        (part / f"{split}_ImageIDs.txt").write_text("".join(f"synpic{number}\n" for number in numbers))
        (categories / f"C1_Modality_{split}.txt").write_text(lines[0])
    found, _ = read("vqa_med", folder)
    question = 'is this a "t1" weighted image, or t{}?'
    assert found["train"] == [(n, question.format(n), '"halo" sign, in the lung') for n in range(6)]
    assert images(found["validation"]) == {6, 7}


def test_dicom_studies_are_divided_by_patient(home: Path) -> None:
    folder = home / "studies"
    rows = []
    for patient in range(8):
        place = folder / f"study{patient}"
        place.mkdir(parents=True)
        if patient % 2:
            for number, content in enumerate(series([0, 5, 10], [patient, patient + 1, patient + 2])):
                (place / f"{number}.dcm").write_bytes(content)
            rows.append((f"study{patient}", f"what, {patient}?", "a mass", f"P{patient:03}"))
        else:
            (place / "one.dcm").write_bytes(dicom_file(np.arange(64.0).reshape(8, 8) + patient))
            rows += [
                (f"study{patient}/one.dcm", f"{word}, {patient}?", "none", f"P{patient:03}") for word in ("a", "b")
            ]
    with (folder / "questions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer", "patient_id"), *rows])
    cache, _ = prepare_conversations(
        load_config("dicom_studies", {"dataset.path_or_dataset": str(folder), "dataset.validation_share": 0.4})
    )
    found = [ConversationDataset(cache, split).conversations.to_list() for split in SPLITS]
    assert sum(map(len, found)) == 12
    patients = [{question_of(row).partition(", ")[2] for row in rows} for rows in found]
    assert all(patients)
    assert not patients[0] & patients[1]
    shown = {question_of(row): len(row["conversation"][0]["content"]) - 1 for rows in found for row in rows}
    assert (shown["what, 1?"], shown["a, 0?"]) == (3, 1)


def question_of(row: dict[str, Any]) -> str:
    return row["conversation"][0]["content"][-1]["text"]
