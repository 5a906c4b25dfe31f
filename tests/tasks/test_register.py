"""Weights of a registered version are copied if other machines need them, and referenced by sha256 otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks.ownership import MLFLOW_RUN
from tasks.registry import register as registration
from tasks.registry.register import FINGERPRINT, IDENTITY
from tasks.registry.resolve import _downloaded_weights, _referenced_weights
from tasks.registry.trust import TAG
from tasks.run import Run
from tests.conftest import new_mlflow_store, small_config
from vlm_core.cache import FILES, checksums, read_manifest, require_unchanged
from vlm_core.files import write_json
from vlm_core.run_directory import CONFIG


@dataclass
class Tracker:
    """A stub of MLflow's client that only knows where a run's artifacts are."""

    artifact_uri: str

    def get_run(self, run_id: str) -> Any:
        return self

    @property
    def info(self) -> Any:
        return self


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "epoch_0_step_3" / "model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.mark.parametrize(
    ("store", "overrides", "copied"),
    [
        ("file:///store/artifacts", {}, False),
        ("/store/artifacts", {}, False),
        ("file:///store/artifacts", {"peft.dim": 4}, True),
        ("mlflow-artifacts:/1/abc/artifacts", {}, True),
        ("s3://bucket/abc", {}, True),
    ],
)
def test_full_weights_are_copied_only_if_other_machines_load_them(
    weights: Path, monkeypatch: pytest.MonkeyPatch, store: str, overrides: dict[str, Any], copied: bool
) -> None:
    monkeypatch.setattr(registration.mlflow, "MlflowClient", lambda: Tracker(store))
    run = Run(small_config(**overrides), weights.parents[1], "run")
    artifacts, reference = registration._weights(run, weights)
    assert artifacts == ({"checkpoint": str(weights)} if copied else {})
    if copied:
        assert reference == {}
        return
    kept, sha256 = Path(reference["weights"]["path"]), reference["weights"]["sha256"]
    assert kept.is_relative_to(weights.parents[1] / "registered")
    assert sorted(sha256) == ["config.json", "model.safetensors"]
    assert (kept / "model.safetensors").samefile(weights / "model.safetensors")
    assert read_manifest(kept)[FILES] == checksums(kept) == sha256
    assert registration._weights(run, weights) == (artifacts, reference)  # a second version with the same weights
    (weights / "model.safetensors").unlink()  # a resumed run removes its old checkpoints
    require_unchanged(kept, sha256)
    for added in (".metadata", "model/config.json", "adapter_config.json"):
        (kept / added).parent.mkdir(exist_ok=True)
        (kept / added).write_text("{}")
        with pytest.raises(ValueError, match=f"not as it was registered: {added} added. Restore it"):
            require_unchanged(kept, sha256)
        (kept / added).unlink()
    (kept / "model").rmdir()
    (kept / "model").symlink_to(weights)  # its files would not be listed
    with pytest.raises(ValueError, match="not as it was registered: model added"):
        require_unchanged(kept, sha256)
    (kept / "model").unlink()
    with pytest.raises(ValueError, match="registered without checksums"):
        require_unchanged(kept, {})
    (kept / "model.safetensors").write_bytes(b"others")
    (kept / "config.json").unlink()
    with pytest.raises(ValueError, match="not as it was registered: config.json, model.safetensors missing or changed"):
        require_unchanged(kept, sha256)


def test_weights_outside_the_runs_own_directory_are_refused(weights: Path) -> None:
    run = weights.parents[1]
    kept = run / "registered" / "0123"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    sha256 = checksums(kept)
    (run / CONFIG).write_text("{}")
    reference = {"path": str(kept), "sha256": sha256}
    with pytest.raises(ValueError, match="does not belong to the version's MLflow run 7"):
        _referenced_weights(reference, "7")
    write_json(run / MLFLOW_RUN, {"run_id": "7"})
    assert _referenced_weights(reference, "7") == kept
    for other_run in ("8", None):
        with pytest.raises(ValueError, match="does not belong to the version's MLflow run"):
            _referenced_weights(reference, other_run)
    (run / "registered" / "link").symlink_to(weights)
    for path in ("/etc", "/", str(weights), str(kept / ".." / ".." / ".."), str(run / "registered" / "link")):
        with pytest.raises(ValueError, match="is not a directory of registered weights"):
            _referenced_weights({"path": path, "sha256": sha256}, "7")


def test_the_weights_of_a_version_are_among_its_own_files(tmp_path: Path) -> None:
    version = tmp_path / "version"
    (version / "artifacts" / "model").mkdir(parents=True)
    (version / "link").symlink_to("/etc")
    assert _downloaded_weights(version, "artifacts/model") == version / "artifacts" / "model"
    for path in ("/etc", "../..", "link", "artifacts/../../.."):
        with pytest.raises(ValueError, match="not a directory of the version"):
            _downloaded_weights(version, path)


@pytest.mark.slow
def test_what_a_killed_process_registered_is_used_or_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("e")).info.run_id
    for name in ("m", "other"):
        client.create_registered_model(name)

    def version(name: str, **tags: str) -> str:
        return str(client.create_model_version(name, source=tmp_path.as_uri(), run_id=run, tags=tags).version)

    assert registration._left_by_killed(client, "m", run, "same") is None
    of_older_release = version("m", **{FINGERPRINT: "abc"})
    of_other_weights = version("m", **{IDENTITY: "others", FINGERPRINT: "abc", TAG: "lock"})
    complete = version("m", **{IDENTITY: "same", FINGERPRINT: "abc", TAG: "lock"})
    version("m", **{IDENTITY: "same"})
    version("m")
    of_other_name = version("other")
    assert registration._left_by_killed(client, "m", run, "same") == complete
    assert registration._left_by_killed(client, "m", run, "new") is None
    kept = {str(found.version) for found in client.search_model_versions("name = 'm'")}
    assert kept == {of_older_release, of_other_weights, complete}
    assert [str(found.version) for found in client.search_model_versions("name = 'other'")] == [of_other_name]
