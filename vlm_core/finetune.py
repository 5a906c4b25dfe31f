"""Fine-tunes a model: `python -m vlm_core.finetune --config demo`, or under torchrun on several processes.

Resumes from LATEST if the run directory has one. If the run is finished already, the command reports that and ends.
"""

from vlm_core.arguments import finetune_parser, read_config

if __name__ == "__main__":  # before the imports below, which take seconds
    ARGUMENTS = read_config(finetune_parser(__doc__), "torch and transformers")
else:
    ARGUMENTS = None

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from vlm_core.cache import locked
from vlm_core.config import Config
from vlm_core.data.batches import ImageInputs
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.evaluation.power import power_in_words
from vlm_core.evaluation.training_scores import TrainingScores
from vlm_core.files import read_json_lines, write_json, write_text
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.samples import sampler
from vlm_core.models.freeze import parameter_tree
from vlm_core.pages.plots import draw_losses
from vlm_core.resume import checkpoint_to_resume
from vlm_core.run_directory import (
    CONFIG,
    LOSS_PLOT,
    LOWEST_VAL,
    METRICS,
    PARAMETERS,
    RESULT,
    SAMPLES,
    VALIDATION,
    run_root,
)
from vlm_core.training.checkpoint import load_progress
from vlm_core.training.distributed import Ranks, command
from vlm_core.training.loop import Preempted, Trainer
from vlm_core.training.plan import Plan, out_of_memory, plan_run, require_disk, require_fit
from vlm_core.training.run_length import length_warnings, total_steps
from vlm_core.training.setup import AfterValidation, RunInputs, build_trainer, gather

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to resume


def run_directory(config: Config) -> Path:
    """Returns the run directory of this command: the configured one, or else one with the name of the recipe."""
    return Path(config.checkpoint.checkpoint_dir or run_root() / config.name).absolute()


def finetune(
    config: Config,
    ranks: Ranks,
    conversations: Path | None = None,
    *,
    plan_only: bool = False,
    pause_after: int | None = None,
) -> dict[str, Any]:
    """Trains to the end and returns the content of `result.json`; with `plan_only`, only logs the plan and returns {}.

    `conversations` is the conversation cache of `config`; None: find or build it. `pause_after` is a step to stop
    after: another start of the same run continues from there, exactly as if it had not stopped.
    Raises ValueError for wrong input, before the run directory is written to.
    """
    if pause_after is not None and (pause_after < 1 or not config.checkpoint.enabled):
        raise ValueError(
            f"--pause-after {pause_after} needs a step from 1 on and a checkpoint to resume from "
            f"(checkpoint.enabled={config.checkpoint.enabled}): set checkpoint.enabled=true"
        )
    inputs = gather(config, run_directory(config), ranks, conversations)
    finished = _finished_steps(inputs, pause_after)
    if finished is not None:
        return _write_result(inputs, finished)
    plan = _check_plan(inputs)
    if plan_only:
        return {}
    try:
        return _train(inputs, pause_after)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(plan, inputs.device, error) from error


def _train(inputs: RunInputs, pause_after: int | None) -> dict[str, Any]:
    scores = TrainingScores(inputs.config, inputs.conversations, inputs.validation)
    trainer, main = build_trainer(inputs, _after_validation(inputs, scores)), inputs.ranks.is_main
    trainer.pause_after = pause_after
    with _sole_writer(inputs.directory) if main else nullcontext():
        if main:
            _write_settings(inputs, trainer)
        trainer.run()
        return _write_result(inputs, trainer.progress.step)


def _finished_steps(inputs: RunInputs, pause_after: int | None) -> int | None:
    """Returns the number of steps of a run that is finished or at its pause, None if steps are left."""
    checkpoint, config = inputs.checkpoint, inputs.config
    if checkpoint is None:
        return None
    progress = load_progress(checkpoint).by(config.checkpoint.best_metric)
    steps = min(total_steps(config, len(inputs.train)), pause_after or sys.maxsize)
    if progress.step < steps and not progress.is_exhausted(config.step_scheduler.early_stop_patience):
        return None
    logger.info("%s is finished at %s: there is nothing left to do", inputs.directory, checkpoint.name)
    return progress.step


def _check_plan(inputs: RunInputs) -> Plan | None:
    """Logs and returns the plan of the run, None if a custom collate function makes the batches.

    Raises ValueError if the run does not fit in memory or on the disk.
    """
    config, examples, plan = inputs.config, inputs.train, None
    if inputs.collate is None:
        plan = plan_run(config, inputs.base, examples, inputs.chat, inputs.ranks.world_size, inputs.mixture)
        logger.info("the plan of this run:\n%s", plan)
        require_fit(plan, config, inputs.device)
        require_disk(plan, config, inputs.directory)
    else:
        logger.info("no plan: the batches of the custom %s are unknown", config.dataloader.collate_fn.target)
    cases = ConversationDataset(inputs.conversations, "validation").conversations["case_id"]
    logger.info("%s", power_in_words(list(cases), config.evaluation.limit))
    for warning in length_warnings(config, len(examples)):
        logger.warning("%s", warning)
    return plan


def _after_validation(inputs: RunInputs, scores: TrainingScores) -> Callable[[Any, ImageInputs], AfterValidation]:
    """Returns a function that builds, for a loaded model, what is done at each validation: samples and scores."""

    def make(model: Any, images: ImageInputs) -> AfterValidation:
        answerer = Answerer(model, inputs.chat)
        shown, file = inputs.validation, inputs.directory / SAMPLES
        sample = sampler(answerer, inputs.conversations, shown, images, file, writes=inputs.ranks.is_main)
        score = scores.scorer(answerer, images) if scores.chosen else dict

        def after_validation(step: int, loss: float) -> tuple[dict[str, float | None], float]:
            sample(step)
            found = score()
            return found, scores.criterion(loss, found)

        return after_validation

    return make


def _write_settings(inputs: RunInputs, trainer: Trainer) -> None:
    directory, config = inputs.directory, inputs.config
    write_text(directory / CONFIG, config.to_yaml())
    write_json(directory / PARAMETERS, parameter_tree(trainer.parameters))
    if config.wandb:
        by_hand = f"python -m tasks.trackers.wandb_run --follow {directory}"
        logger.info("Weights & Biases: the flow sends this run; to send it by hand: %s", by_hand)


@contextmanager
def _sole_writer(directory: Path) -> Iterator[None]:
    """Holds the lock of the run directory for the block; raises ValueError if another run holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory / ".lock", timeout=0):
            for leftover in directory.glob(".epoch_*/"):  # from a run that was killed while saving
                shutil.rmtree(leftover)
            yield
    except Timeout:
        raise ValueError(
            f"another run is writing to {directory}; wait for it to end, or set checkpoint.checkpoint_dir to another "
            "directory"
        ) from None


def _outcome(inputs: RunInputs) -> Path | None:
    """Returns the checkpoint to use of a finished run: the last one, or the best one if the run stopped early."""
    last = checkpoint_to_resume(inputs.directory, None)
    metric, patience = inputs.config.checkpoint.best_metric, inputs.config.step_scheduler.early_stop_patience
    if last and load_progress(last).by(metric).is_exhausted(patience):
        return checkpoint_to_resume(inputs.directory, LOWEST_VAL)
    return last


def _write_result(inputs: RunInputs, steps: int) -> dict[str, Any]:
    directory, checkpoint = inputs.directory, _outcome(inputs)
    records = read_json_lines(directory / METRICS)[0]
    losses = [record["loss"] for record in records if record["loss"] is not None]  # null: not finite
    result = {
        "steps": steps,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": records[-1]["elapsed_seconds"] if records else 0.0,  # summed over all starts of the run
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    if inputs.ranks.is_main:
        draw_losses(records, read_json_lines(directory / VALIDATION)[0], directory / LOSS_PLOT)
        write_json(directory / RESULT, result)
    return result


def main(options: argparse.Namespace, config: Config) -> None:
    """Runs the command."""
    with command() as ranks:
        try:
            finetune(config, ranks, options.conversations, plan_only=options.plan, pause_after=options.pause_after)
        except Preempted as preempted:
            logger.warning("%s", preempted)
            raise SystemExit(EXIT_PREEMPTED) from None


if ARGUMENTS:
    main(*ARGUMENTS)
