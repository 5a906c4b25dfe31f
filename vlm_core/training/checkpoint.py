"""Checkpoints: `epoch_E_step_S/` directories, complete or absent, with the pointers LATEST and LOWEST_VAL beside them.

epoch_0_step_200/
    model/               weights or adapter in safetensors, with the processor: loads in transformers or peft;
                         or sharded by torch's DCP, with a loadable copy in `consolidated`; image_settings.json holds
                         the windows of medical images
    training_state.pt    optimizer and schedule
    progress.json        steps done, lowest validation loss so far, fingerprint of the data
    config.yaml          the resolved config, overrides included
    checksums.json       the sha256 of all other files; a run checks them when it resumes
"""

import logging
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from transformers import ProcessorMixin

from vlm_core.cache import checksums
from vlm_core.config import Config
from vlm_core.data.medical.settings import save_settings
from vlm_core.files import point, published_directory, read_json, write_json, write_text
from vlm_core.models.weights import save_weights
from vlm_core.run_directory import (
    CHECKSUMS,
    CONFIG,
    CONSOLIDATED,
    LATEST,
    LOWEST_VAL,
    PROGRESS,
    TRAINING_STATE,
    WEIGHTS,
)

logger = logging.getLogger(__name__)

OLDER_CHECKPOINT = "Set checkpoint.restore_from to an older checkpoint"  # the remedy for a damaged one


@dataclass
class RunProgress:
    """How far a run is: `step` optimizer steps are done. The position in the epoch follows from it."""

    dataset_fingerprint: str
    step: int = 0
    # The lowest validation loss; with another checkpoint.best_metric, the lowest share of errors, or 1 minus the score.
    lowest_validation_loss: float | None = None
    validations_since_lowest: int = 0
    nonfinite_steps: int = 0  # optimizer steps that were not applied
    best_metric: str = "loss"

    def record_validation(self, loss: float) -> bool:
        """Records a finite validation loss, or what replaces it; returns whether it is the lowest so far."""
        lowest = self.lowest_validation_loss
        if lowest is None or loss < lowest:
            self.lowest_validation_loss, self.validations_since_lowest = loss, 0
            return True
        self.validations_since_lowest += 1
        return False

    def is_exhausted(self, patience: int | None) -> bool:
        """Returns whether the validation loss has not fallen for `patience` times."""
        return patience is not None and self.validations_since_lowest >= patience

    def by(self, best_metric: str) -> "RunProgress":
        """Returns the progress by `best_metric`: values of another metric are forgotten."""
        if best_metric == self.best_metric:
            return self
        return replace(self, best_metric=best_metric, lowest_validation_loss=None, validations_since_lowest=0)


def checkpoint_name(progress: RunProgress, steps_per_epoch: int) -> str:
    """Returns `epoch_E_step_S` for the epoch that the last step belonged to."""
    return f"epoch_{(progress.step - 1) // steps_per_epoch}_step_{progress.step}"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one step: full (unsharded) weights to save, optimizer, schedule and progress."""

    weights: dict[str, torch.Tensor]
    training_state: dict[str, Any]
    progress: RunProgress

    def copy(self) -> "Snapshot":
        """Returns a copy on the CPU, which later steps do not change."""
        copied = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), vars(self))
        return Snapshot(**(copied | {"progress": replace(self.progress)}))


class Writer:
    """Writes checkpoints one at a time, either synchronously or in a background thread while training continues."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def write(self, save: Callable[[Snapshot], None], snapshot: Snapshot, *, in_background: bool) -> None:
        """Waits for the previous checkpoint, then calls `save` with the snapshot.

        With `in_background`, returns as soon as the snapshot has been copied.
        """
        self.wait()
        if in_background:
            self._saving = self._thread.submit(save, snapshot.copy())
        else:
            save(snapshot)

    def wait(self) -> None:
        """Waits until the checkpoint is written; raises the error of a background write."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()


def save_checkpoint(
    directory: Path,
    snapshot: Snapshot,
    model: Any,
    processor: ProcessorMixin,
    config: Config,
    *,
    lowest: bool,
    last: bool,
) -> None:
    """Writes a checkpoint and points LATEST to it, and LOWEST_VAL too if its validation loss is the `lowest`.

    `model` is the unwrapped model; the weights come from `snapshot`, not from it. `last` means that the run ends here.
    """
    settings = config.checkpoint
    sharded = settings.model_save_format == "torch_save"
    consolidated = settings.save_consolidated == "every" or (last and settings.save_consolidated == "final")
    with published_directory(directory) as aside:
        weights = snapshot.weights
        save_weights(model, aside / WEIGHTS, weights, sharded=sharded, consolidated=consolidated)
        for place in (aside / WEIGHTS, aside / WEIGHTS / CONSOLIDATED):
            if place.is_dir():
                processor.save_pretrained(place)
                save_settings(config.dataset.images, place)
        torch.save(snapshot.training_state, aside / TRAINING_STATE)
        write_json(aside / PROGRESS, asdict(snapshot.progress))
        write_text(aside / CONFIG, config.to_yaml())
        write_json(aside / CHECKSUMS, checksums(aside))
    if lowest:
        point(directory.parent / LOWEST_VAL, directory)
    point(directory.parent / LATEST, directory)  # Last: a run resumes from here, and LATEST never moves back.
    if config.checkpoint.max_recent_checkpoints:
        _remove_old(directory.parent, config.checkpoint.max_recent_checkpoints)
    logger.info("checkpoint %s", directory)


def _remove_old(run_directory: Path, keep: int) -> None:
    """Removes all but the `keep` latest checkpoints. Never removes the targets of LATEST and LOWEST_VAL."""
    named = {Path(os.path.realpath(run_directory / pointer)) for pointer in (LATEST, LOWEST_VAL)}
    checkpoints = sorted(run_directory.glob("epoch_*_step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    for old in checkpoints[:-keep]:
        if old.resolve() not in named:
            shutil.rmtree(old)


def load_progress(checkpoint: Path) -> RunProgress:
    """Returns the progress of the run that `checkpoint` stores; raises ValueError if it has unknown entries."""
    try:
        return RunProgress(**read_json(checkpoint / PROGRESS))
    except TypeError as error:
        raise ValueError(
            f"{checkpoint / PROGRESS} is damaged, or a newer version wrote it ({error}). {OLDER_CHECKPOINT}"
        ) from None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the state dictionaries of optimizer and schedule, on the CPU; raises ValueError if they are damaged."""
    file = checkpoint / TRAINING_STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing. {OLDER_CHECKPOINT}") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # torch's message advises an unsafe load
        raise ValueError(f"{file} is damaged, or holds more than tensors and numbers. {OLDER_CHECKPOINT}") from None
    if not isinstance(state, dict) or not {"optimizer", "scheduler"} <= state.keys():
        raise ValueError(f"{file} does not hold the states of optimizer and scheduler. {OLDER_CHECKPOINT}")
    return state
