"""Default locations are under the home; values that the user has set or configured stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.services.environment import set_service_defaults


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "prefect", raising=False)  # the state before Prefect's import


def test_defaults_are_absolute_and_under_the_home(tmp_path: Path) -> None:
    set_service_defaults()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/home/mlflow/mlflow.db"
    assert os.environ["PREFECT_HOME"] == f"{tmp_path}/home/prefect"


def test_after_prefects_import_its_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """New values would reach the processes that Prefect starts, but not Prefect itself."""
    monkeypatch.setitem(sys.modules, "prefect", object())
    set_service_defaults()
    assert "PREFECT_HOME" not in os.environ
    assert "MLFLOW_TRACKING_URI" in os.environ


def test_set_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    set_service_defaults()
    assert (os.environ["MLFLOW_TRACKING_URI"], os.environ["PREFECT_HOME"]) == ("http://tracker", "/elsewhere")


@pytest.mark.parametrize(("active", "kept"), [("server", True), ("local", False)])
def test_a_profile_with_an_api_is_used(tmp_path: Path, active: str, kept: bool) -> None:
    (tmp_path / ".prefect").mkdir()
    profiles = f'active = "{active}"\n[profiles.local]\n[profiles.server]\nPREFECT_API_URL = "http://x/api"\n'
    (tmp_path / ".prefect" / "profiles.toml").write_text(profiles)
    set_service_defaults()
    assert ("PREFECT_HOME" not in os.environ) == kept


@pytest.mark.slow
def test_importing_the_flow_does_not_import_torch() -> None:
    check = "import sys, pipelines.finetune; print({'torch', 'transformers', 'peft', 'spacy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "set()"
