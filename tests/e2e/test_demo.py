"""The embedded default as a user runs it: it ends well, and the model has learnt to look."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from vlm_core.files import read_json_lines

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
    assert scores["verdict"]["learnt"] is True, scores["verdict"]["text"]
    assert summary["registered_model"]["promotion"]["promoted"] is True
    assert scores["scores"]["model"]["closed_accuracy"]["value"] >= 0.9
    # A model that needs its images, and each control notices.
    assert scores["visual_reliance"]["closed_accuracy"]["low"] >= 0.4
    for control in ("shuffled", "blank", "question_only"):
        assert scores["scores"][control]["closed_accuracy"]["high"] <= 0.6
        assert scores["scores"][control]["perplexity"]["low"] > scores["scores"]["model"]["perplexity"]["high"]
    assert scores["differences"]["base"]["token_f1"]["low"] > 0.9
    gains = [kind["model"] - kind["shuffled"] for kind in scores["closed_questions"].values()]
    assert len(gains) >= 4
    assert sum(gain >= 0.1 for gain in gains) >= 3
    # Balanced: with another case's image no kind is answered much better than by guessing.
    assert all(kind["shuffled"] <= 0.7 for kind in scores["closed_questions"].values())
    # The likelihood of the references is that of the validation loss, computed on another way.
    losses = read_json_lines(tmp_path / "work" / ".medpix" / "runs" / "latest" / "validation.jsonl")[0]
    assert scores["scores"]["model"]["logprob"]["value"] == pytest.approx(-losses[-1]["loss"], abs=1e-4)
    # The data report lies in the run directory, and in MLflow.
    run = tmp_path / "work" / ".medpix" / "runs" / "latest"
    assert json.loads((run / "data" / "statistics.json").read_text())["splits"]["train"]["rows"] == 8500
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'work' / '.medpix' / 'mlflow' / 'mlflow.db'}")
    logged = [artifact.path for artifact in client.list_artifacts(summary["mlflow_run_id"], "data")]
    assert logged == ["data/report.html", "data/statistics.json"]
    for shown in (summary["registered_model"]["uri"], summary["checkpoint"], summary["run_id"], "mlflow ui"):
        assert shown in result.stdout
