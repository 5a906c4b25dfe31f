"""Estimates steps, tokens, memory, disk and time of a run before its weights are loaded, and checks that it fits.

Memory and time follow from the dimensions of the language model's layers. They leave out the layers of a vision tower
that trains. On a CPU, three models used 1.5, 1.1 and 0.7 times the estimated memory.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
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
from vlm_core.data.packing import row_tokens
from vlm_core.data.token_cache import TokenDataset, TokenizedExample
from vlm_core.families import Family, part_of
from vlm_core.files import free_bytes
from vlm_core.models.forward import LOGITS_AT_ONCE
from vlm_core.models.freeze import Counts, PartCounts, count_parameters, freeze, frozen_parts, total
from vlm_core.models.lora import adapter_sizes, expert_parameters
from vlm_core.models.prepare import compute_dtype
from vlm_core.training.flops import PEAK_FLOPS, flops_per_token, idle_parameters, idle_share
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
                f"schedule    {self.epochs:,} epochs in batches of {self.batch_size:,}, {self.warmup_steps:,} steps of "
                "warm-up",
                f"tokens      {self.tokens_per_epoch:,.0f} per epoch ({self.unpacked_tokens_per_epoch:,} if unpacked); "
                f"at most {self.largest_batch:,} per forward pass",
                f"images      {of_image}",
                f"parameters  {self.trained:,} train, {self.frozen:,} are frozen",
                f"memory      about {in_words(self.bytes_needed)} per process: {kinds}",
                f"disk        about {in_words(self.checkpoint_bytes)} per checkpoint",
                f"time        GPU hours, estimated at {UTILISATION:.0%} of the peak: {hours}",
            ]
        )


def plan_run(config: Config, base: Path, tokens: TokenDataset, chat: ChatModel, world_size: int) -> Plan:
    """Returns the plan of a run of `config` on the training examples `tokens`; `base` is the model's directory."""
    batches = build_batches(config, tokens, lambda rows: {}, chat)
    schedule = config.step_scheduler
    epoch = plan_epoch(len(tokens), schedule.batch_size, config.rng.seed, 0, batches.groups)
    sampled = epoch[:SAMPLED_STEPS]
    sizes = [
        _shape(micro_batch, tokens)
        for step in sampled
        for rank in range(world_size)
        for micro_batch in batches.micro_batches(step, rank, world_size)
    ]
    computed = sum(rows * longest for rows, longest in sizes)
    per_epoch = computed * len(tokens) / sum(map(len, sampled))
    steps = total_steps(config, len(tokens))
    parts, idle = planned_parameters(config, base, chat.family)
    trained, frozen = total(parts)
    text = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    width = torch.finfo(compute_dtype(config.model, base)).bits // 8
    largest = max(rows * longest for rows, longest in sizes)
    # FSDP2 gathers the embeddings while they are used; they are small compared with the sharded layers.
    shares = world_size if config.compute.strategy == "fsdp2" else 1
    memory = {
        "weights": (frozen * width + trained * (4 + (2 if width == 2 and config.peft is None else 0))) / shares,
        "gradients and optimizer": trained * 12.0 / shares,
        "activations": largest * _bytes_a_token(text, width, checkpointing=config.compute.gradient_checkpointing),
        "logits": 3 * 4 * min(LOGITS_AT_ONCE, largest * text.vocab_size),
    }
    # a second forward pass
    again = 2 * (sum(parts["language_model"]) - sum(idle)) if config.compute.gradient_checkpointing else 0
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
        memory=memory,
        checkpoint_bytes=checkpoint_bytes(Counts(trained, frozen), width, adapter=config.peft is not None),
        flops=(flops_per_token(parts, idle) + again) * per_epoch * steps / len(epoch),
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
    remedies = []
    if not config.compute.gradient_checkpointing:
        remedies.append("compute.gradient_checkpointing=true (most of the activations)")
    if config.packing.enabled and plan.memory["activations"] > 0.1 * total:
        remedies.append(f"packing.max_tokens={config.packing.max_tokens // 2} (half of the activations)")
    if config.compute.processes > 1 and config.compute.strategy == "ddp":
        remedies.append("compute.strategy=fsdp2 (shards weights and optimizer)")
    if config.peft is None:
        remedies.append("a recipe with peft (frozen weights need no gradients and no optimizer state)")
    raise ValueError(
        f"the run needs about {in_words(plan.bytes_needed)} and {device} has {in_words(total)}; to need less, use "
        f"{', or '.join(remedies) or 'a smaller model'}\n{plan}"
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


def checkpoint_bytes(counts: Counts, width: int, *, adapter: bool) -> float:
    """Returns the bytes of a checkpoint: trained weights and AdamW's two moments in float32, plus the frozen weights.

    `width` is the bytes per frozen weight. An `adapter` is saved without the frozen weights.
    """
    return counts.trainable * 12.0 + (0 if adapter else counts.frozen * width)


def planned_parameters(config: Config, base: Path, family: Family) -> tuple[PartCounts, Counts]:
    """Returns the numbers of trained and of frozen parameters on the device, by part of the model.

    The second value has those of the experts that a token does not use.
    """
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
    of_experts = sum(adapted.get(name, 0) for name in expert_parameters(model, family))
    return (
        {part: Counts(counts.trainable + adapters[part], counts.frozen) for part, counts in parts.items()},
        Counts(idle.trainable + round(idle_share(model) * of_experts), idle.frozen),
    )


def _bytes_a_token(text: Any, width: int, *, checkpointing: bool) -> float:
    """Returns how many bytes the backward pass keeps of a token in all layers of a language model.

    `text` is the language model's config, `width` the bytes of a number. With gradient checkpointing, each layer keeps
    its input, and one layer at a time keeps the rest.
    """
    layers = [_layer_bytes(layer, width) for layer in text.per_layer_config]
    hidden = text.hidden_size * getattr(text, "altup_num_inputs", 1)
    return len(layers) * width * hidden + max(layers) if checkpointing else sum(layers)


def _layer_bytes(layer: Any, width: int) -> float:
    """Returns the bytes of a layer: norms (in float32 too), attention, gated MLP, residuals.

    `layer` is the config of this layer alone, since the sizes of some models' layers differ.
    """
    hidden = layer.hidden_size * getattr(layer, "altup_num_inputs", 1)
    inner = getattr(layer, "intermediate_size", 4 * hidden)
    inner = max(inner) if isinstance(inner, list) else inner
    heads = layer.num_attention_heads
    keys = getattr(layer, "num_key_value_heads", None) or heads
    head = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    norms = 4 * hidden * (4 + 4 + width)
    attention = width * head * (2 * (heads + 2 * keys) + 3 * heads)
    return norms + attention + width * (4 * inner + 3 * hidden)
