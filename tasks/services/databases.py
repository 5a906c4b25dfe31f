"""Checks the SQLite files of MLflow and Prefect, so that a locked or damaged one is an error before a run begins."""

import os
import sqlite3
from pathlib import Path

import mlflow
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

SECONDS = 20  # how long to wait for another program that writes to the database


def require_databases() -> None:
    """Raises ValueError if the SQLite file of MLflow, or of a flow's temporary Prefect server, cannot be used."""
    store = mlflow.get_tracking_uri()
    if store.startswith("sqlite:///"):
        require_database(Path(store.removeprefix("sqlite:///").partition("?")[0]))
    own_server = not PREFECT_API_URL.value() and "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ
    if own_server:
        require_database(Path(PREFECT_HOME.value()) / "prefect.db")


def require_database(path: Path) -> None:
    """Raises ValueError if an existing file is not a database, is damaged or locked, or cannot be written to."""
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(path, timeout=SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ValueError(f"the database {path} cannot be used ({error}): {_remedy(str(error))}") from None


def _remedy(error: str) -> str:
    if "locked" in error:
        return f"another program has held it for {SECONDS} s; end that program (`fuser FILE` names it), or wait"
    if "readonly" in error or "unable to open" in error:
        return "let this user write to it and to its directory"
    return "restore it from a backup, or move it away and start with an empty one"
