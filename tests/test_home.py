"""Who can read what is written: by default the owner alone, since the home holds patients' images."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm_core.home import keep_private


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("home_mode", "users", "file", "directory"),
    [
        (None, 0o022, 0o600, 0o700),
        (0o700, 0o022, 0o600, 0o700),
        (0o770, 0o002, 0o660, 0o770),  # shared with the group
        (0o755, 0o022, 0o644, 0o755),  # of an operator who wants it read
        (0o777, 0o077, 0o600, 0o700),  # the user's own umask stays
    ],
)
def test_files_are_as_private_as_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_mode: int | None, users: int, file: int, directory: int
) -> None:
    home = tmp_path / "some" / "home"
    monkeypatch.setenv("MEDPIX_HOME", str(home))
    if home_mode is not None:
        home.mkdir(parents=True)
        home.chmod(home_mode)
    os.umask(users)
    keep_private()
    assert mode(home) == (0o700 if home_mode is None else home_mode)
    (home / "runs").mkdir()
    (home / "image.png").touch()
    assert (mode(home / "image.png"), mode(home / "runs")) == (file, directory)


def test_what_the_services_write_is_private_too(tmp_path: Path) -> None:
    """The parents' umask reaches every process that they start."""
    environment = os.environ | {"MEDPIX_HOME": str(tmp_path / "home")}
    code = "import tasks, os, subprocess; subprocess.run(['touch', os.environ['MEDPIX_HOME'] + '/file'], check=True)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    found = [mode(path) for path in (tmp_path / "home").rglob("*")]
    assert {*found} <= {0o600, 0o700}, found
