"""What a run ends with: `summary.json`, the same for people to read, and an artifact in Prefect's UI."""

import sys
from pathlib import Path
from typing import Any

import mlflow
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.run import Run
from vlm_core.cache import read_manifest
from vlm_core.files import write_json
from vlm_core.run_directory import EVALUATION, EXAMPLES, run_root

SUMMARY = "summary.json"


@task(tags=["report"], cache_policy=NO_CACHE)
def summarize(
    run: Run, conversations: Path, training: dict[str, Any], scores: dict[str, Any], registered: dict[str, str]
) -> dict[str, Any]:
    """Returns what `summary.json` in the run directory holds."""
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
    create_markdown_artifact(f"```\n{render(summary)}\n```", key="medpix-summary", description=run.run_id)
    return summary


def render(summary: dict[str, Any]) -> str:
    """Returns `summary` as lines of text: data, training, scores, the registered version."""
    data, training, scores, model = (summary[key] for key in ("dataset", "training", "evaluation", "registered_model"))
    limit = f" (limited to {scores['limit']} questions)" if scores["limit"] else ""
    return "\n".join(
        [
            f"run         {summary['run_id']}",
            f"data        {data['rows']:,} rows, {data['images']:,} images, {data['cases']:,} cases "
            f"(fingerprint {data['fingerprint'][:12]})",
            f"training    {training['steps']} steps in {training['seconds']:.0f} s, "
            f"loss {training['first_loss']:.3f} -> {training['last_loss']:.3f}",
            f"evaluation  {scores['examples']:,} questions{limit}: token F1 {_score(scores['token_f1'])}, "
            f"with shuffled images {_score(scores['token_f1_shuffled'])}",
            f"            {'closed questions':<68}{'n':>6}{'right':>8}{'shuffled':>10}",
            *(_closed_line(kind, row, row["examples"]) for kind, row in scores["closed"].items()),
            _closed_line("all", scores, sum(row["examples"] for row in scores["closed"].values())),
            f"registered  {model['name']} version {model['version']}, alias {model['alias']}: {model['uri']}",
            f"checkpoint  {summary['checkpoint']}",
        ]
    )


def next_steps(summary: dict[str, Any]) -> str:
    """Returns where to look next, as commands that work in this environment."""
    commands = Path(sys.executable).parent
    return (
        f"Next: {run_root() / 'latest' / EVALUATION / EXAMPLES} shows some answers; MLflow shows the rest:\n"
        f"  {commands / 'mlflow'} ui --backend-store-uri {mlflow.get_tracking_uri()}\n"
        f"  {commands / 'python'} -m vlm_core.generate --checkpoint-path {summary['checkpoint']} "
        "--prompt ... --image ..."
    )


def _closed_line(kind: str, row: dict[str, Any], examples: int) -> str:
    right, shuffled = _score(row["closed_accuracy"]), _score(row["closed_accuracy_shuffled"])
    return f"            {kind[:66]:<68}{examples:>6}{right:>8}{shuffled:>10}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
