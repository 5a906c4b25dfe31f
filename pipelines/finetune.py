"""The pipeline: `python -m pipelines.finetune --recipe demo [--section.key value ...]`.

Uses the configured Prefect API, or a temporary server if none is configured.
"""

from vlm_core.arguments import flow_parser, read_config

if __name__ == "__main__":  # first: the imports below take seconds
    ARGUMENTS = read_config(flow_parser(__doc__), "Prefect and MLflow")
else:
    ARGUMENTS = None

import argparse
from typing import Any

from prefect import Task, flow

from pipelines.forms import (
    ComputeForm,
    DatasetForm,
    EvaluationForm,
    ModelForm,
    OptimizerForm,
    Overrides,
    PeftForm,
    RegistryForm,
    StepSchedulerForm,
)
from tasks.data import download_dataset, download_model, preprocess_conversations, report_data
from tasks.ending import next_steps, render
from tasks.example import write_example
from tasks.jobs import evaluate, finetune
from tasks.ownership import reap_after_crash
from tasks.registry.promotion import promote_model
from tasks.registry.register import register_model
from tasks.run import checked_config, flow_run_name, tracked_run
from tasks.stages import Stages
from tasks.stops import ends_quietly
from tasks.summary import summarize
from tasks.terminal import one_line_errors, page_of, tidy_log
from tasks.turns import turn
from vlm_core.form import Recipe, Tuning, form_overrides
from vlm_core.plain_text import printable

STAGES: list[Task[..., Any]] = [
    download_dataset, download_model, preprocess_conversations, report_data, finetune, evaluate, register_model,
    promote_model, summarize,
]  # fmt: skip


@flow(
    name="medpix-finetune",
    flow_run_name=flow_run_name,
    on_crashed=[reap_after_crash],
    persist_result=True,
    result_serializer="json",
)
@ends_quietly
def medpix_finetune(
    recipe: Recipe = "demo",
    tuning: Tuning = "as in the recipe",
    dataset: DatasetForm = DatasetForm(),
    step_scheduler: StepSchedulerForm = StepSchedulerForm(),
    optimizer: OptimizerForm = OptimizerForm(),
    model: ModelForm = ModelForm(),
    peft: PeftForm = PeftForm(),
    compute: ComputeForm = ComputeForm(),
    evaluation: EvaluationForm = EvaluationForm(),
    registry: RegistryForm = RegistryForm(),
    overrides: Overrides = {},  # noqa: B006 - a Mapping, which nobody changes
) -> dict[str, Any]:
    """Fine-tunes, evaluates and registers a model; returns the run's summary.

    Empty fields keep the recipe's values.

    Args:
        recipe: Name of a shipped recipe, or the path of a YAML file.
        tuning: lora trains an adapter, full trains the weights themselves.
        dataset: The training data; the validation split comes from the same dataset.
        step_scheduler: The length of the training (epochs, steps, batch size), and how often to save checkpoints.
        optimizer: The learning rate and the optimizer's other settings.
        model: The base model.
        peft: LoRA's settings.
        compute: Where to run: this machine or a cluster, the number of processes, and how to save memory.
        evaluation: The questions, the controls, and the models to compare with.
        registry: The name to register under, and when the new version becomes the champion.
        overrides: Any other settings, as JSON: {"rng.seed": 7}. They take precedence over everything above.
    """
    sections = {
        "model": model, "dataset": dataset, "step_scheduler": step_scheduler, "optimizer": optimizer, "peft": peft,
        "compute": compute, "evaluation": evaluation, "registry": registry,
    }  # fmt: skip
    config = checked_config(recipe, form_overrides(recipe, tuning, sections) | dict(overrides))
    stage = Stages(STAGES).run
    splits = stage(download_dataset, config)
    base_model = stage(download_model, config)
    conversations = stage(preprocess_conversations, config, splits)
    with turn(config.compute), tracked_run(config, base_model, splits, conversations) as run:
        stage(report_data, run, conversations, splits)
        write_example(run, conversations)
        training = stage(finetune, run, conversations)
        scores = stage(evaluate, run, base_model, training["checkpoint"], conversations)
        registered = stage(register_model, run, base_model, training["checkpoint"], scores)
        registered["promotion"] = stage(promote_model, run, registered, scores)
        return stage(summarize, run, conversations, training, scores, registered)


def main(options: argparse.Namespace) -> None:
    """Runs the flow by hand; reports wrong input before anything starts."""
    overrides = options.overrides
    with one_line_errors():
        checked_config(options.recipe, overrides)
        tidy_log()
        flow_of_state: Any = medpix_finetune  # Any: the flow's type does not have return_state
        state = flow_of_state(options.recipe, overrides=overrides, return_state=True)
        summary = state.result()
    print(printable(f"\n{render(summary)}\n{next_steps(summary, page_of(state))}"))


if ARGUMENTS:
    main(ARGUMENTS[0])
