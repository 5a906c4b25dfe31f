"""Writes the result of a run as Markdown: for Prefect's artifact, and as the description of the MLflow run."""

from pathlib import Path
from typing import Any

from tasks.links import flow_run_link, mlflow_run_link, report_link, version_link
from tasks.markdown import code, escaped, link, table
from tasks.registry.card import tuning
from tasks.registry.versions import version_uri
from tasks.run import Run
from vlm_core.evaluation.metrics import METRICS, PRIMARY, Use, metrics_in
from vlm_core.evaluation.result_names import DATASET, MODEL, with_interval
from vlm_core.run_directory import EVALUATION

CLOSED_ROWS = 20  # the most closed questions that a page shows


def training_page(run: Run, summary: dict[str, Any]) -> str:
    """Returns the page of a training: the gate's decision, links, the data, the training, the scores."""
    registered = summary["registered_model"]
    promotion = registered["promotion"]
    decided = "is the champion" if promotion["promoted"] else "is not promoted"
    return _page(
        f"**Version {escaped(registered['version'])} of {escaped(registered['name'])} {decided}**: "
        f"{escaped(promotion['reason'], longest=500)}.",
        _verdict(summary["evaluation"]),
        _links(run, registered),
        table(["Run", code(run.run_id)], _facts(run, summary)),
        *_found(summary["evaluation"]),
    )


def evaluation_page(run: Run, result: dict[str, Any]) -> str:
    """Returns the page of a separate evaluation: verdict, links, scores."""
    return _page(
        f"**Evaluation** of {code(result['checkpoint'])} on {_asked(result)} of {_data_of(run)}.",
        _verdict(result),
        _links(run),
        *_found(result),
    )


def _links(run: Run, registered: dict[str, Any] | None = None) -> str:
    """Returns links to the results. They share one line, since MLflow folds a description after a few lines.

    `registered` is the model version that the run registered.
    """
    run_page, flow_page = mlflow_run_link(run.mlflow_run_id), flow_run_link()
    rows = [link("Evaluation report", report_link(run.mlflow_run_id, run.directory, EVALUATION))]
    if run_page:
        rows.append(link("MLflow run", run_page))
    else:
        rows.append("no MLflow server runs: start `mlflow ui` to see the run (the flow's last lines have the command)")
    if registered:
        name, version = registered["name"], registered["version"]
        title, page = f"Version {version} of {name}", version_link(name, version)
        rows.append(f"{link(title, page) if page else escaped(title)}, loaded as {code(version_uri(name, version))}")
    if flow_page:
        rows.append(link("Prefect flow run", flow_page))
    return " · ".join(rows)


def closed_questions(result: dict[str, Any]) -> str:
    """Returns a table of the most frequent closed questions, with the accuracy of each variant."""
    rows = sorted(result["closed_questions"].items(), key=lambda item: -item[1]["examples"])
    variants = list(result["scores"])
    cells = [
        [escaped(kind), str(row["examples"]), *(_share(row.get(name)) for name in variants)]
        for kind, row in rows[:CLOSED_ROWS]
    ]
    if not cells:
        return ""
    more = f"\n\n{len(rows) - CLOSED_ROWS} more are in the report." if len(rows) > CLOSED_ROWS else ""
    return "### Closed questions\n\n" + table(["question", "n", *map(escaped, variants)], cells) + more


def _verdict(result: dict[str, Any]) -> str:
    """Returns the verdict as a sentence; empty for results of older versions, which have none."""
    verdict = result.get("verdict")
    return f"Verdict: this model {escaped(verdict['text'], longest=500)}." if verdict else ""


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _facts(run: Run, summary: dict[str, Any]) -> list[list[str]]:
    data, training, result = summary["dataset"], summary["training"], summary["evaluation"]
    config = run.config
    return [
        ["Data", f"{_data_of(run)}: {data['rows']:,} rows, {data['images']:,} images, "
                 f"{data['cases']:,} cases (fingerprint {data['fingerprint'][:12]})"],
        ["Base model", f"{escaped(config.model.pretrained_model_name_or_path)}, {tuning(config)}"],
        ["Training", f"{training['steps']} steps in {training['seconds']:.0f} s, "
                     f"loss {training['first_loss']:.3f} → {training['last_loss']:.3f}"],
        ["Evaluation", _asked(result)],
        ["Checkpoint", code(Path(summary["checkpoint"]).name)],
    ]  # fmt: skip


def _data_of(run: Run) -> str:
    return ", ".join(escaped(dataset.path_or_dataset) for dataset in run.config.datasets.values())


def _asked(result: dict[str, Any]) -> str:
    limit = f", limited to {result['limit']}: no basis for a promotion" if result["limit"] else ""
    return f"{result['examples']:,} questions about {result['cases']:,} cases{limit}"


def _found(result: dict[str, Any]) -> list[str]:
    """Returns the scores of each variant as a table, and the differences between the model and the others."""
    variants = list(result["scores"])
    rows = [
        [metric.title, *(with_interval(result["scores"][name][metric.name]) for name in variants)]
        for metric in metrics_in(result["scores"][MODEL], Use.CARD)
    ]
    rows += _of_datasets(result)
    better = [
        f"- against {escaped(name)}: {METRICS[PRIMARY].words} {with_interval(changes[PRIMARY], sign='+')}"
        for name, changes in result["differences"].items()
    ]
    if result["visual_reliance"]:
        by_looking = with_interval(result["visual_reliance"][PRIMARY], sign="+")
        better.append(f"- by looking at the right image: {METRICS[PRIMARY].words} {by_looking}")
    return ["### Scores\n\n" + table(["", *map(escaped, variants)], rows), "\n".join(better)]


def _of_datasets(result: dict[str, Any]) -> list[list[str]]:
    """Returns a row of scores for each of several datasets. Results of older versions have no such groups."""
    groups, variants = result.get("groups", {}).get(DATASET, {}), list(result["scores"])
    rows = []
    for group, entry in groups.items():
        found = [with_interval(entry["scores"][name][PRIMARY]) if name in entry["scores"] else "" for name in variants]
        rows.append([f"{METRICS[PRIMARY].title} of {escaped(group)}", *found])
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
