"""A sweep by hand whose process is killed: the same command ends it, and repeats no finished trial."""

import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tests.conftest import SMALL, fresh_home, new_mlflow_store
from tests.e2e.services import command, started_process, trainings_of, wait_until
from vlm_core.files import read_json, read_json_lines
from vlm_core.recipe import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SWEEP = {
    "--recipe": "demo",
    "--space": "{optimizer: {lr: {log: [1e-4, 1e-2]}}}",
    "--trials": "3",
    "--sweep-name": "three",
    "--dataset.path_or_dataset": SMALL["dataset.path_or_dataset"],
    "--dataloader.num_workers": "0",
    "--step_scheduler.global_batch_size": "8",
    "--step_scheduler.max_steps": "6",
    "--evaluation.controls": "[]",
    "--evaluation.compare_with": "[]",
    "--evaluation.max_new_tokens": "4",
}
WORDS = ("pipelines.sweep", *(word for pair in SWEEP.items() for word in pair))


@pytest.mark.usefixtures("conversations", "tiny_gemma3")  # their caches: the sweep finds them in its home
def test_a_killed_sweep_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    home = fresh_home(tmp_path / "home")
    (home / "mlflow").mkdir()  # the default place, so that artifacts go to the home too
    environment = os.environ | {"MEDPIX_HOME": str(home), "MLFLOW_TRACKING_URI": new_mlflow_store(home / "mlflow")}
    sweep = home / "sweeps" / "three"
    files = [sweep / "trials" / f"{number:03d}.json" for number in (1, 2, 3)]
    process = started_process(*WORDS, environment=environment, log=tmp_path / "killed.log")
    wait_until(lambda: files[1].is_file() and trainings_of(home), "the second trial trains")
    first = read_json(files[0])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (len(first["scores"]), read_json(files[1])["scores"]) == (1, [])

    done = command(*WORDS, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [read_json(file) for file in files]
    assert (trials[0]["scores"][0], trials[0]["seconds"][0]) == (first["scores"][0], first["seconds"][0])
    assert trials[0]["overrides"] == {"optimizer.lr": 4e-3}  # the recipe's own value
    assert sorted(len(trial["scores"]) for trial in trials) == [1, 1, 2]  # a third of them trained on
    result = read_json(sweep / "result.json")
    best = trials[result["best_trial"] - 1]
    assert best["scores"][0] == max(trial["scores"][0] for trial in trials)
    run = sweep / f"three-trial-{result['best_trial']:03d}"
    check_best_run(run, result, best)
    check_mlflow(environment["MLFLOW_TRACKING_URI"], result)
    left = {path.parent.name for path in sweep.glob("*/epoch_*")}
    assert left == {run.name}  # the checkpoints of the others are removed
    assert "trial 1 of 3 is" in done.stdout or f"trial {result['best_trial']} of 3 is the best" in done.stdout


def check_best_run(run: Path, result: dict[str, Any], best: dict[str, Any]) -> None:
    """Checks that the best trial trained each step once, and that its recipe repeats it."""
    assert [record["step"] for record in read_json_lines(run / "metrics.jsonl")[0]] == [1, 2, 3, 4, 5, 6]
    losses = read_json_lines(run / "validation.jsonl")[0]
    assert [(record["step"], -record["loss"]) for record in losses] == [*zip((2, 6), best["scores"], strict=True)]
    recipe, trained = load_config(result["recipe"]), yaml.safe_load((run / "config.yaml").read_text())
    assert recipe.optimizer.lr == best["overrides"]["optimizer.lr"]
    again = recipe.model_dump(mode="json")
    assert {key for key in again if again[key] != trained[key]} == {"name", "checkpoint"}
    # The selection part chose, the held-back part decides.
    scores = result["scores"]["logprob"]
    assert scores["selection"]["value"] == pytest.approx(best["scores"][1], abs=1e-3)
    assert scores["shrinkage"] == pytest.approx(scores["selection"]["value"] - scores["held_back"]["value"], abs=1e-4)


def check_mlflow(store: str, result: dict[str, Any]) -> None:
    """Checks that each trial is one run below the sweep's, and that the version says how many were tried."""
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("medpix-finetune")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["three", *(f"three-trial-{number:03d}" for number in (1, 2, 3))]
    parent = runs.pop("three")
    assert {run.data.tags[MLFLOW_PARENT_RUN_ID] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert {"best.yaml", "trials.png"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    registered = result["registered_model"]
    tags = client.get_model_version(registered["name"], registered["version"]).tags
    assert (tags["sweep"], tags["sweep.trials"]) == ("three", "3")
