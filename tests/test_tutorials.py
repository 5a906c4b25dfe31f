"""The tutorials are short, and run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
SHOWN = {
    "own_images": ["case=patient_id", "models:/medpix-our-scans@challenger", "medpix-our-scans  1"],
    "dicom_folder": ["Images: ", "window: soft_tissue", "[[", "train-3-image-1.png"],
    "compare_models": [
        "token F1 against commonest",
        "token F1 against epoch_0_step_10",
        "worth of the right image",
    ],
}


def test_each_fits_a_page() -> None:
    assert {path.stem for path in TUTORIALS} == SHOWN.keys()
    page = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    for path in TUTORIALS:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60
        assert f"(tutorials/{path.name})" in page


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "medpix"  # `pip install` makes it; here it runs this checkout
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medpix "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment["MEDPIX_HOME"] = str(folder / ".medpix")
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/.medpix/mlflow/mlflow.db"}
    done = subprocess.run([sys.executable, path], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    missing = [words for words in SHOWN[path.stem] if words not in done.stdout + done.stderr]
    assert missing == [], done.stdout
