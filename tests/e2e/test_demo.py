"""The embedded default as a user runs it: it ends well, and the model has learnt to look."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_demo_learns_to_look(tmp_path: Path) -> None:
    ours = ("MLFLOW_", "PREFECT_", "MEDPIX_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment["HOME"] = str(tmp_path / "user")
    (tmp_path / "user").mkdir()
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "pipelines.finetune", "--recipe", "demo"]
    result = subprocess.run(
        command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=1400
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "work").iterdir()] == [".medpix"]
    assert list((tmp_path / "user").iterdir()) == []  # and nothing in the user's home
    summary = json.loads((tmp_path / "work" / ".medpix" / "runs" / "latest" / "summary.json").read_text())
    scores = summary["evaluation"]
    assert scores["limit"] is None
    assert scores["closed_accuracy"] >= 0.9
    assert scores["closed_accuracy"] - scores["closed_accuracy_shuffled"] >= 0.4
    gains = [kind["closed_accuracy"] - kind["closed_accuracy_shuffled"] for kind in scores["closed"].values()]
    assert len(gains) >= 4
    assert sum(gain >= 0.1 for gain in gains) >= 3
    # Balanced: with another case's image no kind is answered much better than by guessing.
    assert all(kind["closed_accuracy_shuffled"] <= 0.7 for kind in scores["closed"].values())
    for shown in (summary["registered_model"]["uri"], summary["checkpoint"], summary["run_id"], "mlflow ui"):
        assert shown in result.stdout
