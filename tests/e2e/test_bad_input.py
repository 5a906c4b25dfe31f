"""Wrong input: a clear error before training starts, and no half-made run."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from prefect.testing.utilities import prefect_test_harness

from pipelines.finetune import main, medpix_finetune
from tests.conftest import new_mlflow_store, tiny_directory
from vlm_core.arguments import flow_parser
from vlm_core.data.phantom import write_phantom

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    write_phantom(tmp_path / "data", num_images=12, seed=5, image_size=56)
    return tmp_path / "home"


def drop_column(data: Path) -> None:
    (path,) = data.glob("data/train-*")
    pq.write_table(pq.read_table(path).drop_columns(["answer"]), path)


def drop_validation(data: Path) -> None:
    (path,) = data.glob("data/validation-*")
    path.unlink()


def empty(data: Path) -> None:
    (path,) = data.glob("data/train-*")
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def drop_processor(data: Path) -> None:
    model = shutil.copytree(tiny_directory("gemma3"), data.parent / "model")
    for path in Path(model).glob("*processor_config.json"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "overrides", "message"),
    [
        (None, {"optimizer.lrr": 1}, "unknown config key 'optimizer.lrr'; nearest: 'optimizer.lr'"),
        (drop_column, {}, "lacks the column of the answer"),
        (drop_validation, {"validation_dataset.split": "validation"}, "has no split 'validation'; it has train"),
        (empty, {}, "is empty: split 'train' has no rows"),
        (drop_processor, {"model.pretrained_model_name_or_path": "model"}, "has no processor"),
        (None, {"dataset.path_or_dataset": "mmoukouba/MedPix-VQA"}, "cannot download the dataset"),
        (None, {"model.pretrained_model_name_or_path": "google/gemma-3-4b-it"}, "cannot download the model"),
        (None, {"checkpoint.checkpoint_dir": "/proc/run"}, "no permission to write to /proc/run"),
    ],
)
def test_the_flow_fails_early_and_leaves_no_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, overrides: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(home.parent)
    if spoil:
        spoil(home.parent / "data")
    with pytest.raises(ValueError, match=re.escape(message)):
        medpix_finetune("demo", overrides={"dataset.path_or_dataset": "data"} | overrides)
    assert not (home / "runs").exists()
    assert mlflow.MlflowClient().search_registered_models() == []
    assert [e for e in mlflow.search_experiments() if e.name != "Default"] == []


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_HOME", "/proc/medpix")
    options, _ = flow_parser(None).parse_config(["--recipe", "demo"])
    with pytest.raises(SystemExit, match="no permission to write to /proc/medpix .*; set MEDPIX_HOME"):
        main(options)
