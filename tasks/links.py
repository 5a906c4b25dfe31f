"""Links to a run, its reports and its registered version: pages of MLflow and Prefect, or files."""

from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import mlflow
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from vlm_core.run_directory import REPORT


def mlflow_pages() -> str | None:
    """Returns the address of MLflow's UI, or None if MLflow is a database or a directory without a server."""
    address = urlsplit(mlflow.get_tracking_uri())
    if address.scheme not in ("http", "https"):
        return None
    host = address.netloc.rpartition("@")[2]  # without the password: links are shown to others
    return urlunsplit((address.scheme, host, address.path.rstrip("/"), "", ""))


def mlflow_run_link(run_id: str) -> str | None:
    """Returns the page of a run in MLflow, or None without a server."""
    pages = mlflow_pages()
    if pages is None:
        return None
    experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
    return f"{pages}/#/experiments/{experiment}/runs/{run_id}"


def version_link(name: str, version: str) -> str | None:
    """Returns the page of a registered version in MLflow, or None without a server."""
    pages = mlflow_pages()
    return pages and f"{pages}/#/models/{quote(name, safe='')}/versions/{version}"


def report_link(run_id: str, directory: Path, part: str) -> str:
    """Returns the address of a run's report: in MLflow, or the file itself if MLflow has no server.

    `part` is the report's folder, in the run directory as well as among the run's artifacts.
    """
    page = mlflow_run_link(run_id)
    return (directory / part / REPORT).as_uri() if page is None else f"{page}/artifacts/{part}/{REPORT}"


def flow_run_link() -> str | None:
    """Returns the page of the current flow run; None outside a flow, or if Prefect's server ends with the flow."""
    return url_for("flow-run", flow_run.id) if flow_run.id else None
