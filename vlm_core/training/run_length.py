"""Decides batch size, epochs and warm-up from the number of training questions, unless the recipe sets them.

The batch size is about an eightieth of the questions, a power of two from 8 to 64. The epochs are as many as give 300
steps, at most 30. The warm-up is a share of the steps. All three are decided once, when a run starts.
"""

import logging
import math
from pathlib import Path

from vlm_core.config import Config
from vlm_core.resume import require_compatible, with_original_length

logger = logging.getLogger(__name__)

SMALLEST_BATCH, LARGEST_BATCH = 8, 64
STEPS_PER_EPOCH = 80  # the batch size aims at this number
ENOUGH_STEPS = 300  # the number of epochs aims at this number
MOST_EPOCHS = 30
FEW_STEPS = 30  # with fewer steps a model hardly learns anything
WARMUP_SHARE = 0.05  # share of the steps, if the recipe sets neither a share nor a number of steps


def total_steps(config: Config, questions: int) -> int:
    """Returns the optimizer steps of a complete run: all epochs, or `max_steps` if that is fewer."""
    schedule = config.step_scheduler
    steps = schedule.epochs * math.ceil(questions / schedule.batch_size)
    return min(steps, schedule.max_steps or steps)


def with_run_length(config: Config, questions: int, processes: int) -> Config:
    """Returns `config` with batch size, epochs and warm-up steps filled in for a number of training questions.

    Values that are already set stay. The batch size is a multiple that `processes` can share.
    """
    schedule = config.step_scheduler
    batch = schedule.global_batch_size or _batch_size(config, questions, processes)
    epochs = schedule.num_epochs or _epochs(questions, batch)
    length = {"global_batch_size": batch, "num_epochs": epochs}
    decided = config.model_copy(update={"step_scheduler": schedule.model_copy(update=length)})
    warmup = config.lr_scheduler.lr_warmup_steps
    if warmup is None:
        share = config.lr_scheduler.lr_warmup_share
        warmup = _share_of(WARMUP_SHARE if share is None else share, decided, questions)
    steps = {"lr_warmup_steps": warmup, "lr_warmup_share": None}
    decided = decided.model_copy(update={"lr_scheduler": config.lr_scheduler.model_copy(update=steps)})
    if decided.step_scheduler != schedule:
        logger.info("for %s training questions: batches of %d, %d epochs, %d steps of warm-up", f"{questions:,}", batch,
                    epochs, warmup)  # fmt: skip
    return decided


def decide_length(config: Config, checkpoint: Path | None, questions: int, processes: int) -> Config:
    """Returns `config` with the length of the run filled in; a run that resumes keeps the length that it started with.

    Raises ValueError if `checkpoint` belongs to another run.
    """
    if checkpoint is None:
        return with_run_length(config, questions, processes)
    decided = with_run_length(with_original_length(config, checkpoint), questions, processes)
    require_compatible(checkpoint, decided)
    share, steps = config.lr_scheduler.lr_warmup_share, decided.lr_scheduler.warmup_steps
    if share is not None and _share_of(share, decided, questions) != steps:
        logger.warning("lr_scheduler.lr_warmup_share=%g has no effect: the run started with %d steps of warm-up "
                       "and keeps them", share, steps)  # fmt: skip
    return decided


def _share_of(share: float, config: Config, questions: int) -> int:
    """Returns a share of a run's steps, rounded as transformers rounds its warmup_ratio."""
    return math.ceil(share * total_steps(config, questions))


def _batch_size(config: Config, questions: int, processes: int) -> int:
    nearest = 2 ** round(math.log2(max(1, questions / STEPS_PER_EPOCH)))
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, nearest))
    at_once = 1 if config.packing.enabled else config.step_scheduler.local_batch_size * processes
    return math.ceil(batch / at_once) * at_once


def length_warnings(config: Config, questions: int) -> list[str]:
    """Returns warnings about the length of a run, each with a setting that fixes it. The length must be filled in."""
    steps, warmup = total_steps(config, questions), config.lr_scheduler.warmup_steps
    found = []
    if warmup >= steps:
        found.append(
            f"the warm-up of {warmup} steps is as long as the run of {steps} steps or longer, so the learning rate "
            f"never reaches optimizer.lr: set lr_scheduler.lr_warmup_steps={int(WARMUP_SHARE * steps)}"
        )
    if steps < FEW_STEPS:
        found.append(f"in a run of {steps} steps a model hardly learns anything: set {_longer(config, questions)}")
    return found


def _longer(config: Config, questions: int) -> str:
    """Returns the settings to change so that the run becomes long enough."""
    schedule = config.step_scheduler
    settings = []
    if schedule.epochs * math.ceil(questions / schedule.batch_size) < FEW_STEPS:
        batch = min(schedule.batch_size, _batch_size(config, questions, config.compute.processes))
        if batch != schedule.batch_size:
            settings.append(f"step_scheduler.global_batch_size={batch}")
        settings.append(f"step_scheduler.num_epochs={_epochs(questions, batch)}")
    if schedule.max_steps is not None and schedule.max_steps < FEW_STEPS:
        settings.append("step_scheduler.max_steps=null")
    return " and ".join(settings)


def _epochs(questions: int, batch: int) -> int:
    return min(MOST_EPOCHS, math.ceil(ENOUGH_STEPS / math.ceil(questions / batch)))
