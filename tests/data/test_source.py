"""Datasets in MedPix-VQA's layout on disk, and what is said about those that are wrong."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import small_config
from vlm_core.config import DatasetConfig
from vlm_core.data import source as source_module
from vlm_core.data.dataset_files import read_table
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.phantom import write_phantom
from vlm_core.data.source import OpenDataset, fetch_split, open_dataset
from vlm_core.files import file_sha256
from vlm_core.recipe import load_config


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantom")
    write_phantom(directory, num_images=12, seed=5, image_size=56)
    return directory


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom, tmp_path / "data-set"))


def fetch(path: Any, split: str = "train") -> Any:
    return fetch_split(DatasetConfig(path_or_dataset=str(path), split=split))


def rewrite(directory: Path, change: Any) -> None:
    (path,) = directory.glob("data/train-*.parquet")
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("split", "start", "stop"),
    [
        ("train", 0, 100),
        ("train[:30]", 0, 30),
        ("train[10%:50%]", 10, 50),
        ("train[-5:]", 95, 100),
        ("validation", 0, 20),
    ],
)
def test_split_expressions(phantom: Path, split: str, start: int, stop: int) -> None:
    source = fetch(phantom, split)
    assert (source.start, source.stop) == (start, stop)


def test_two_parts_of_a_table_read_each_file_once(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(source_module, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    opened = open_dataset(DatasetConfig(path_or_dataset=str(phantom)))
    parts = [opened.take(part) for part in ("train[:90%]", "train[90%:]")]
    assert len(read) == len(set(read)) > 0
    alone = open_dataset(DatasetConfig(path_or_dataset=str(phantom))).take("train[90%:]")
    assert parts[1].fingerprint == alone.fingerprint != parts[0].fingerprint


def test_the_fingerprint_is_that_of_the_content(phantom: Path, copy: Path) -> None:
    before = fetch(copy).fingerprint
    assert before == fetch(phantom).fingerprint  # wherever it lies
    assert before != fetch(copy, "train[:50]").fingerprint
    rewrite(copy, lambda table: table.set_column(4, "answer", pa.array(["x", *table["answer"].to_pylist()[1:]])))
    assert before != fetch(copy).fingerprint


def test_a_commit_identifies_images_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").write_text('{"image": "0.png", "question": "q?", "answer": "a"}\n')
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "0.png")
    config, tables = DatasetConfig(path_or_dataset="owner/data"), read_table(tmp_path, "owner/data", anywhere=False)
    monkeypatch.setattr(ImageFolder, "digests", None)
    source = OpenDataset(config, tmp_path, "0" * 40, tables).take("train")
    assert source.notes[-1].startswith("1 images were found by name")
    assert source.fingerprint != OpenDataset(config, tmp_path, "1" * 40, tables).take("train").fingerprint
    with pytest.raises(TypeError):
        OpenDataset(config, tmp_path, None, tables).take("train")


def test_a_missing_column_is_named(copy: Path) -> None:
    rewrite(copy, lambda table: table.drop_columns(["case_id"]))
    assert fetch(copy).columns.case is None  # the config does not name it
    named = "lacks the column case_id: it has image_id, mode, question, answer; set dataset.case_column"
    with pytest.raises(ValueError, match=named):
        fetch_split(DatasetConfig(path_or_dataset=str(copy), case_column="case_id"))
    with pytest.raises(ValueError, match="lacks the column questions: .*did you mean 'question'"):
        fetch_split(DatasetConfig(path_or_dataset=str(copy), question_column="questions"))


def test_a_missing_split_is_named(phantom: Path) -> None:
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        fetch(phantom, "test")


def test_an_empty_split_is_refused(copy: Path) -> None:
    rewrite(copy, lambda table: table.slice(0, 0))
    with pytest.raises(ValueError, match="is empty: split 'train' has no rows"):
        fetch(copy)


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no data files"):
        fetch(tmp_path)


def test_names_that_are_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a directory or file, nor a hub id"):
        fetch("no-such-directory")
    known = r"takes whole numbers for \['images', 'seed', 'image_size', 'slices'\], and form=png\|dicom\|nifti"
    for wrong in ("pictures=3", "form=jpeg", "slices=two"):
        with pytest.raises(ValueError, match=known):
            fetch(f"builtin:phantom?{wrong}")


def test_the_hub_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot download the dataset 'owner/data': HF_HUB_OFFLINE is set") as error:
        fetch("owner/data")
    assert "local directory" in str(error.value)


def test_the_real_names_are_the_same_code_with_other_values() -> None:
    names = {
        "dataset.path_or_dataset": "mmoukouba/MedPix-VQA",
        "model.pretrained_model_name_or_path": "google/gemma-3-4b-it",
    }
    config = load_config("demo", names)
    assert config.validation_source.path_or_dataset == "mmoukouba/MedPix-VQA"
    with pytest.raises(ValueError, match="cannot download the dataset 'mmoukouba/MedPix-VQA'"):
        fetch_split(config.dataset)
    assert small_config().dataset.path_or_dataset.startswith("builtin:phantom")
