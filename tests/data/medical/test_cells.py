"""DICOM and NIfTI in a cell of the image column, in every form of table, become pictures in the conversation cache."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.dicom_files import DICOM_FILES, dicom_file, nifti_file, series
from vlm_core.cache import read_manifest
from vlm_core.config import ImagesConfig
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.medical.errors import MedicalImageError, MissingPackageError
from vlm_core.data.medical.reader import MedicalReader
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.recipe import load_config

BRAIN = {"dataset.images.window": "brain"}


def slab(value: float) -> bytes:
    """Returns a CT slice of one value in HU, with an edge of air and one of metal."""
    values = np.full((8, 8), value)
    values[0], values[1] = -1000, 30_000
    return dicom_file(values)


def prepared(folder: Path, **settings: Any) -> Path:
    split = {"validation_dataset.split": None, "dataset.split_by": "image", "dataset.validation_share": 0.4}
    config = load_config("demo", {"dataset.path_or_dataset": str(folder)} | split | settings)
    return prepare_conversations(config)[0]


def shown(cache: Path) -> dict[str, list[np.ndarray]]:
    """Returns the images of each question."""
    rows = [row for split in ("train", "validation") for row in ConversationDataset(cache, split)]
    return {
        row["conversation"][0]["content"][-1]["text"]: [
            np.asarray(part["image"]) for part in row["conversation"][0]["content"] if part["type"] == "image"
        ]
        for row in rows
    }


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


VALUES = (10, 20, 40, 50, 60, 70)


def write(folder: Path, form: str) -> None:
    """Writes six questions about a CT slice each."""
    folder.mkdir()
    files = [slab(value) for value in VALUES]
    rows: list[dict[str, Any]] = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(len(files))]
    if form in ("path", "no suffix", "stem"):
        suffix = "" if form == "no suffix" else ".dcm"
        for i, (row, file) in enumerate(zip(rows, files, strict=True)):
            (folder / f"IM{i:04}{suffix}").write_bytes(file)
            row["image"] = f"IM{i:04}" if form == "stem" else f"IM{i:04}{suffix}"
        write_csv(folder, rows)
    elif form == "parquet":
        images = [{"bytes": file, "path": None} for file in files]
        pq.write_table(pa.Table.from_pylist([row | {"image": image} for row, image in zip(rows, images, strict=True)]),
                       folder / "train.parquet")  # fmt: skip
    else:
        cells = {
            "base64": [base64.b64encode(file).decode() for file in files],
            "data url": [f"data:application/dicom;base64,{base64.b64encode(file).decode()}" for file in files],
            "bytes as numbers": [list(file) for file in files],
        }[form]
        lines = [json.dumps(row | {"image": cell}) for row, cell in zip(rows, cells, strict=True)]
        (folder / "train.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("form", ["path", "no suffix", "stem", "parquet", "base64", "data url", "bytes as numbers"])
def test_a_cell_holds_a_dicom_file_in_every_form(form: str, home: Path, tmp_path: Path) -> None:
    write(tmp_path / "data", form)
    found = shown(prepared(tmp_path / "data", **BRAIN))
    assert found.keys() == {f"q{i}" for i in range(6)}
    grey = [int(found[f"q{i}"][0][4, 4, 0]) for i in range(6)]
    assert grey == pytest.approx([value * 255 / 80 for value in VALUES], abs=3)


def test_a_folder_a_list_and_a_volume_are_slices_of_one_question(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    heads = series([30, 10, 20], [60, 20, 40])
    (folder / "study").mkdir(parents=True)
    for number, file in enumerate(heads):
        (folder / "study" / f"{9 - number}").write_bytes(file)
        (folder / f"part{number}.dcm").write_bytes(file)
    (folder / "study" / "README.txt").write_text("exported")
    (folder / "study" / "report").write_bytes(
        dicom_file(np.zeros((2, 2)), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.2.3", Rows=None)
    )
    report = folder / "study" / "report"
    report.write_bytes(_without_pixels(report.read_bytes()))
    values = np.stack([np.full((4, 4), v) for v in (20.0, 40, 60)], axis=-1)
    (folder / "volume.nii").write_bytes(nifti_file(values))
    parts = json.dumps([f"part{number}.dcm" for number in range(3)])
    rows = [
        {"image": "study", "question": "folder", "answer": "a"},
        {"image": parts, "question": "list", "answer": "a"},
        {"image": "volume.nii", "question": "volume", "answer": "a"},
        {"image": parts, "question": "<image><image><image>placed", "answer": "a"},
    ]
    write_csv(folder, rows)
    found = shown(prepared(folder, **BRAIN, **{"dataset.split_by": "published", "validation_dataset.split": "train"}))
    grey = {question: [int(image[1, 1, 0]) for image in images] for question, images in found.items()}
    assert grey["folder"] == grey["list"] == grey["volume"]
    assert grey["folder"] == sorted(grey["folder"])
    assert grey["placed"] == [grey["folder"][i] for i in (2, 0, 1)]  # as the list has them


def _without_pixels(content: bytes) -> bytes:
    import pydicom

    dataset, stream = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
    del dataset.PixelData
    dataset.save_as(stream)
    return stream.getvalue()


def test_a_folder_may_hold_a_report_but_a_list_may_not() -> None:
    files, reader = (
        [*series([0, 5], [0, 50]), (DICOM_FILES / "test-SR.dcm").read_bytes()],
        MedicalReader(ImagesConfig()),
    )
    for _ in range(2):
        assert len(reader.open(files, in_folder=True).pictures) == 2
        with pytest.raises(MedicalImageError, match="report"):
            reader.open(files)


def test_a_column_names_the_slices_and_another_the_modality(home: Path, tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), v) for v in (-500.0, 40, 60, 3000)], axis=-1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ct.nii").write_bytes(nifti_file(values))
    rows = [{"image": "ct.nii", "question": f"q{n}", "answer": "a", "slices": n, "kind": "CT"} for n in ("1, 2", "0")]
    write_csv(tmp_path / "data", rows)
    settings = {"dataset.images.slice_column": "slices", "dataset.images.modality_column": "kind"}
    found = shown(prepared(tmp_path / "data", **settings))
    assert [len(found[f"q{n}"]) for n in ("1, 2", "0")] == [2, 1]
    assert found["q1, 2"][1][0, 0].tolist() == pytest.approx([135, 142, 194], abs=1)  # 60 HU in the three windows
    with pytest.raises(ValueError, match="lacks the column nowhere of dataset.images.slice_column"):
        prepared(tmp_path / "data", **{"dataset.images.slice_column": "nowhere"})


def test_a_changed_slice_in_a_folder_makes_another_cache(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for study in range(4):
        (folder / f"s{study}").mkdir(parents=True)
        (folder / f"s{study}" / "1").write_bytes(slab(study))
    write_csv(folder, [{"image": f"s{n}", "question": f"q{n}", "answer": "a"} for n in range(4)])
    first = prepared(folder)
    (folder / "s0" / "1").write_bytes(slab(77))
    assert prepared(folder) != first


def test_equal_pixels_in_another_file_format_are_the_same_image(home: Path, tmp_path: Path) -> None:
    """So a leak from training to validation is found: a DICOM file in one, its PNG or its NIfTI slice in the other."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, value in enumerate(VALUES):
        values = np.arange(64.0).reshape(8, 8) / 4 + value
        (folder / f"{number}.dcm").write_bytes(dicom_file(values))
        to_left_and_back = np.diag([-1.0, -1.0, 1.0, 1.0])
        (folder / f"{number}.nii").write_bytes(nifti_file(np.round(values).T[..., np.newaxis], to_left_and_back))
    (picture,) = MedicalReader(ImagesConfig(window="brain")).open([(folder / "0.dcm").read_bytes()]).pictures
    Image.open(io.BytesIO(picture)).convert("RGB").save(folder / "0.png")
    rows = {
        "train": [f"{number}.dcm" for number in range(4)],
        "validation": ["0.png", "1.nii", "4.dcm", "5.nii"],
    }
    for split, images in rows.items():
        written = [{"image": name, "question": f"q {name}", "answer": "a"} for name in images]
        pq.write_table(pa.Table.from_pylist(written), folder / f"{split}.parquet")
    config = load_config("demo", {"dataset.path_or_dataset": str(folder)} | BRAIN)
    cache, _ = prepare_conversations(config)
    found = read_json(cache / STATISTICS)
    assert read_manifest(cache)["images"] == 6
    assert (found["overlap"]["images"]["shared"], found["splits"]["validation"]["images"]) == (2, 4)
    assert found["findings"][0].startswith("50% of the validation images are also in training")


def test_rejects_are_named_and_nothing_of_a_header_is_stored(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder, "path")
    (folder / "report.dcm").write_bytes(
        _without_pixels(dicom_file(np.zeros((2, 2)), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    )
    (folder / "empty").mkdir()
    images = [*(f"IM{n:04}.dcm" for n in range(6)), "report.dcm", "empty"]
    write_csv(folder, [{"image": name, "question": f"q{n}", "answer": "a"} for n, name in enumerate(images)])
    cache = prepared(folder, **BRAIN, **{"dataset.max_reject_share": 1})
    rejects = read_manifest(cache)["rejects"]
    assert rejects.keys() == {"DICOM report, not an image", "folder without a DICOM file"}
    assert "Basic Text SR Storage" in rejects["DICOM report, not an image"]["about"]
    stored = b"".join(path.read_bytes() for path in (home / "home").rglob("*") if path.is_file())
    assert b"Doe" not in stored
    assert b"4711" not in stored
    facts = json.loads(ConversationDataset(cache, "train").images[0]["medical"])
    assert (facts["modality"], facts["window"], facts["bits"]) == ("CT", "window brain 40/80", 16)


def test_a_deep_png_has_percentiles_or_a_window_of_its_own_values(home: Path, tmp_path: Path) -> None:
    """One bright pixel does not hide a finding: tissue is 1064, a bleed 1104, and metal 60000."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(1000, 1200, (64, 64)).astype(np.uint16)
        values[0, 0], values[1, 1], values[2, 2] = 60_000, 1064, 1104
        Image.fromarray(values).save(folder / f"{number}.png")
    write_csv(folder, [{"image": f"{n}.png", "question": f"q{n}", "answer": "a"} for n in range(6)])
    plain = shown(prepared(folder))["q0"][0][..., 0].astype(int)
    assert plain[2, 2] - plain[1, 1] > 45
    windowed = shown(prepared(folder, **{"dataset.images.window": "1064/80"}))["q0"][0][..., 0].astype(int)
    assert windowed[2, 2] - windowed[1, 1] > 100


def test_missing_packages_stop_the_build_with_the_command_to_install_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    write(tmp_path / "data", "path")
    monkeypatch.setattr("vlm_core.data.medical.errors.importlib.import_module", missing)
    with pytest.raises(MissingPackageError, match=r"pip install 'medpix-finetune\[medical\]'"):
        prepared(tmp_path / "data")
