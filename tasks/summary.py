"""The last step of a run: writes `summary.json`, and shows the result in Prefect and MLflow."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.result_page import closed_questions, evaluation_page, training_page
from tasks.run import Run
from tasks.trackers.mlflow_run import describe_run
from vlm_core.cache import read_manifest
from vlm_core.files import point, write_json
from vlm_core.run_directory import run_root

SUMMARY = "summary.json"


@task(tags=["report"], persist_result=False)
def summarize(
    run: Run, conversations: Path, training: dict[str, Any], scores: dict[str, Any], registered: dict[str, Any]
) -> dict[str, Any]:
    """Writes `summary.json`, publishes the result page, points `runs/latest` to this run; returns the summary."""
    manifest = read_manifest(conversations)
    summary = {
        "run_id": run.run_id,
        "mlflow_run_id": run.mlflow_run_id,
        "dataset": {
            "fingerprint": manifest["fingerprint"],
            "rows": sum(manifest["rows"].values()),
            "images": manifest["images"],
            "cases": manifest["cases"],
        },
        "training": {key: training[key] for key in ("steps", "first_loss", "last_loss", "seconds")},
        "evaluation": scores,
        "registered_model": registered,
        "checkpoint": training["checkpoint"],
    }
    write_json(run.directory / SUMMARY, summary)
    _publish(run, training_page(run, summary), scores, "medpix-summary")
    run_root().mkdir(parents=True, exist_ok=True)
    point(run_root() / "latest", run.directory)
    return summary


def show_scores(run: Run, result: dict[str, Any]) -> None:
    """Shows the result of a separate evaluation in Prefect and in MLflow."""
    _publish(run, evaluation_page(run, result), result, "medpix-evaluation")


def _publish(run: Run, page: str, result: dict[str, Any], key: str) -> None:
    """Sets `page` as the MLflow run's description, and publishes it with the closed questions in Prefect."""
    describe_run(run.mlflow_run_id, page)
    create_markdown_artifact(f"{page}\n\n{closed_questions(result)}", key=key, description=run.run_id)
