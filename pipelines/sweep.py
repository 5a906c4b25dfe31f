"""A sweep: `python -m pipelines.sweep --recipe demo --space 'optimizer.lr: {log: [1e-4, 1e-2]}' --trials 12`.

Searches a space of config keys for the best settings: many short trials, of which the better ones train on. A sweep
that was stopped or killed resumes with the same command and --sweep-name. Other options are overrides of the recipe.
"""

from vlm_core.arguments import read_config, sweep_parser

if __name__ == "__main__":  # first: the imports below take seconds
    ARGUMENTS = read_config(sweep_parser(__doc__), "Prefect and MLflow")
else:
    ARGUMENTS = None

import argparse
from collections.abc import Mapping
from threading import Event
from typing import Any

from prefect import Task, flow

from pipelines.forms import ComputeForm, DatasetForm, Overrides
from tasks.data import download_dataset, download_model, preprocess_conversations, report_data
from tasks.ending import sweep_ending
from tasks.example import write_example
from tasks.jobs import evaluate
from tasks.ownership import reap_after_crash
from tasks.registry.promotion import promote_model
from tasks.registry.register import register_model
from tasks.run import tracked_run
from tasks.stages import Stages
from tasks.stops import ends_quietly
from tasks.summary import summarize
from tasks.sweep.finish import finished_result, training_of
from tasks.sweep.halving import rung_shares
from tasks.sweep.result import TrialsTable, report_sweep, write_best
from tasks.sweep.search import Budget, Search
from tasks.sweep.settings import CheckedSweep, Metric, checked_sweep
from tasks.sweep.trial_job import Sweep, trial_run
from tasks.sweep.trials import only_sweeper
from tasks.terminal import one_line_errors, page_of, tidy_log
from tasks.turns import turn
from vlm_core.form import Recipe, form_overrides
from vlm_core.plain_text import printable

STAGES: list[Task[..., Any]] = [
    download_dataset, download_model, preprocess_conversations, report_data, evaluate, register_model, promote_model,
    summarize, report_sweep,
]  # fmt: skip


@flow(
    name="medpix-sweep",
    flow_run_name="sweep of {recipe} by {metric}",
    on_crashed=[reap_after_crash],
    persist_result=True,
    result_serializer="json",
)
@ends_quietly
def medpix_sweep(
    recipe: Recipe = "demo",
    space: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
    trials: int = 12,
    hours: float = 0,
    metric: Metric = "loss",
    parallel_trials: int = 1,
    sweep_name: str = "",
    dataset: DatasetForm = DatasetForm(),
    compute: ComputeForm = ComputeForm(),
    overrides: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
) -> dict[str, Any]:
    """Searches a space of settings; evaluates, registers and gates the best trial. Returns the sweep's result.

    Args:
        recipe: Name of a shipped recipe, or the path of a YAML file.
        space: The settings to search, as JSON: {"optimizer.lr": {"log": [1e-5, 1e-3]}, "peft.dim": [8, 16, 32]}.
        trials: How many trials to propose. 0: as many as finish within the hours.
        hours: How long to search. 0: until all trials are done.
        metric: The score on the selection part of the validation split that ranks the trials.
        parallel_trials: How many trials train at once; more than one needs a cluster.
        sweep_name: Name of the sweep's directory. A sweep with this name resumes. Empty: a new sweep.
        dataset: The data, if not the recipe's.
        compute: Where to run: this machine or a cluster, and the number of processes.
        overrides: Any other settings, as JSON: {"rng.seed": 7}. They take precedence over everything above.
    """
    filled = form_overrides(recipe, "as in the recipe", {"dataset": dataset, "compute": compute}) | dict(overrides)
    checked = checked_sweep(recipe, filled, space, metric, Budget(trials, hours, parallel_trials), sweep_name)
    with only_sweeper(checked.directory, checked.identity, rung_shares(trials)) as shares:
        return _run(checked, shares)


def _run(checked: CheckedSweep, shares: list[float]) -> dict[str, Any]:
    config, stage = checked.config, Stages(STAGES).run
    splits = stage(download_dataset, config)
    base_model = stage(download_model, config)
    conversations = stage(preprocess_conversations, config, splits)
    with turn(config.compute), tracked_run(config, base_model, splits, conversations, tags={"kind": "sweep"}) as run:
        stage(report_data, run, conversations, splits)
        sweep = Sweep(checked.directory, checked.recipe, checked.overrides, checked.metric, config, splits, base_model,
                      conversations, run.mlflow_run_id, Event())  # fmt: skip
        search = Search(sweep, checked.space, checked.budget, shares, TrialsTable(checked.metric, shares).show)
        best = search.run()
        if known := finished_result(checked.directory, best, len(search.trials)):
            return known
        with trial_run(sweep, best) as (trial, questions):
            write_example(trial, questions)
            training = training_of(trial)
            scores = stage(evaluate, trial, base_model, training["checkpoint"], questions)
            registered = stage(register_model, trial, base_model, training["checkpoint"], scores)
            registered["promotion"] = stage(promote_model, trial, registered, scores)
            summary = stage(summarize, trial, questions, training, scores, registered)
            recipe = write_best(trial, checked.directory)
        return stage(report_sweep, run, checked.space, checked.metric, search.trials, best, recipe, summary)


def main(options: argparse.Namespace) -> None:
    """Runs the flow by hand; reports wrong input before anything starts."""
    parameters: Mapping[str, Any] = {
        "trials": options.trials,
        "hours": options.hours,
        "metric": options.metric,
        "parallel_trials": options.parallel_trials,
        "sweep_name": options.sweep_name,
    }
    with one_line_errors():
        budget = Budget(options.trials, options.hours, options.parallel_trials)
        checked_sweep(options.recipe, options.overrides, options.space, options.metric, budget, options.sweep_name)
        tidy_log()
        flow_of_state: Any = medpix_sweep  # Any: the flow's type does not have return_state
        state = flow_of_state(
            options.recipe, options.space, overrides=options.overrides, return_state=True, **parameters
        )
        result = state.result()
    print(printable(f"\n{sweep_ending(result, page_of(state))}"))


if ARGUMENTS:
    main(ARGUMENTS[0])
