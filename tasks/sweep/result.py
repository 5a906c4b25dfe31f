"""The result of a sweep: the table of trials, the picture, the best trial's recipe, and what its score is worth."""

import base64
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
import yaml
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.links import mlflow_run_link
from tasks.markdown import code, escaped, link, table
from tasks.run import Run
from tasks.sweep.picture import draw_trials
from tasks.sweep.search import shown_score
from tasks.sweep.trial_job import LOSS
from tasks.sweep.trials import Trial, trial_directory
from tasks.trackers.mlflow_run import describe_run, log_files
from vlm_core.config import Config
from vlm_core.evaluation.metrics import METRICS, PRIMARY
from vlm_core.evaluation.result_names import HELD_BACK, MODEL, SELECTION, with_interval
from vlm_core.files import write_json, write_text
from vlm_core.run_directory import LATEST, LOWEST_VAL, RESULT
from vlm_core.search_space import Space

BEST, PICTURE = "best.yaml", "trials.png"


class TrialsTable:
    """The table of trials on the flow run's page in Prefect, updated after each trial."""

    def __init__(self, metric: str, shares: Sequence[float]) -> None:
        self.metric, self.shares = metric, shares
        self.artifact: UUID | None = None

    def show(self, trials: Sequence[Trial]) -> None:
        """Creates or replaces the table."""
        rows = trial_rows(trials, self.metric, self.shares)
        if self.artifact is None:
            found = create_table_artifact(rows, key="medpix-sweep-trials", description="trials of the sweep")
            assert isinstance(found, UUID)  # outside a coroutine it returns the id
            self.artifact = found
            return
        with get_client(sync_client=True) as client:
            client.request("PATCH", "/artifacts/{id}", path_params={"id": self.artifact},
                           json=ArtifactUpdate(data=rows).model_dump(mode="json", exclude_unset=True))  # fmt: skip


def trial_rows(trials: Sequence[Trial], metric: str, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Returns a row per trial: its values, its score at each rung, and what became of it."""
    names = [f"{metric} at {share:.0%}" for share in shares]
    return [
        {"trial": trial.number, "state": _state(trial, len(shares))}
        | {key: str(value) for key, value in trial.overrides.items()}
        | dict.fromkeys(names, "")
        | {name: shown_score(score, metric) for name, score in zip(names, trial.scores, strict=False)}
        | {"seconds": round(sum(trial.seconds))}
        for trial in trials
    ]


def _state(trial: Trial, rungs: int) -> str:
    if trial.failure is not None:
        return f"failed: {escaped(trial.failure)}"
    return "finished" if len(trial.scores) == rungs else "paused" if trial.scores else "training"


def write_best(run: Run, sweep: Path) -> Path:
    """Writes the recipe of the best trial's run, which needs no other file; returns its path."""
    tree = run.config.model_dump(mode="json")
    tree["name"] = f"{sweep.name}-best"
    tree["checkpoint"] |= {"checkpoint_dir": None, "max_recent_checkpoints": None}
    for section in (tree["dataset"], tree["validation_dataset"], *tree["more_datasets"].values()):
        data = section["path_or_dataset"]
        if data and Path(data).exists():
            section["path_or_dataset"] = str(Path(data).absolute())
    write_text(sweep / BEST, yaml.safe_dump(Config.model_validate(tree).model_dump(mode="json"), sort_keys=False))
    return sweep / BEST


def shrinkage(scores: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns `{metric: {selection, held_back, shrinkage}}` of an evaluation: how much the held-back score is lower."""
    parts = scores["groups"]["part"]
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        chosen, decides = (parts[part]["scores"][MODEL][metric] for part in (SELECTION, HELD_BACK))
        known = None not in (chosen["value"], decides["value"])
        lost = round(chosen["value"] - decides["value"], 4) if known else None
        found[metric] = {"selection": chosen, "held_back": decides, "shrinkage": lost}
    return found


@task(tags=["report"], persist_result=False)
def report_sweep(
    run: Run, space: Space, metric: str, trials: Sequence[Trial], best: Trial, recipe: Path, summary: dict[str, Any]
) -> dict[str, Any]:
    """Publishes the result of a sweep in Prefect and MLflow, and returns it as `result.json` has it."""
    directory, scores = run.directory, summary["evaluation"]
    deciding = "logprob" if metric == LOSS else metric
    registered = summary["registered_model"]
    result = {
        "sweep": str(directory),
        "best_trial": best.number,
        "trials": len(trials),
        "values": best.overrides,
        "recipe": str(recipe),
        "scores": shrinkage(scores, list(dict.fromkeys([deciding, run.config.registry.metric, PRIMARY]))),
        "registered_model": registered,
        "summary": summary,
    }
    draw_trials(trials, space, metric, directory / PICTURE)
    page = sweep_page(run, result)
    describe_run(run.mlflow_run_id, page)
    create_markdown_artifact(page + _image(directory / PICTURE), key="medpix-sweep", description=run.run_id)
    log_files(run.mlflow_run_id, [path for path in (recipe, directory / PICTURE) if path.is_file()])
    client = mlflow.MlflowClient()
    for key, value in (("sweep", directory.name), ("sweep.trials", len(trials))):
        client.set_model_version_tag(registered["name"], registered["version"], key, str(value))
    _drop_checkpoints(directory, trials, best)
    write_json(directory / RESULT, result)
    return result


def sweep_page(run: Run, result: Mapping[str, Any]) -> str:
    """Returns the page of a sweep: its best trial, both scores, the gate's decision, the recipe."""
    registered = result["registered_model"]
    promotion = registered["promotion"]
    decided = "is the champion" if promotion["promoted"] else "is not promoted"
    values = ", ".join(f"{key}={value}" for key, value in result["values"].items())
    rows = [
        [METRICS[metric].title, with_interval(found["selection"]), with_interval(found["held_back"]),
         "-" if found["shrinkage"] is None else f"{found['shrinkage']:+.4f}"]
        for metric, found in result["scores"].items()
    ]  # fmt: skip
    page, command = mlflow_run_link(run.mlflow_run_id), f"python -m pipelines.finetune --recipe {result['recipe']}"
    parts = [
        f"**Trial {result['best_trial']} of {result['trials']} is the best**: {escaped(values, longest=500)}.",
        f"Version {escaped(registered['version'])} of {escaped(registered['name'])} {decided}: "
        f"{escaped(promotion['reason'], longest=500)}.",
        table(["", "selection part", "held-back part", "shrinkage"], rows),
        "The selection part chose this trial, so its score is too good by luck. The held-back part has decided nothing "
        "before, and only it counts for the champion. Some of the shrinkage may come from easier or harder cases.",
        f"Its recipe runs by itself: {code(command)}",
        link("The sweep in MLflow, with its trials", page) if page else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _image(path: Path) -> str:
    """Returns the picture as Markdown that needs no server, "" if there is none."""
    if not path.is_file():
        return ""
    return f"\n\n![Trials](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"


def _drop_checkpoints(sweep: Path, trials: Sequence[Trial], best: Trial) -> None:
    """Removes the checkpoints of all trials but the best one: with full weights they fill a disk."""
    for trial in trials:
        if trial.number != best.number:
            directory = trial_directory(sweep, trial.number)
            for pointer in (LATEST, LOWEST_VAL):
                (directory / pointer).unlink(missing_ok=True)
            for checkpoint in directory.glob("epoch_*_step_*"):
                shutil.rmtree(checkpoint)
