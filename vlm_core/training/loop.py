"""The training loop. Its results do not depend on the micro-batch size, the number of ranks, or restarts."""

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_core.config import Config
from vlm_core.data.batches import AnyBatches, count_tokens
from vlm_core.data.chat_model import FEATURES, PIXELS, Batch, ChatModel
from vlm_core.data.collate import require_keys
from vlm_core.data.loader import iterate_steps, plan_epoch
from vlm_core.data.mixture import Mixture
from vlm_core.models.freeze import PartCounts
from vlm_core.models.weights import weights_to_save
from vlm_core.training.checkpoint import (
    RunProgress,
    Snapshot,
    Writer,
    checkpoint_name,
    load_progress,
    load_state,
    save_checkpoint,
)
from vlm_core.training.distributed import Ranks, barrier, peak_memory_mb, same_as_main, sum_over_ranks
from vlm_core.training.divergence import DivergenceWatch, broken_weight
from vlm_core.training.flops import flops_per_token, idle_parameters, model_flops_utilisation, peak_of
from vlm_core.training.loss import TokenLoss, supervised_examples, supervised_tokens
from vlm_core.training.optim import build_optimizer, build_scheduler
from vlm_core.training.parallel import (
    compile_layers,
    full_state,
    load_full_state,
    outside_forward,
    parallelize,
    without_sync,
)
from vlm_core.training.reporter import Reporter
from vlm_core.training.run_length import total_steps

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """SIGTERM stopped the run. If checkpoints are enabled, the run wrote one, and the same command resumes from it."""


@dataclass
class Trainer:
    """A training run: its model, data, optimizer and progress."""

    config: Config
    directory: Path
    model: Any  # the unwrapped PreTrainedModel or PeftModel, on the CPU or on its device
    chat: ChatModel
    train: AnyBatches
    validation: AnyBatches
    dataset_fingerprint: str
    parameters: PartCounts
    ranks: Ranks
    device: torch.device
    mixture: Mixture | None = None  # how the training examples of several datasets are drawn
    compute_dtype: torch.dtype = torch.float32
    num_workers: int = 0  # processes that prefetch batches
    full_model: Callable[[], AbstractContextManager[None]] = nullcontext  # full weights attached while saving
    # Gets (step, validation loss) on all ranks, in eval mode; returns (scores, what LOWEST_VAL has least of).
    after_validation: Callable[[int, float], tuple[dict[str, float | None], float]] = lambda step, loss: ({}, loss)
    pause_after: int | None = None  # a step to stop after

    def __post_init__(self) -> None:
        self.progress = RunProgress(self.dataset_fingerprint, best_metric=self.config.checkpoint.best_metric)
        self.token_counts = [0, 0, 0]  # since this process started; the fields of `TokenCounts`
        self.sigterm_received = self.stopping = False
        self.total_steps = total_steps(self.config, len(self.train))
        self.steps_per_epoch = math.ceil(len(self.train) / self.config.step_scheduler.batch_size)
        compute, fused = self.config.compute, self.config.loss_fn.is_fused
        self.token_loss = TokenLoss(self.model, self.chat, fused=fused, skip_unused=compute.skip_unused_positions)
        if compute.compile:
            compile_layers(self.model)
        barrier()  # One rank may load its weights much later than the others.
        self.forward = parallelize(self.token_loss, compute.strategy, self.ranks, self.device, self.compute_dtype)
        # Build the optimizer after sharding, because FSDP2 replaces the parameters.
        peft = self.config.peft
        ratio = None if peft is None else peft.loraplus_lr_ratio
        self.optimizer = build_optimizer(self.model, self.config.optimizer, self.chat.family, ratio)
        self.scheduler = build_scheduler(self.optimizer, self.config.lr_scheduler, self.total_steps)
        self.watch = DivergenceWatch(self.config, self.directory)
        self.peak_flops = peak_of(self.device)
        self.flops_per_token = flops_per_token(self.parameters, idle_parameters(self.model, self.chat.family))
        self.writer = Writer()

    def resume(self, checkpoint: Path) -> None:
        """Restores optimizer, schedule and position from `checkpoint`. The model must have been loaded from it before.

        Raises ValueError if the training data has changed since.
        """
        state = load_state(checkpoint)
        load_full_state(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = load_progress(checkpoint).by(self.config.checkpoint.best_metric)
        if self.progress.dataset_fingerprint != self.dataset_fingerprint:
            raise ValueError(
                f"{checkpoint} was trained on other data: its fingerprint is {self.progress.dataset_fingerprint}, that "
                f"of the current data is {self.dataset_fingerprint}. Restore the original data, or set "
                "checkpoint.checkpoint_dir to another directory"
            )
        logger.info("resumed from %s", checkpoint.name)

    def run(self) -> None:
        """Trains to the last step, and validates and saves checkpoints along the way.

        After SIGTERM, finishes and saves the current step and raises Preempted.
        """
        previous = signal.signal(signal.SIGTERM, self._remember_sigterm)
        try:
            self._run()
        finally:
            self.writer.wait()
            signal.signal(signal.SIGTERM, previous)

    def _run(self) -> None:
        reporter = Reporter(self.directory, self.total_steps, self.progress.step, enabled=self.ranks.is_main)
        data_wait_start = time.monotonic()
        for batches in self._remaining_steps():
            waited = time.monotonic() - data_wait_start
            self.progress.step += 1
            reporter.step(self._optimizer_step(batches) | {"data_seconds": round(waited, 4)})
            self.watch.require_applied_steps(self.progress.step)
            last = self.progress.step == self.total_steps
            paused = self.progress.step == self.pause_after
            due = last or self._due("val_every_steps")
            improved = (due or paused) and self._validate(reporter, counts=due)
            last = last or self.progress.is_exhausted(self.config.step_scheduler.early_stop_patience)
            stopping = self.stopping and not (last or paused)
            wanted = last or paused or improved or stopping or self._due("ckpt_every_steps")
            if self.config.checkpoint.enabled and wanted:
                self._save(lowest=improved, last=last)
            if last or paused:
                self.watch.require_sound(self.progress.step)
                break
            if stopping:
                raise Preempted(f"stopped by SIGTERM after step {self.progress.step} of {self.total_steps}")
            data_wait_start = time.monotonic()
        reporter.close()
        computed, padding, unpacked = self.token_counts
        if computed:
            logger.info("computed %s tokens (%.1f %% padding); the unpacked examples have %s, %.1f times as many",
                        f"{computed:,}", 100 * padding / computed, f"{unpacked:,}", unpacked / computed)  # fmt: skip

    def _remember_sigterm(self, number: int, frame: object) -> None:
        self.sigterm_received = True

    def _remaining_steps(self) -> Iterator[list[Batch]]:
        return iterate_steps(self._planned_steps(), self.train.batch, self.num_workers)

    def _planned_steps(self) -> Iterator[Sequence[Any]]:
        """Yields the micro-batches of this rank for each step from the next one on."""
        seed, groups, size = self.config.rng.seed, self.train.groups, self.config.step_scheduler.batch_size
        start, step = divmod(self.progress.step, self.steps_per_epoch)
        for epoch in range(start, math.ceil(self.total_steps / self.steps_per_epoch)):
            plan = plan_epoch(len(self.train), size, seed, epoch, groups, self.mixture)
            left = plan[step:][: self.total_steps - epoch * self.steps_per_epoch - step]
            yield from (self.train.micro_batches(share, self.ranks.rank, self.ranks.world_size) for share in left)
            step = 0

    def _due(self, setting: str) -> bool:
        every = getattr(self.config.step_scheduler, setting)
        return every is not None and self.progress.step % every == 0

    def _optimizer_step(self, batches: list[Batch]) -> dict[str, Any]:
        started = time.monotonic()
        if self.progress.step == 1 and "group_ids" not in batches[0]:
            require_keys(batches[0], self.chat.family)
        # The dropout seed depends only on the step and rank, so a resumed run repeats the uninterrupted one.
        torch.manual_seed((self.config.rng.seed * 1_000_003 + self.progress.step) * 1_009 + self.ranks.rank)
        self.model.train()
        # The loss is divided by the global token count, which must be known before the first backward pass.
        # The ranks also agree here whether to stop, because a rank that stops alone would block the others.
        samples, tokens, terminated, *counts = sum_over_ranks(
            sum(map(supervised_examples, batches)),
            sum(map(supervised_tokens, batches)),
            self.sigterm_received,
            *(sum(column) for column in zip(*map(count_tokens, batches), strict=True)),
        )
        self.stopping = terminated > 0
        self.token_counts = [total + int(count) for total, count in zip(self.token_counts, counts, strict=True)]
        loss_sum = sum(self._backward(batches, tokens))
        lr = self.scheduler.get_last_lr()[0]
        loss, grad_norm = self._update_weights(loss_sum, tokens)
        seconds = time.monotonic() - started
        flops = counts[0] * self.flops_per_token
        return {
            "step": self.progress.step,
            "epoch": (self.progress.step - 1) // self.steps_per_epoch,
            "loss": loss,
            "grad_norm": grad_norm,
            "nonfinite_steps": self.progress.nonfinite_steps,
            "lr": lr,
            "supervised_tokens": int(tokens),
            "computed_tokens": int(counts[0]),
            "padding_share": round(counts[1] / counts[0], 4),
            "samples_per_second": round(samples / seconds, 3),
            "tokens_per_second": round(counts[0] / seconds, 1),
            "supervised_tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "step_seconds": round(seconds, 4),
            **model_flops_utilisation(flops, seconds, self.peak_flops, self.ranks.world_size),
        }

    def _update_weights(self, loss_sum: float, tokens: float) -> tuple[float, float]:
        """Applies the accumulated gradient if loss and gradient are finite; returns (loss per token, gradient norm)."""
        max_norm = self.config.clip_grad_norm.max_norm
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
        grad_norm = float(full_state(norm, keep=True))
        # Sum over ranks, so that all ranks make the same decision.
        loss_sum, broken = sum_over_ranks(loss_sum, not math.isfinite(grad_norm))
        loss = loss_sum / tokens
        finite = math.isfinite(loss) and not broken
        if finite:
            self.optimizer.step()
        else:
            self.progress.nonfinite_steps += 1
        with warnings.catch_warnings():
            # torch warns if the schedule advances before the first optimizer step, as it does after a skipped step.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.watch.after_step(self.progress.step, loss, grad_norm, finite=finite)
        return loss, grad_norm

    def _backward(self, batches: list[Batch], tokens: float) -> Iterator[float]:
        """Accumulates the gradient of (sum of token losses) / `tokens`; yields each micro-batch's summed loss."""
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with nullcontext() if last else without_sync(self.forward):
                with self._precision():
                    loss = self.forward(self._to_device(batch))
                # DDP and FSDP average gradients over ranks. Multiplying by world_size gives the sum.
                (loss * (self.ranks.world_size / tokens)).backward()
            yield loss.item()

    def _to_device(self, batch: Batch) -> Batch:
        moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        return moved | {key: moved[key].to(self.compute_dtype) for key in (PIXELS, FEATURES) if key in moved}

    def _precision(self) -> torch.autocast:
        """Returns the autocast context: trained weights are float32, computation uses the configured dtype."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    @torch.no_grad()
    def _validate(self, reporter: Reporter, *, counts: bool) -> bool:
        """Records the loss per token over the full validation split, and scores; returns whether they are the best yet.

        A loss or a deciding score that is not finite is never the best, and does not count for early stopping.
        Without `counts`, nothing does: a pause changes nothing in the rest of the run.
        """
        self.model.eval()
        everything = range(len(self.validation))
        micro_batches = self.validation.micro_batches(everything, self.ranks.rank, self.ranks.world_size)
        one_by_one = [[micro_batch] for micro_batch in micro_batches]
        loss_sum = tokens = broken = counted = 0.0
        for (batch,) in iterate_steps(one_by_one, self.validation.batch, self.num_workers):
            with self._precision():  # bypasses DDP: there are no gradients to reduce and no buffers to broadcast
                loss = self.token_loss(self._to_device(batch)).item()
            supervised = supervised_tokens(batch)
            loss_sum, tokens = loss_sum + loss, tokens + supervised
            broken, counted = broken + (not math.isfinite(loss)), counted + (supervised > 0)
        loss_sum, tokens, broken, counted = sum_over_ranks(loss_sum, tokens, broken, counted)
        loss = loss_sum / tokens
        with self._precision(), outside_forward(self.token_loss), torch.compiler.set_stance("force_eager"):
            scores, criterion = self.after_validation(self.progress.step, loss)
        reporter.validation({"step": self.progress.step, "loss": loss, "supervised_tokens": int(tokens), **scores})
        self.watch.after_validation(self.progress.step, broken, counted)
        if not (counts and math.isfinite(loss) and math.isfinite(criterion)):
            return False
        improved = self.progress.record_validation(criterion)
        if self.progress.is_exhausted(self.config.step_scheduler.early_stop_patience):
            logger.info("stopping early: %d validations in a row were not better than LOWEST_VAL, by "
                        "checkpoint.best_metric=%s",
                        self.progress.validations_since_lowest, self.config.checkpoint.best_metric)  # fmt: skip
        return improved

    def _save(self, *, lowest: bool, last: bool) -> None:
        """Writes a checkpoint, unless the weights contain or produce NaN or infinity."""
        if not self.watch.sound:
            logger.error("no checkpoint at step %d: the last loss was not finite", self.progress.step)
            return
        directory = self.directory / checkpoint_name(self.progress, self.steps_per_epoch)
        main, state = self.ranks.is_main, {"scheduler": self.scheduler.state_dict()}
        with self.full_model():
            weights = full_state(weights_to_save(self.model), keep=main)
        state["optimizer"] = full_state(self.optimizer.state_dict(), keep=main)
        broken = same_as_main(broken_weight(weights) if main else None)
        if broken is not None:
            self.watch.sound = False
            logger.error("no checkpoint at step %d: the weight %s is not finite", self.progress.step, broken)
            return
        if main:
            processor = self.chat.processor

            def save(snapshot: Snapshot) -> None:
                save_checkpoint(directory, snapshot, self.model, processor, self.config, lowest=lowest, last=last)

            snapshot = Snapshot(weights, state, self.progress)
            self.writer.write(save, snapshot, in_background=self.config.checkpoint.is_async)
        barrier()
