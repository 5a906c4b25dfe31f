"""The generated dataset: MedPix-VQA's layout, balance, reproducibility, and answers that need the image."""

import io
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_core.config import ImagesConfig
from vlm_core.data.cell_images import CellImages
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.phantom import CLOSED_QUESTIONS, write_phantom
from vlm_core.data.phantom_drawing import DRIFT, NOISE, STORED, TISSUES

IMAGES = 200
COLUMNS = ["image_id", "mode", "case_id", "question", "answer"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom")
    write_phantom(path, num_images=IMAGES, seed=3, image_size=32)
    return path


@pytest.fixture(scope="module")
def rows(directory: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(_file(directory, split)).to_pylist() for split in ("train", "validation")}


def _file(directory: Path, split: str) -> Path:
    return directory / "data" / f"{split}-00000-of-00001.parquet"


def test_splits_are_over_images_not_cases(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert (len(rows["train"]), len(rows["validation"])) == (10 * 170, 10 * 30)
    paths, cases = ({split: {key(row) for row in rows[split]} for split in rows} for key in (_path, _case))
    assert not paths["train"] & paths["validation"]
    assert len(cases["train"] & cases["validation"]) > len(cases["validation"]) / 2


def _path(row: dict[str, Any]) -> str:
    return row["image_id"]["path"]


def _case(row: dict[str, Any]) -> str:
    return row["case_id"]


def test_every_image_has_five_questions_of_each_mode(rows: dict[str, list[dict[str, Any]]]) -> None:
    modes = Counter((_path(row), row["mode"]) for row in rows["train"] + rows["validation"])
    assert len(modes) == 2 * IMAGES
    assert {mode for _, mode in modes} == {"pre_training", "alignment"}
    assert set(modes.values()) == {5}
    texts = Counter((_path(row), row["question"]) for row in rows["train"] + rows["validation"])
    assert max(texts.values()) == 1


def test_cases_have_about_three_images_of_one_modality(rows: dict[str, list[dict[str, Any]]]) -> None:
    images: dict[str, set[str]] = defaultdict(set)
    modalities: dict[str, set[str]] = defaultdict(set)
    for row in rows["train"] + rows["validation"]:
        images[_case(row)].add(_path(row))
        if row["question"] == CLOSED_QUESTIONS["modality"][0]:
            modalities[_case(row)].add(row["answer"])
    assert 2.4 < IMAGES / len(images) < 3.6
    assert {len(members) for members in images.values()} == set(range(1, 7))
    assert {len(seen) for seen in modalities.values()} == {1}


@pytest.mark.parametrize("kind", CLOSED_QUESTIONS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_guessing_a_closed_answer_does_not_pay(rows: dict[str, list[dict[str, Any]]], kind: str, split: str) -> None:
    question, answers = CLOSED_QUESTIONS[kind]
    counts = Counter(row["answer"] for row in rows[split] if row["question"] == question)
    assert set(counts) == set(answers)
    slack = 0.05 if split == "train" else 0.2  # validation asks some kinds a dozen times only
    assert max(counts.values()) / counts.total() <= 1 / len(answers) + slack


def test_no_open_question_gives_its_answer_away(rows: dict[str, list[dict[str, Any]]]) -> None:
    answers: dict[str, list[str]] = defaultdict(list)
    for row in rows["train"]:
        if row["mode"] == "alignment":
            answers[row["question"]].append(row["answer"])
            assert 8 <= len(row["answer"].split()) <= 24
    for seen in answers.values():
        assert Counter(seen).most_common(1)[0][1] <= len(seen) / 3


def test_side_question_tells_where_the_bright_spot_is(rows: dict[str, list[dict[str, Any]]]) -> None:
    left_minus_right: dict[str, list[float]] = {"Left": [], "Right": []}
    for row in rows["train"]:
        if row["question"] == CLOSED_QUESTIONS["side"][0]:
            pixels = np.asarray(Image.open(io.BytesIO(row["image_id"]["bytes"])), dtype=float)
            # The inner part of the body, so that neither fat nor a spine at the rim decides.
            left_minus_right[row["answer"]].append(pixels[6:26, 9:15].mean() - pixels[6:26, 17:23].mean())
    assert np.mean(left_minus_right["Left"]) > 10 > -10 > np.mean(left_minus_right["Right"])


def test_equal_arguments_write_equal_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_phantom(tmp_path / name, num_images=20, seed=seed, image_size=32)
    one, two, other = (_file(tmp_path / name, "train").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other


def test_an_image_is_stored_once_for_its_ten_questions(directory: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    images = {_path(row): len(row["image_id"]["bytes"]) for row in rows["train"]}
    assert _file(directory, "train").stat().st_size < 2 * sum(images.values())


def test_datasets_reads_images(directory: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(directory), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 1700, "validation": 300}
    assert list(loaded["train"].features) == COLUMNS
    assert isinstance(loaded["train"].features["image_id"], datasets.Image)
    image = loaded["validation"][0]["image_id"]
    assert (image.size, image.mode) == ((32, 32), "L")


@pytest.mark.parametrize(("num_images", "image_size"), [(1, 64), (10, 16)])
def test_arguments_out_of_range_are_refused(tmp_path: Path, num_images: int, image_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_images} and {image_size}"):
        write_phantom(tmp_path, num_images, seed=0, image_size=image_size)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 16 volumes of three slices as DICOM series and as NIfTI files."""
    root = tmp_path_factory.mktemp("scans")
    for form in ("dicom", "nifti"):
        write_phantom(root / form, num_images=16, seed=3, image_size=64, form=form, slices=3)
    return {form: root / form for form in ("dicom", "nifti")}


def with_a_lesion(directory: Path, modality: str) -> list[str]:
    """Returns the paths of the training volumes that show a lesion."""
    asked, rows = CLOSED_QUESTIONS["number"][0], pq.read_table(_file(directory, "train")).to_pylist()
    return [row["image_id"] for row in rows if row["question"] == asked and row["modality"] == modality]


def stored_values(path: Path) -> np.ndarray:
    """Returns the values of a DICOM file in HU, or those of its MR scanner."""
    import pydicom

    header = pydicom.dcmread(path)
    return header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)


def near(values: np.ndarray, tissue: str, modality: str) -> np.ndarray:
    """Returns which of the values are those of a tissue."""
    known = dict(zip(TISSUES, STORED[modality], strict=True))[tissue]
    return abs(values - known) < DRIFT + 3 * NOISE[modality]


def test_stored_values_are_those_of_the_tissues(scans: dict[str, Path]) -> None:
    import nibabel

    for path in with_a_lesion(scans["dicom"], "CT"):
        hu = stored_values(scans["dicom"] / path / "IM0002")
        assert near(hu[:2, :2], "air", "CT").all()
        assert all(near(hu, tissue, "CT").sum() > 8 for tissue in ("fat", "muscle", "lesion"))
        volume: Any = nibabel.load(scans["nifti"] / f"{path}.nii.gz")
        np.testing.assert_array_equal(volume.get_fdata()[..., 1].T, hu)
    for path in with_a_lesion(scans["dicom"], "MR"):
        assert near(stored_values(scans["dicom"] / path / "IM0002")[:2, :2], "air", "MR").all()


def test_both_forms_are_shown_alike_and_the_window_decides_what_is_seen(scans: dict[str, Path]) -> None:
    for window, least, most in (("40/80", 80, 140), ("none", 0, 3)):
        readers = {form: CellImages(ImageFolder(root, anywhere=False), ImagesConfig(window=window))
                   for form, root in scans.items()}  # fmt: skip
        for path in with_a_lesion(scans["dicom"], "CT"):
            pictures = readers["dicom"].pictures(path)
            grey = np.asarray(Image.open(io.BytesIO(pictures[1]))).astype(float)
            hu = stored_values(scans["dicom"] / path / "IM0002")
            assert least <= grey[near(hu, "lesion", "CT")].mean() - grey[near(hu, "muscle", "CT")].mean() <= most
            assert len(set(pictures)) == 3
            if window == "40/80":  # the full range is that of 12 bits in the one file, of 16 in the other
                assert pictures == readers["nifti"].pictures(f"{path}.nii.gz")


def test_equal_arguments_write_equal_scans(scans: dict[str, Path], tmp_path: Path) -> None:
    for form, directory in scans.items():
        write_phantom(tmp_path / form, num_images=16, seed=3, image_size=64, form=form, slices=3)
        one, two = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                    for root in (directory, tmp_path / form))  # fmt: skip
        assert one == two


@pytest.mark.parametrize(("form", "slices"), [("jpeg", 1), ("png", 2), ("dicom", 0)])
def test_forms_that_cannot_be_written_are_refused(tmp_path: Path, form: str, slices: int) -> None:
    with pytest.raises(ValueError, match=f"got '{form}' and {slices}"):
        write_phantom(tmp_path, num_images=10, seed=0, image_size=32, form=form, slices=slices)


def test_command_line_writes_without_torch_or_datasets(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = ['--output', sys.argv[1], '--images', '4', '--image-size', '32'];"
        "runpy.run_module('vlm_core.data.phantom', run_name='__main__');"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "30 rows" in done.stdout
    assert "10 rows" in done.stdout
