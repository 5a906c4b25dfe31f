"""The flow that evaluates any checkpoint or registered model, and compares it with the base model and the champion."""

from typing import Any

from prefect import Task, flow

from pipelines.forms import ComputeForm, DatasetForm, EvaluationForm, Overrides
from tasks.data import download_dataset, download_model, preprocess_conversations, report_data
from tasks.jobs import evaluate
from tasks.ownership import reap_after_crash
from tasks.registry.decline import report_decline
from tasks.run import checked_config, tracked_run
from tasks.stages import Stages
from tasks.stops import ends_quietly
from tasks.summary import show_scores
from tasks.turns import turn
from vlm_core.form import Recipe, form_overrides

STAGES: list[Task[..., Any]] = [
    download_dataset, download_model, preprocess_conversations, report_data, evaluate, report_decline,
]  # fmt: skip


@flow(
    name="medpix-evaluate",
    flow_run_name="{checkpoint}",
    on_crashed=[reap_after_crash],
    persist_result=True,
    result_serializer="json",
)
@ends_quietly
def medpix_evaluate(
    checkpoint: str,
    recipe: Recipe = "demo",
    dataset: DatasetForm = DatasetForm(),
    compute: ComputeForm = ComputeForm(),
    evaluation: EvaluationForm = EvaluationForm(),
    overrides: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
) -> dict[str, Any]:
    """Evaluates a model on a validation split; returns the contents of `result.json`.

    Args:
        checkpoint: A directory epoch_E_step_S, a model or adapter, a hub id, or models:/name@alias.
        recipe: The recipe with the data and the base model: a shipped recipe's name, or the path of a YAML file.
        dataset: The data, if not the recipe's.
        compute: Where to run: this machine or a cluster, and the number of processes.
        evaluation: The questions, the controls, and the models to compare with.
        overrides: Any other settings, as JSON: {"rng.seed": 7}. They take precedence over everything above.
    """
    sections = {"dataset": dataset, "compute": compute, "evaluation": evaluation}
    given = form_overrides(recipe, "as in the recipe", sections) | dict(overrides)
    # An evaluation gets its own directory: the recipe's directory belongs to a training.
    config = checked_config(recipe, given | {"checkpoint.checkpoint_dir": None})
    stage = Stages(STAGES).run
    splits = stage(download_dataset, config)
    base_model = stage(download_model, config)
    conversations = stage(preprocess_conversations, config, splits)
    with turn(config.compute), tracked_run(config, base_model, splits, conversations, evaluated=checkpoint) as run:
        stage(report_data, run, conversations, splits)
        result = stage(evaluate, run, base_model, checkpoint, conversations)
        show_scores(run, result)
        stage(report_decline, run, checkpoint, result, recipe, given)
        return result
