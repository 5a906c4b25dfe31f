"""Weights of a registered version are copied if other machines need them, and referenced by sha256 otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import register as registration
from tasks.run import Run
from tests.conftest import small_config
from vlm_core.cache import require_unchanged


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
    assert registration._weights(run, weights) == (artifacts, reference)  # a second version with the same weights
    (weights / "model.safetensors").unlink()  # a resumed run removes its old checkpoints
    require_unchanged(kept, sha256)
    (kept / "model.safetensors").write_bytes(b"others")
    (kept / "config.json").unlink()
    with pytest.raises(ValueError, match="not as it was registered: config.json, model.safetensors missing or changed"):
        require_unchanged(kept, sha256)
