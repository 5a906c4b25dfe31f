"""The watch finds revisions that no version was trained on, and reports each one once."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.logging import disable_run_logger

from tasks.drift import show_drift
from tasks.watch import Minimum, find_changes
from tests.conftest import fresh_home, new_mlflow_store, small_config
from vlm_core.cache import read_manifest
from vlm_core.data.prepare import prepare_conversations

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    monkeypatch.setattr("tasks.watch.current_commit", lambda repository, kind, revision: f"{kind}-2")
    return mlflow.MlflowClient()


def changes(rows: int = 0, cases: int = 0, **overrides: Any) -> dict[str, str]:
    with disable_run_logger():
        return find_changes.fn(small_config(**overrides), Minimum(rows, cases))


def drift(monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns what `show_drift` found, and what it shows in Prefect."""
    shown: list[str] = []
    monkeypatch.setattr("tasks.drift.create_markdown_artifact", lambda page, **others: shown.append(page))
    with disable_run_logger():
        return show_drift.fn(small_config(**overrides)), shown


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


def test_a_directory_that_grows_is_watched(
    client: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new rows are compared with those of the champion, and each minimum that is given has to be reached."""
    monkeypatch.setenv("MEDPIX_HOME", str(fresh_home(tmp_path / "home")))
    data = tmp_path / "scans.jsonl"
    dataset: Any = {"dataset.path_or_dataset": str(data), "dataset.image_column": None, "dataset.case_column": "case"}

    def write(rows: int) -> dict[str, str]:
        lines = [
            json.dumps({"question": f"q{i}", "answer": "long " * (i > 99) + f"a{i}", "case": i // 2})
            for i in range(rows)
        ]
        data.write_text("\n".join(lines))
        return {
            "dataset_fingerprint": fingerprint(**dataset),
            "dataset_rows": str(rows),
            "dataset_cases": str(rows // 2),
        }

    first = write(100)
    assert drift(monkeypatch, **dataset) == ([], [])
    assert changes(**dataset) == {"dataset_fingerprint": first["dataset_fingerprint"]}  # no version yet
    assert changes(50, **dataset)  # and so none that could have fewer rows
    client.create_registered_model("medpix-demo")
    client.create_model_version("medpix-demo", tmp_path.as_uri(), tags=first)
    client.create_model_version("medpix-demo", tmp_path.as_uri(), tags={"dataset_fingerprint": "elsewhere"})
    client.set_registered_model_alias("medpix-demo", "champion", "1")
    assert changes(**dataset) == {}
    assert drift(monkeypatch, **dataset) == ([], [])
    second = write(130)
    new = {"dataset_fingerprint": second["dataset_fingerprint"]}
    for enough in ((0, 0), (30, 0), (0, 15), (30, 15)):
        assert changes(*enough, **dataset) == new
    for too_many in ((31, 0), (0, 16), (31, 15), (30, 16)):
        assert changes(*too_many, **dataset) == {}
    with pytest.raises(ValueError, match="must be at least 0"):
        changes(-1, **dataset)
    found, (shown,) = drift(monkeypatch, **dataset)
    assert [one["title"] for one in found if one["drifted"]] == ["Words per answer"]
    page = tmp_path / "home" / "drift" / "medpix-demo" / "drift" / "report.html"
    assert shown.startswith("The new rows differ from the training data in words per answer. 30 new rows, 15 cases.")
    assert page.as_uri() in shown
    assert "30 new rows about 15 cases, beside the" in page.read_text()
    # A champion that was trained elsewhere cannot be compared with.
    client.set_registered_model_alias("medpix-demo", "champion", "2")
    assert drift(monkeypatch, **dataset) == ([], [])


def fingerprint(**overrides: Any) -> str:
    return read_manifest(prepare_conversations(small_config(**overrides))[0])["fingerprint"]


def test_a_recipe_without_the_hub_has_nothing_to_watch(client: mlflow.MlflowClient) -> None:
    with pytest.raises(ValueError, match="so there is nothing to watch"):
        changes()
