"""Keeps NaN and infinity out of a run's weights and checkpoints, and stops a run that has diverged."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_core.config import Config
from vlm_core.run_directory import LATEST

logger = logging.getLogger(__name__)


class DivergedError(ValueError):
    """The run produces NaN or infinity, and more steps would not help. LATEST is the last good checkpoint."""


@dataclass
class DivergenceWatch:
    """Tracks whether the weights of a run still give finite numbers. The state is the same on all ranks."""

    config: Config
    directory: Path  # the run directory
    skipped_in_a_row: int = 0  # consecutive optimizer steps that were not applied
    sound: bool = True  # False if the last use of the weights gave a number that is not finite

    def after_step(self, step: int, loss: float, grad_norm: float, *, finite: bool) -> None:
        """Records an optimizer step. The step was applied only if its loss and gradient were `finite`."""
        self.sound = finite
        if finite:
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        logger.error("step %d is not applied: its loss is %g and its gradient norm is %g", step, loss, grad_norm)

    def require_applied_steps(self, step: int) -> None:
        """Raises DivergedError if too many consecutive steps, up to `step`, were not applied."""
        if self.skipped_in_a_row >= self.config.step_scheduler.max_nonfinite_steps:
            raise self.diverged(
                f"the loss or the gradient was not finite in steps {step - self.skipped_in_a_row + 1} to {step}, so "
                "these steps were not applied"
            )

    def after_validation(self, step: int, broken: float, batches: float) -> None:
        """Records a validation in which `broken` of all `batches` had a loss that is not finite.

        If all batches are broken, the weights are the cause. If only some are, the data is.
        """
        if broken:
            logger.error("the validation loss of step %d is not finite: %d of %d forward passes gave NaN or infinity",
                         step, broken, batches)  # fmt: skip
        self.sound = broken < batches

    def require_sound(self, step: int) -> None:
        """Raises DivergedError if the weights are broken at the end of a run."""
        if not self.sound:
            raise self.diverged(f"the weights give no finite numbers at the last step, {step}")

    def diverged(self, found: str) -> DivergedError:
        """Returns an error that says what was found, which checkpoint remains, and what to change."""
        latest = self.directory / LATEST
        kept = f"{latest} is the last good checkpoint" if latest.exists() else "no checkpoint was written"
        return DivergedError(f"{found}; {kept}. {_remedy(self.config)}")


def _remedy(config: Config) -> str:
    changes = [f"lower optimizer.lr={config.optimizer.lr:g}"]
    if config.clip_grad_norm.max_norm is None:
        changes.append("set clip_grad_norm.max_norm=1.0")
    if not config.lr_scheduler.lr_warmup_steps:
        changes.append("set lr_scheduler.lr_warmup_share=0.05")
    changes.append("or look for broken images and answers with python -m vlm_core.prepare")
    return f"Start again in another checkpoint.checkpoint_dir: {', '.join(changes)}"


def broken_weight(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Returns the name of a weight that holds NaN or infinity, None if all are finite."""
    floating = ((name, tensor) for name, tensor in weights.items() if tensor.is_floating_point())
    return next((name for name, tensor in floating if not torch.isfinite(tensor).all()), None)
