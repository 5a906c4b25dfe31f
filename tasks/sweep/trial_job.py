"""Trains a trial up to a rung and scores it on the selection part of the validation split."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tasks.jobs import run_step, train
from tasks.run import Run, tracked_run
from tasks.stops import stoppable_task
from tasks.sweep.halving import Unit
from tasks.sweep.trials import Trial, trial_directory
from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.config.mixture import DATA_SECTIONS
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import TRAIN, Splits, fetch_splits
from vlm_core.evaluation.result_names import MODEL, SELECTION
from vlm_core.files import read_json, read_json_lines
from vlm_core.models.base_model import fetch_model
from vlm_core.recipe import load_config
from vlm_core.run_directory import PROGRESS, RESULT, VALIDATION
from vlm_core.training.run_length import total_steps

LOSS = "loss"  # the metric that the training itself computes


@dataclass(frozen=True)
class Sweep:
    """What all trials of a sweep have in common."""

    directory: Path
    recipe: str
    overrides: Mapping[str, Any]  # of the recipe, without those of a trial
    metric: str
    config: Config  # of the recipe with the overrides
    splits: Splits
    base_model: Path
    conversations: Path
    mlflow_run_id: str
    stop: threading.Event  # set when the sweep ends early: its trials save and end

    def config_of(self, trial: Trial) -> Config:
        """Returns the config of a trial; raises ValueError if its values contradict each other."""
        own = {
            "checkpoint.checkpoint_dir": str(trial_directory(self.directory, trial.number)),
            "checkpoint.max_recent_checkpoints": 1,
        }
        return load_config(self.recipe, {**self.overrides, **trial.overrides, **own})

    def inputs_of(self, config: Config) -> tuple[Splits, Path, Path]:
        """Returns (splits, base model, conversations) of a trial: those of the sweep, unless its values change them."""
        splits, base_model, conversations = self.splits, self.base_model, self.conversations
        if config.model != self.config.model:
            base_model = fetch_model(config.model)
        if any(getattr(config, part) != getattr(self.config, part) for part in DATA_SECTIONS):
            splits = fetch_splits(config)
            conversations = prepare_conversations(config, splits)[0]
        return splits, base_model, conversations


@contextmanager
def trial_run(sweep: Sweep, trial: Trial) -> Iterator[tuple[Run, Path]]:
    """Yields (the run of a trial, its conversations); in MLflow the run is a child of the sweep's run."""
    config = sweep.config_of(trial)
    splits, base_model, conversations = sweep.inputs_of(config)
    tags = {"kind": "trial", "sweep": sweep.directory.name, MLFLOW_PARENT_RUN_ID: sweep.mlflow_run_id}
    with tracked_run(config, base_model, splits, conversations, tags=tags) as run:
        yield run, conversations


def run_trial(sweep: Sweep, trial: Trial, unit: Unit, share: float) -> Trial:
    """Trains a trial for `share` of its steps, from where it stands; returns it with the score of this rung.

    Raises JobFailedError or ValueError if it cannot train.
    """
    started = time.monotonic()
    with trial_run(sweep, trial) as (run, conversations):
        training = train_trial(run, conversations, trial.number, share, sweep)
        score, basis = selection_score(run, conversations, training, sweep)
        shown = -score if sweep.metric == LOSS else score
        mlflow.MlflowClient().log_metric(run.mlflow_run_id, f"sweep/{sweep.metric}", shown, step=unit.rung)
    return trial.reached(score, round(time.monotonic() - started, 2), basis)


@stoppable_task(tags=["training"], persist_result=False, task_run_name="trial {number}, {share:.0%} of its steps")
def train_trial(run: Run, conversations: Path, number: int, share: float, sweep: Sweep) -> dict[str, Any]:
    """Trains a trial for `share` of its steps; returns the content of `result.json`."""
    steps = total_steps(run.config, read_manifest(conversations)["rows"][TRAIN])
    pause = [] if share == 1 else ["--pause-after", str(max(1, round(share * steps)))]
    return train(run, conversations, *pause, on_poll=lambda: _require_going_on(sweep))


def _require_going_on(sweep: Sweep) -> None:
    """Stops this trial's thread as Ctrl-C stops a run, if the sweep ends early: only the main thread gets signals."""
    if sweep.stop.is_set():
        raise KeyboardInterrupt


def selection_score(run: Run, conversations: Path, training: dict[str, Any], sweep: Sweep) -> tuple[float, int]:
    """Returns (a trial's score, higher is better; how many tokens or questions it was computed on).

    Only cases of the selection part count.
    """
    checkpoint = Path(training["checkpoint"])
    if sweep.metric == LOSS:
        step = read_json(checkpoint / PROGRESS)["step"]
        records = [record for record in read_json_lines(run.directory / VALIDATION)[0] if record["step"] == step]
        return -records[-1]["loss"], records[-1]["supervised_tokens"]
    output = run.directory / SELECTION
    places = {"--checkpoint-path": checkpoint, "--output-dir": output, "--conversations": conversations}
    arguments = [str(word) for pair in places.items() for word in pair]
    nothing_else = ["--evaluation.controls", "[]", "--evaluation.compare_with", "[]"]
    run_step("evaluate", run, [*arguments, *nothing_else], lambda: _require_going_on(sweep))
    part = read_json(output / RESULT)["groups"]["part"][SELECTION]
    score = part["scores"][MODEL][sweep.metric]["value"]
    if score is None:
        raise ValueError(f"{sweep.metric} has no value on the {part['examples']} questions of the selection part")
    return score, part["examples"]
