"""Where a browser finds a run, its reports and its version: in the pages of MLflow and Prefect, or as files."""

from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import mlflow
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from vlm_core.run_directory import REPORT


def mlflow_pages() -> str | None:
    """Returns the address of MLflow's pages, None where MLflow is a database or a directory without a server."""
    address = urlsplit(mlflow.get_tracking_uri())
    if address.scheme not in ("http", "https"):
        return None
    host = address.netloc.rpartition("@")[2]  # links are shown to others: no password in them
    return urlunsplit((address.scheme, host, address.path.rstrip("/"), "", ""))


def mlflow_run_link(run_id: str) -> str | None:
    """Returns the page of a run, None without a server."""
    pages = mlflow_pages()
    if pages is None:
        return None
    experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
    return f"{pages}/#/experiments/{experiment}/runs/{run_id}"


def version_link(name: str, version: str) -> str | None:
    """Returns the page of a registered version, None without a server."""
    pages = mlflow_pages()
    return pages and f"{pages}/#/models/{quote(name, safe='')}/versions/{version}"


def report_link(run_id: str, directory: Path, part: str) -> str:
    """Returns where a browser finds a report of a run: in MLflow's pages, or as a file where MLflow has none.

    `part` is the report's place below the run directory, and among the run's artifacts.
    """
    page = mlflow_run_link(run_id)
    return (directory / part / REPORT).as_uri() if page is None else f"{page}/artifacts/{part}/{REPORT}"


def flow_run_link() -> str | None:
    """Returns the page of the flow run at hand, None outside of one and where Prefect's server ends with the flow."""
    return url_for("flow-run", flow_run.id) if flow_run.id else None
