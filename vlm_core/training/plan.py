"""Estimates steps, tokens, memory, disk and time of a run before its weights are loaded, and checks that it fits.

`memory` has the arithmetic of the bytes. Time follows from the weights of the language model.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_core.config import Config
from vlm_core.data.batches import PackedMicroBatch, build_batches
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.loader import plan_epoch
from vlm_core.data.mixture import Mixture
from vlm_core.data.packing import row_tokens
from vlm_core.data.token_cache import TokenDataset, TokenizedExample
from vlm_core.families import Family, part_of
from vlm_core.files import free_bytes
from vlm_core.models.freeze import Counts, count_parameters, freeze, frozen_parts, total
from vlm_core.models.load import compute_dtype
from vlm_core.models.lora import adapter_sizes, expert_parameters
from vlm_core.models.quantize import quantized_weights
from vlm_core.training.flops import PEAK_FLOPS, flops_per_token, idle_parameters, idle_share
from vlm_core.training.memory import (
    CARDS,
    ModelSizes,
    bytes_of_states,
    fitting_settings,
    in_settings,
    memory_of,
    savings,
)
from vlm_core.training.run_length import total_steps

logger = logging.getLogger(__name__)

SAMPLED_STEPS = 50  # steps of the first epoch that stand for all steps
SAMPLED_EXAMPLES = 200  # whose images are counted
SAFETY_FACTOR = 1.5  # memory estimates were up to 1.5 times too high
UTILISATION = 0.35  # assumed share of the GPU's peak FLOP/s
SHOWN_GPUS = ("H100", "A100", "RTX 4090", "L4")


def in_words(size: float) -> str:
    """Returns a number of bytes as text in GB, or in MB below 1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True)
class Plan:
    """The sizes of a run, with estimates of the bytes per process and of the FLOPs of all processes together."""

    examples: int
    steps_per_epoch: int
    steps: int
    epochs: int
    batch_size: int
    warmup_steps: int
    tokens_of_images: tuple[int, int]  # of an image: the fewest and the most; (0, 0) without images
    tokens_per_epoch: float  # computed tokens, including padding
    unpacked_tokens_per_epoch: int  # tokens of the unpacked, unpadded examples
    largest_batch: int  # tokens of the largest forward pass
    trained: int
    frozen: int
    memory: Mapping[str, float]
    checkpoint_bytes: float
    flops: float
    remedies: Sequence[str]  # settings that need less memory, each with how much less
    fits: Sequence[tuple[int, Mapping[str, Any], float]]  # (GB of a card, settings to change, bytes that they need)
    mixture: Mixture | None = None

    @property
    def bytes_needed(self) -> float:
        """Total memory per process."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {in_words(size)}" for kind, size in self.memory.items())
        hours = ", ".join(f"{self.flops / (UTILISATION * PEAK_FLOPS[n]) / 3600:.2g} on {n}" for n in SHOWN_GPUS)
        fewest, most = self.tokens_of_images
        of_image = f"{fewest:,} tokens each" if fewest == most else f"{fewest:,} to {most:,} tokens each"
        return "\n".join(
            [
                f"examples    {self.examples:,}: {self.steps_per_epoch:,} steps per epoch, {self.steps:,} in total",
                *([] if self.mixture is None else [f"datasets    {self.mixture}"]),
                f"schedule    {self.epochs:,} epochs in batches of {self.batch_size:,}, {self.warmup_steps:,} steps of "
                "warm-up",
                f"tokens      {self.tokens_per_epoch:,.0f} per epoch ({self.unpacked_tokens_per_epoch:,} if unpacked); "
                f"at most {self.largest_batch:,} per forward pass",
                f"images      {of_image}",
                f"parameters  {self.trained:,} train, {self.frozen:,} are frozen",
                f"memory      about {in_words(self.bytes_needed)} per process: {kinds}",
                *self._cards(),
                f"disk        about {in_words(self.checkpoint_bytes)} per checkpoint",
                f"time        GPU hours, estimated at {UTILISATION:.0%} of the peak: {hours}",
            ]
        )

    def _cards(self) -> list[str]:
        """Returns a line for each size of card, with the settings to change for it."""
        if not self.fits:
            return [f"fits on     no card of up to {CARDS[-1]} GB"]
        lines = [f"{card:>2} GB: {in_settings(changes)} ({in_words(need)})" for card, changes, need in self.fits]
        return [f"{'fits on' if number == 0 else '':<12}{line}" for number, line in enumerate(lines)]


def plan_run(
    config: Config,
    base: Path,
    tokens: TokenDataset,
    chat: ChatModel,
    world_size: int,
    mixture: Mixture | None = None,
) -> Plan:
    """Returns the plan of a run of `config` on the training examples `tokens`; `base` is the model's directory."""
    batches = build_batches(config, tokens, lambda rows: {}, chat)
    schedule = config.step_scheduler
    epoch = plan_epoch(len(tokens), schedule.batch_size, config.rng.seed, 0, batches.groups, mixture)
    sampled = epoch[:SAMPLED_STEPS]
    shapes = [
        _shape(micro_batch, tokens)
        for step in sampled
        for rank in range(world_size)
        for micro_batch in batches.micro_batches(step, rank, world_size)
    ]
    computed = sum(rows * longest for rows, longest in shapes)
    per_epoch = computed * len(tokens) / sum(map(len, sampled))
    steps = total_steps(config, len(tokens))
    sizes = planned_sizes(config, base, chat.family)
    parts, (trained, frozen) = sizes.parts, total(sizes.parts)
    longest = int(tokens.lengths.max())
    largest = max(rows * longest for rows, longest in shapes)
    # FSDP2 gathers the embeddings while they are used; they are small compared with the sharded layers.
    shares = world_size if config.compute.strategy == "fsdp2" else 1
    # a second forward pass
    again = 2 * (sum(parts["language_model"]) - sum(sizes.idle)) if config.compute.gradient_checkpointing else 0
    return Plan(
        examples=len(tokens),
        steps_per_epoch=len(epoch),
        steps=steps,
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        warmup_steps=config.lr_scheduler.warmup_steps,
        tokens_of_images=tokens_of_images(tokens, chat),
        tokens_per_epoch=per_epoch,
        unpacked_tokens_per_epoch=int(tokens.lengths.sum()),
        largest_batch=largest,
        trained=trained,
        frozen=frozen,
        memory=memory_of(config, sizes, largest, shares),
        checkpoint_bytes=checkpoint_bytes(
            total(parts), sizes.width, adapter=config.peft is not None, states=bytes_of_states(config.optimizer)
        ),
        flops=(flops_per_token(parts, sizes.idle) + again) * per_epoch * steps / len(epoch),
        fits=list(fitting_settings(config, sizes, largest, longest, shares)),
        mixture=mixture,
        remedies=[
            f"{setting} (about {in_words(saved)} less)"
            for setting, saved in savings(config, sizes, largest, longest, world_size).items()
        ],
    )


def tokens_of_images(tokens: TokenDataset, chat: ChatModel) -> tuple[int, int]:
    """Returns the fewest and the most tokens of an image, over examples spread over all; (0, 0) without images."""
    sampled = (tokens[i] for i in range(0, len(tokens), max(1, len(tokens) // SAMPLED_EXAMPLES)))
    counts = [_image_tokens(example, chat) // len(example.images) for example in sampled if example.images]
    return (min(counts), max(counts)) if counts else (0, 0)


def _image_tokens(example: TokenizedExample, chat: ChatModel) -> int:
    ids = torch.tensor([example.input_ids])
    marked = [*chat.token_types(ids).values()] or [ids == chat.image_token]
    return int(marked[0].sum())


def require_fit(plan: Plan, config: Config, device: torch.device) -> None:
    """Raises ValueError if the device has far less memory than the plan needs; the error names settings that need less.

    Only warns if the estimate exceeds the memory by less than SAFETY_FACTOR.
    """
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    if plan.bytes_needed <= total:
        return
    if plan.bytes_needed <= SAFETY_FACTOR * total:
        logger.warning("the run needs about %s and %s has %s: it may not fit", in_words(plan.bytes_needed), device,
                       in_words(total))  # fmt: skip
        return
    others = [] if config.peft else ["a recipe with peft (frozen weights need no gradients and no optimizer state)"]
    raise ValueError(
        f"the run needs about {in_words(plan.bytes_needed)} and {device} has {in_words(total)}; to need less, use "
        f"{', or '.join([*plan.remedies, *others]) or 'a smaller model'}\n{plan}"
    )


def out_of_memory(plan: Plan | None, device: torch.device, error: Exception) -> ValueError:
    """Returns the error to end a run with whose device had too little memory: what to change, by the plan's numbers."""
    reason = str(error).partition("\n")[0][:300]
    if plan is None:
        return ValueError(f"{device} is out of memory ({reason}); use a collate function that makes smaller batches")
    kinds = ", ".join(f"{kind} {in_words(size)}" for kind, size in plan.memory.items())
    return ValueError(
        f"{device} is out of memory ({reason}). The plan was {in_words(plan.bytes_needed)}: {kinds}. To need less, use "
        f"{', or '.join(plan.remedies) or 'a smaller model'}; the same command then resumes from the last checkpoint"
    )


def require_disk(plan: Plan, config: Config, directory: Path) -> None:
    """Raises ValueError if the checkpoints that a run keeps in `directory` do not fit on its disk.

    Checkpoints that already exist need no more space.
    """
    if not config.checkpoint.enabled:
        return
    every, recent = config.step_scheduler.ckpt_every_steps, config.checkpoint.max_recent_checkpoints
    written = plan.steps // every + 1 if every else 1
    # Two more: LOWEST_VAL may be an older checkpoint, and an old one is removed only after the new one is complete.
    kept = min(written, (recent or written) + 2)
    new = max(1, kept - len(list(directory.glob("epoch_*_step_*"))))
    needed, free = new * plan.checkpoint_bytes, free_bytes(directory)
    if needed <= free:
        return
    fewer = int(free // plan.checkpoint_bytes) - 2
    remedy = f"set checkpoint.max_recent_checkpoints={fewer}" if new > 1 and 1 <= fewer < kept else "free some space"
    what = f"{new} checkpoints of about" if new > 1 else "a checkpoint of about"
    raise ValueError(
        f"{what} {in_words(plan.checkpoint_bytes)} will not fit into {directory}, which has {in_words(free)} left: "
        f"{remedy}, or set checkpoint.checkpoint_dir to a directory on another disk"
    )


def _shape(micro_batch: Any, tokens: TokenDataset) -> tuple[int, int]:
    """Returns (number of rows, tokens of the longest row) of a micro-batch."""
    if isinstance(micro_batch, PackedMicroBatch):
        return len(micro_batch.rows), max(map(row_tokens, micro_batch.rows))
    return len(micro_batch.examples), int(max(tokens.lengths[i] for i in micro_batch.examples))


def checkpoint_bytes(counts: Counts, width: int, *, adapter: bool, states: float = 8.0) -> float:
    """Returns the bytes of a checkpoint: trained weights in float32 with the optimizer's states, plus frozen weights.

    `width` is the bytes per frozen weight, `states` those of the states per trained one (AdamW's two moments: 8). An
    `adapter` is saved without the frozen weights.
    """
    return counts.trainable * (4 + states) + (0 if adapter else counts.frozen * width)


def planned_sizes(config: Config, base: Path, family: Family) -> ModelSizes:
    """Returns the sizes of the model of a run on the device; `base` needs no weights."""
    architecture = AutoConfig.from_pretrained(base, trust_remote_code=False)
    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(architecture, trust_remote_code=False)
    adapters: dict[str, int] = defaultdict(int)
    frozen, adapted = frozen_parts(config.freeze_config, family), dict[str, int]()
    if config.peft is not None:
        adapted = adapter_sizes(model, config.peft, family, frozen)
        for name, size in adapted.items():
            adapters[part_of(name, family) or "other"] += size
        model.requires_grad_(False)
    else:
        freeze(model, frozen, family)
    tower = model.get_submodule(family.vision_tower) if family.vision_tower else nn.Identity()
    trains = any(p.requires_grad for p in tower.parameters())
    trains = trains or any(name.startswith(f"{family.vision_tower}.") for name in adapted)
    if config.vision_cache.enabled and family.vision_tower and not trains:
        model.set_submodule(family.vision_tower, nn.Identity())  # its features are on disk
    parts, idle = count_parameters(model, family), idle_parameters(model, family)
    quantizable = quantized_weights(model, family)
    of_experts = sum(adapted.get(name, 0) for name in expert_parameters(model, family))
    return ModelSizes(
        parts={part: Counts(counts.trainable + adapters[part], counts.frozen) for part, counts in parts.items()},
        idle=Counts(idle.trainable + round(idle_share(model) * of_experts), idle.frozen),
        quantizable=sum(quantizable),
        largest=max(quantizable, default=0),
        text=architecture.get_text_config(),
        width=torch.finfo(compute_dtype(config.model, base)).bits // 8,
    )
