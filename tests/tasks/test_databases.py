"""A SQLite file that is damaged, locked or not to be written to is one error that names it."""

import sqlite3
from pathlib import Path

import mlflow
import pytest

from tasks.services import databases
from tasks.services.databases import require_database, require_databases


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE runs (id)")
    connection.commit()
    connection.close()
    return path


def test_a_good_one_and_a_missing_one_pass(database: Path) -> None:
    before = database.read_bytes()
    require_database(database)
    require_database(database.with_name("none.db"))
    assert (database.read_bytes(), database.with_name("none.db").exists()) == (before, False)


@pytest.mark.parametrize("content", [b"garbage" * 500, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_one_is_named(database: Path, content: bytes) -> None:
    database.write_bytes(content)
    with pytest.raises(ValueError, match=r"mlflow\.db cannot be used .*restore it from a backup"):
        require_database(database)


def test_a_locked_one_is_named(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "SECONDS", 0.1)
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"mlflow\.db cannot be used \(database is locked\): another program"):
        require_database(database)
    holder.close()


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to open database file.*let this user write"):
        require_database(tmp_path)


def test_mlflows_file_is_looked_at_before_a_run(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.write_bytes(b"garbage" * 500)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{database}")
    with pytest.raises(ValueError, match=str(database)):
        require_databases()
