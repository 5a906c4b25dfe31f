"""Sets up a run: `gather` collects and checks its inputs, `build_trainer` loads the model.

`gather` finds every error in the input, before the model is loaded and before the run directory is written to.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vlm_core.cache import read_manifest
from vlm_core.config import Config
from vlm_core.data.batches import CollatedBatches, DecodedImages, ImageInputs, build_batches
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.kept_images import keep_images
from vlm_core.data.loader import plan_epoch, worker_processes
from vlm_core.data.mixture import Mixture, dataset_numbers, mixture_of
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import SPLITS, TRAIN, VALIDATION
from vlm_core.data.token_cache import TokenDataset
from vlm_core.families import Family
from vlm_core.home import require_writable
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat
from vlm_core.models.freeze import count_parameters, parameter_table
from vlm_core.models.frozen_tower import DetachedTower, is_tower_frozen
from vlm_core.models.load import compute_dtype, device_of
from vlm_core.models.prepare import prepare_model
from vlm_core.models.quantize import require_bitsandbytes
from vlm_core.models.structured_attention import use_structured_attention
from vlm_core.resume import checkpoint_to_resume
from vlm_core.targets import load_target
from vlm_core.training.data_start import FirstBatches, start_from_data
from vlm_core.training.distributed import Ranks, decided_by_main, main_rank_first
from vlm_core.training.loop import Trainer
from vlm_core.training.optim import require_optimizer
from vlm_core.training.run_length import decide_length
from vlm_core.training.training_examples import read_examples
from vlm_core.training.vision_cache import encode_images

logger = logging.getLogger(__name__)

Collate = Callable[..., Any]
# A function of (step, validation loss) that all ranks call at each validation; see Trainer.after_validation.
AfterValidation = Callable[[int, float], tuple[dict[str, float | None], float]]


@dataclass(frozen=True)
class RunInputs:
    """The checked inputs of a run. The config has the run's batch size, epochs and warm-up filled in."""

    config: Config
    directory: Path  # the run directory
    base: Path  # directory of the base model
    chat: ChatModel
    conversations: Path  # cache directory
    tokens: dict[str, TokenDataset]  # by split
    mixture: Mixture | None  # how several datasets are drawn; None: there is one
    collate: Collate | None  # the user's function; None: the family's
    checkpoint: Path | None  # to resume from
    ranks: Ranks

    @property
    def train(self) -> TokenDataset:
        """The examples to train on."""
        return self.tokens[TRAIN]

    @property
    def validation(self) -> TokenDataset:
        """The examples that the validation loss is computed on."""
        return self.tokens[VALIDATION]

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return device_of(self.ranks.local_rank)


def gather(config: Config, directory: Path, ranks: Ranks, conversations: Path | None = None) -> RunInputs:
    """Collects and checks the inputs of the run of `config`; raises ValueError if one of them is wrong.

    `conversations` is the conversation cache of `config`; None: find or build it.
    """
    config.require_divisible_batch(ranks.world_size)
    collate = _own_collate(config)
    _require_kernels(config, device_of(ranks.local_rank))
    require_optimizer(config, device_of(ranks.local_rank))
    if config.peft is not None and config.checkpoint.model_save_format == "torch_save":
        logger.warning("checkpoint.model_save_format=torch_save has no effect: an adapter is saved in safetensors")
    require_writable(directory)
    with main_rank_first(ranks):
        conversations = conversations or prepare_conversations(config)[0]
        base = fetch_model(config.model)
        chat = load_chat(base, config.model.image_processor.settings)
        if collate is None:
            config = _with_effective_savings(config, chat)
        tokens = read_examples(config, conversations, chat, own_collate=collate is not None)
        mixture = _mixture(config, conversations, tokens[TRAIN], own_collate=collate is not None)
    # The main rank decides, because on a shared file system other hosts may see an old pointer for a minute.
    checkpoint = decided_by_main(
        ranks, lambda: checkpoint_to_resume(directory, config.checkpoint.restore_from, thorough=True)
    )
    config = decide_length(config, checkpoint, read_manifest(conversations)["rows"][TRAIN], ranks.world_size)
    return RunInputs(config, directory, base, chat, conversations, tokens, mixture, collate, checkpoint, ranks)


def _mixture(config: Config, conversations: Path, train: TokenDataset, *, own_collate: bool) -> Mixture | None:
    """Returns how the examples of several datasets are drawn; a user's collate function gets all rows."""
    of_row = dataset_numbers(conversations, TRAIN, list(config.datasets))
    return mixture_of(config, of_row if own_collate else of_row[sorted(train.shown_rows())])


def build_trainer(inputs: RunInputs, after_validation: Callable[[Any, ImageInputs], AfterValidation]) -> Trainer:
    """Loads the model, restores the checkpoint if there is one, and returns the trainer of the run.

    `after_validation` gets the model and its image inputs once. The trainer calls the result after each validation.
    """
    config, family, ranks, device = inputs.config, inputs.chat.family, inputs.ranks, inputs.device
    model = prepare_model(config, inputs.base, family, inputs.checkpoint)
    packs = config.packing.enabled and inputs.collate is None
    if packs and config.packing.structured_attention and not config.compute.compile:
        use_structured_attention(model, device)
    if config.peft is not None and config.peft.starts_from_data and inputs.checkpoint is None:
        start_from_data(model, inputs.chat, _first_batches(inputs), ranks, device)
    parameters = count_parameters(model, family)  # counted before the vision tower is detached
    logger.info("parameters by part of the model:\n%s", parameter_table(parameters))
    images, full_model, workers = _images(inputs, model)
    train, validation = (_batches(inputs, split, images) for split in SPLITS)
    trainer = Trainer(
        config=config,
        directory=inputs.directory,
        model=model,
        chat=inputs.chat,
        train=train,
        validation=validation,
        mixture=inputs.mixture,
        dataset_fingerprint=read_manifest(inputs.conversations)["fingerprint"],
        parameters=parameters,
        ranks=ranks,
        device=device,
        compute_dtype=compute_dtype(config.model, inputs.base),
        full_model=full_model,
        num_workers=workers,
    )
    trainer.after_validation = after_validation(trainer.model, images)
    if inputs.checkpoint:
        trainer.resume(inputs.checkpoint)
    return trainer


def _images(inputs: RunInputs, model: Any) -> tuple[ImageInputs, Callable[[], AbstractContextManager[None]], int]:
    """Returns the image inputs of `model`, a context, and the number of processes that prefetch batches.

    Within the context, the model has all weights that a checkpoint needs. If the vision tower is frozen, its features
    come from the cache and the tower is detached from the model.
    """
    config, chat, workers = inputs.config, inputs.chat, inputs.config.dataloader.num_workers
    cached = config.vision_cache.enabled and inputs.collate is None
    if cached and not is_tower_frozen(model, chat.family):
        logger.info("the vision tower trains, so its features cannot be cached: each step encodes its images")
        cached = False
    if not cached:
        workers = worker_processes(workers, decodes=True)
        return keep_images(DecodedImages.of(inputs.conversations, chat), chat, workers), nullcontext, workers
    decoders = worker_processes(workers, decodes=True)
    images = encode_images(model, chat, inputs.conversations, inputs.ranks, inputs.device, decoders)
    detached = DetachedTower(model, chat.family)
    # A full checkpoint includes the tower, an adapter does not.
    full_model = detached.attached if config.peft is None else nullcontext
    return images, full_model, worker_processes(workers, decodes=False)


def _batches(inputs: RunInputs, split: str, images: ImageInputs) -> Any:
    if inputs.collate is None:
        return build_batches(inputs.config, inputs.tokens[split], images, inputs.chat)
    dataset = ConversationDataset(inputs.conversations, split)
    size = inputs.config.step_scheduler.local_batch_size
    return CollatedBatches(dataset, inputs.collate, inputs.chat.processor, size)


def _first_batches(inputs: RunInputs) -> FirstBatches:
    """Returns the first training batches; the model's own tower encodes their images."""
    batches = _batches(inputs, TRAIN, DecodedImages.of(inputs.conversations, inputs.chat))
    size, seed = inputs.config.step_scheduler.batch_size, inputs.config.rng.seed
    return FirstBatches(batches, plan_epoch(len(batches), size, seed, 0, batches.groups, inputs.mixture))


def _require_kernels(config: Config, device: torch.device) -> None:
    """Raises ValueError if a configured kernel is not installed, or does not run on the device or sharded."""
    if device.type == "cpu" and config.model.attn_implementation == "flex_attention":
        raise ValueError("model.attn_implementation=flex_attention has no backward pass on a CPU; set it to sdpa")
    if config.model.quantization == "int8" and config.compute.strategy == "fsdp2":
        raise ValueError(
            "compute.strategy=fsdp2 loses the scales that bitsandbytes keeps beside an 8-bit weight; set "
            "model.quantization=nf4, or compute.strategy=ddp"
        )
    require_bitsandbytes(config.model.quantization)
    if device.type == "cpu" and config.loss_fn.is_fused:
        raise ValueError(f"loss_fn._target_={config.loss_fn.target} needs a GPU; remove it on a CPU")
    if config.loss_fn.is_fused and find_spec("liger_kernel") is None:
        raise ValueError(
            f"loss_fn._target_={config.loss_fn.target} needs pip install 'medpix-finetune[liger]'; install that, or "
            "remove the setting"
        )


def unpacked_reason(family: Family) -> str:
    """Returns in words why a model trains on unpacked examples, without cached features."""
    if family.image_crops:
        return f"cuts images into several (model.image_processor.{family.image_crops}), which are not packed"
    return "is not in vlm_core/families.py, so it trains on unpacked examples"


def _with_effective_savings(config: Config, chat: ChatModel) -> Config:
    """Turns off packing and the vision cache for a model type without support; warns of settings without effect."""
    possible = {"packing": chat.packs, "vision_cache": chat.caches_features}
    savings = [name for name in possible if getattr(config, name).enabled and not possible[name]]
    if savings:
        reason = "has no vision tower" if chat.packs else unpacked_reason(chat.family)
        logger.warning("%s %s no effect: the model type %s %s", " and ".join(savings),
                       "have" if len(savings) > 1 else "has", chat.family.model_type, reason)  # fmt: skip
        off = {name: getattr(config, name).model_copy(update={"enabled": False}) for name in savings}
        config = config.model_copy(update=off)
        if not chat.packs:
            return config
    if not config.packing.enabled and "max_tokens" in config.packing.model_fields_set:
        logger.warning("packing.max_tokens has no effect: packing.enabled=false")
    if config.packing.enabled and config.step_scheduler.local_batch_size > 1:
        logger.warning("step_scheduler.local_batch_size=%d has no effect: packing fills a forward pass up to "
                       "packing.max_tokens=%d; change that, or set packing.enabled=false",
                       config.step_scheduler.local_batch_size, config.packing.max_tokens)  # fmt: skip
    return config


def _own_collate(config: Config) -> Collate | None:
    """Returns the collate function that the user configured; None: use the family's."""
    target = config.dataloader.collate_fn.target
    if target is None:
        return None
    logger.warning("%s makes the batches: packing, vision_cache, dataset.max_length and dataset.train_on "
                   "have no effect", target)  # fmt: skip
    return load_target("collate_fn", target)
