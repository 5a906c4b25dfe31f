"""The watch finds revisions that no version was trained on, and reports each one once."""

from pathlib import Path

import mlflow
import pytest
from prefect.logging import disable_run_logger

from tasks.watch import find_changes
from tests.conftest import new_mlflow_store, small_config

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    monkeypatch.setattr("tasks.watch.current_commit", lambda repository, kind, revision: f"{kind}-2")
    return mlflow.MlflowClient()


def changes(**overrides: str) -> dict[str, str]:
    with disable_run_logger():
        return find_changes.fn(small_config(**overrides))


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


def test_a_recipe_without_the_hub_has_nothing_to_watch(client: mlflow.MlflowClient) -> None:
    with pytest.raises(ValueError, match="so there is nothing to watch"):
        changes()
