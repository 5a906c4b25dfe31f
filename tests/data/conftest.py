"""What the tests of data share."""

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPIX_HOME", str(tmp_path / "home"))
    return tmp_path
