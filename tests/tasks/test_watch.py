"""The watch finds revisions that no version was trained on, and reports each one once."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.logging import disable_run_logger

from tasks.watch import find_changes
from tests.conftest import new_mlflow_store, small_config
from vlm_core.cache import read_manifest
from vlm_core.data.prepare import prepare_conversations

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    monkeypatch.setattr("tasks.watch.current_commit", lambda repository, kind, revision: f"{kind}-2")
    return mlflow.MlflowClient()


def changes(min_new_rows: int = 0, **overrides: Any) -> dict[str, str]:
    with disable_run_logger():
        return find_changes.fn(small_config(**overrides), min_new_rows)


def test_a_revision_is_new_until_a_version_was_trained_on_it(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    dataset = {"dataset.path_or_dataset": "lab/medical"}
    assert changes(**dataset) == {"dataset.revision": "dataset-2"}  # there is no version yet
    client.create_registered_model("medpix-demo")
    for revision, expected in (("dataset-1", {"dataset.revision": "dataset-2"}), ("dataset-2", {})):
        client.create_model_version("medpix-demo", tmp_path.as_uri(), tags={"dataset.revision": revision})
        assert changes(**dataset) == expected
    # A later version on older data does not make the revision new again.
    client.create_model_version("medpix-demo", tmp_path.as_uri(), tags={"dataset.revision": "dataset-1"})
    assert changes(**dataset) == {}


def test_a_directory_that_grows_is_watched(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    data = tmp_path / "scans.jsonl"
    dataset: Any = {"dataset.path_or_dataset": str(data), "dataset.image_column": None}

    def write(rows: int) -> dict[str, str]:
        lines = [json.dumps({"question": f"q{i}", "answer": f"a{i}"}) for i in range(rows)]
        data.write_text("\n".join(lines))
        return {"dataset_fingerprint": fingerprint(**dataset), "dataset_rows": str(rows)}

    first = write(100)
    assert changes(**dataset) == {"dataset_fingerprint": first["dataset_fingerprint"]}  # no version yet
    assert changes(50, **dataset)  # and so none that could have fewer rows
    client.create_registered_model("medpix-demo")
    client.create_model_version("medpix-demo", tmp_path.as_uri(), tags=first)
    assert changes(**dataset) == {}
    second = write(130)
    assert changes(**dataset) == changes(30, **dataset) == {"dataset_fingerprint": second["dataset_fingerprint"]}
    assert changes(31, **dataset) == {}


def fingerprint(**overrides: Any) -> str:
    return read_manifest(prepare_conversations(small_config(**overrides))[0])["fingerprint"]


def test_a_recipe_without_the_hub_has_nothing_to_watch(client: mlflow.MlflowClient) -> None:
    with pytest.raises(ValueError, match="so there is nothing to watch"):
        changes()
