"""What a run ends with: `summary.json`, the same for people to read, and an artifact in Prefect's UI."""

import sys
from pathlib import Path
from typing import Any

import mlflow
from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.result_page import closed_questions, evaluation_page, training_page
from tasks.run import Run
from tasks.tracking import describe_run
from vlm_core.cache import read_manifest
from vlm_core.evaluation.names import with_interval
from vlm_core.files import point, write_json
from vlm_core.run_directory import EVALUATION, REPORT, run_root

SUMMARY = "summary.json"


@task(tags=["report"], persist_result=False)
def summarize(
    run: Run, conversations: Path, training: dict[str, Any], scores: dict[str, Any], registered: dict[str, Any]
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
    _publish(run, training_page(run, summary), scores, "medpix-summary")
    run_root().mkdir(parents=True, exist_ok=True)
    point(run_root() / "latest", run.directory)
    return summary


def show_scores(run: Run, result: dict[str, Any]) -> None:
    """Shows what an evaluation by itself found, in Prefect and in MLflow."""
    _publish(run, evaluation_page(run, result), result, "medpix-evaluation")


def _publish(run: Run, page: str, result: dict[str, Any], key: str) -> None:
    """Makes `page` the description of the MLflow run and, with the closed questions, an artifact in Prefect."""
    describe_run(run.mlflow_run_id, page)
    create_markdown_artifact(f"{page}\n\n{closed_questions(result)}", key=key, description=run.run_id)


def render(summary: dict[str, Any]) -> str:
    """Returns `summary` as lines of text: data, training, scores, the registered version."""
    data, training, scores, model = (summary[key] for key in ("dataset", "training", "evaluation", "registered_model"))
    return "\n".join(
        [
            f"run         {summary['run_id']}",
            f"data        {data['rows']:,} rows, {data['images']:,} images, {data['cases']:,} cases "
            f"(fingerprint {data['fingerprint'][:12]})",
            f"training    {training['steps']} steps in {training['seconds']:.0f} s, "
            f"loss {training['first_loss']:.3f} -> {training['last_loss']:.3f}",
            *_evaluation_lines(scores),
            f"registered  {model['name']} version {model['version']}, alias {model['alias']}: {model['uri']}",
            f"champion    {'yes' if model['promotion']['promoted'] else 'no'}: {model['promotion']['reason']}",
            f"checkpoint  {summary['checkpoint']}",
        ]
    )


def next_steps(summary: dict[str, Any]) -> str:
    """Returns where to look next, as commands that work in this environment."""
    commands = Path(sys.executable).parent
    return (
        f"Next: open {run_root() / 'latest' / EVALUATION / REPORT} in a browser; MLflow shows it too, and the rest:\n"
        f"  {commands / 'mlflow'} ui --backend-store-uri {mlflow.get_tracking_uri()}\n"
        f"  {commands / 'python'} -m vlm_core.generate --checkpoint-path {summary['checkpoint']} "
        "--prompt ... --image ..."
    )


def _evaluation_lines(result: dict[str, Any]) -> list[str]:
    """Returns the verdict, a line a variant (model, controls, baseline), and a line a closed question."""
    limit = f", limited to {result['limit']}: no basis for a promotion" if result["limit"] else ""
    lines = [
        f"verdict     {result['verdict']['text']}",
        f"evaluation  {result['examples']:,} questions on {result['cases']:,} cases{limit}",
        f"            {'':<20}{'token F1':>24}{'closed accuracy':>24}{'perplexity':>12}",
    ]
    for name, scores in result["scores"].items():
        cells = f"{with_interval(scores['token_f1']):>24}{with_interval(scores['closed_accuracy']):>24}"
        lines.append(f"            {name:<20}{cells}{_score(scores['perplexity']['value']):>12}")
    shown = [name for name in result["scores"] if name in ("model", "shuffled", "commonest", "base")]
    if result["closed_questions"]:
        lines.append(f"            {'closed questions':<68}{'n':>6}" + "".join(f"{name:>10}" for name in shown))
    for kind, row in result["closed_questions"].items():
        cells = "".join(f"{_score(row[name]):>10}" for name in shown)
        kind = " ".join(kind.split()).replace("`", "'")  # it stands in a block of code of a Markdown artifact
        lines.append(f"            {kind[:66]:<68}{row['examples']:>6}{cells}")
    return lines


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
