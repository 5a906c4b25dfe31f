"""Fine-tunes a model: `python -m vlm_core.finetune --config demo`, or under torchrun on several processes.

Goes on from LATEST where the run directory has one; a finished run ends at once and says so.
"""

from vlm_core.arguments import check_arguments, finetune_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    check_arguments(finetune_parser(__doc__), "torch and transformers")

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from vlm_core.cache import locked, read_manifest
from vlm_core.config import Config
from vlm_core.data.batches import CollatedBatches, ImageInputs, build_batches, image_inputs_of
from vlm_core.data.conversation_cache import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import SPLITS, TRAIN
from vlm_core.data.splits import VALIDATION as VALIDATION_SPLIT
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.data.tokenization import require_template
from vlm_core.families import Family
from vlm_core.files import read_json_lines, write_json, write_text
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.samples import sampler
from vlm_core.home import require_writable
from vlm_core.models.base_model import fetch_model
from vlm_core.models.derived_family import family_of
from vlm_core.models.freeze import count_parameters, parameter_table, parameter_tree
from vlm_core.models.frozen_tower import DetachedTower, is_tower_frozen
from vlm_core.models.load import device_of, load_processor
from vlm_core.models.prepare import compute_dtype, prepare_model
from vlm_core.pages.plots import draw_losses
from vlm_core.run_directory import (
    CONFIG,
    LOSS_PLOT,
    LOWEST_VAL,
    METRICS,
    PARAMETERS,
    RESULT,
    SAMPLES,
    VALIDATION,
    as_it_began,
    checkpoint_to_resume,
    require_compatible,
    run_root,
)
from vlm_core.targets import is_built_in, load_target
from vlm_core.training.checkpoint import load_progress
from vlm_core.training.distributed import Ranks, command, main_rank_first, same_as_main
from vlm_core.training.loop import Preempted, Trainer
from vlm_core.training.optim import optimizer_class
from vlm_core.training.plan import plan_run, require_fit
from vlm_core.training.run_length import length_warnings, total_steps, with_run_length
from vlm_core.training.vision_cache import encode_images

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: give the same command again


def run_directory(config: Config) -> Path:
    """Returns the directory of a run by hand: the configured one, or the one that bears the recipe's name."""
    return Path(config.checkpoint.checkpoint_dir or run_root() / config.name).absolute()


def finetune(
    config: Config, ranks: Ranks, conversations: Path | None = None, *, plan_only: bool = False
) -> dict[str, Any]:
    """Trains to the end and returns what `result.json` holds; nothing with `plan_only`, which says what it would take.

    `conversations` is a cache directory that is known to belong to `config`; without one it is found or built.
    Raises ValueError for wrong input, before anything is written into the run directory.
    """
    config.require_divisible_batch(ranks.world_size)
    collate = _own_collate(config)
    _require_kernels(config, device_of(ranks.local_rank))
    optimizer_class(config.optimizer.target)
    if config.peft is not None and config.checkpoint.model_save_format == "torch_save":
        logger.warning("checkpoint.model_save_format=torch_save has no effect: an adapter is saved in safetensors")
    directory = run_directory(config)
    require_writable(directory)
    with main_rank_first(ranks):
        conversations = conversations or prepare_conversations(config)[0]
        base = fetch_model(config.model)
        processor, family = load_processor(base), family_of(base)
        if collate is None:
            config = _with_what_has_an_effect(config, family)
        # Before the model is loaded: a template that is not the family's, or too long examples, end the run here.
        tokens = _read_tokens(config, conversations, processor, family, collate)
    # The main rank's: on a shared file system, another host may still see where a pointer led a minute ago.
    checkpoint = same_as_main(checkpoint_to_resume(directory, config.checkpoint.restore_from))
    if checkpoint is not None:
        config = as_it_began(config, checkpoint)
    config = with_run_length(config, read_manifest(conversations)["rows"][TRAIN], ranks.world_size)
    if checkpoint is not None:
        require_compatible(checkpoint, config)
        progress, patience = load_progress(checkpoint), config.step_scheduler.early_stop_patience
        if progress.step >= total_steps(config, len(tokens[TRAIN])) or progress.is_exhausted(patience):
            logger.info("%s is finished at %s; nothing is left to do", directory, checkpoint.name)
            return _write_result(directory, _outcome(directory, config), progress.step, ranks)
    if collate is None:
        plan = plan_run(config, base, tokens[TRAIN], family, ranks.world_size)
        logger.info("the plan of this run:\n%s", plan)
        require_fit(plan, config, device_of(ranks.local_rank))
    else:
        logger.info("no plan: what %s makes of the data is not known", config.dataloader.collate_fn.target)
    for warning in length_warnings(config, len(tokens[TRAIN])):
        logger.warning("%s", warning)
    if plan_only:
        return {}
    trainer = _trainer(config, directory, base, processor, checkpoint, conversations, tokens, collate, ranks)
    with _sole_writer(directory) if ranks.is_main else nullcontext():
        if ranks.is_main:
            write_text(directory / CONFIG, config.to_yaml())
            write_json(directory / PARAMETERS, parameter_tree(trainer.parameters))
            if config.wandb:
                by_hand = f"python -m tasks.trackers.wandb_run --follow {directory}"
                logger.info("Weights & Biases: the flow sends this run; to send it by hand: %s", by_hand)
        trainer.run()
        return _write_result(directory, _outcome(directory, config), trainer.progress.step, ranks)


def _require_kernels(config: Config, device: torch.device) -> None:
    """Raises ValueError for a kernel that is not installed, or does not run on a CPU."""
    if device.type == "cpu" and config.model.attn_implementation == "flex_attention":
        raise ValueError("model.attn_implementation=flex_attention has no backward pass on a CPU; take sdpa there")
    if device.type == "cpu" and config.loss_fn.is_fused:
        raise ValueError(f"loss_fn._target_={config.loss_fn.target} needs a GPU; leave it out on a CPU")
    if config.loss_fn.is_fused and find_spec("liger_kernel") is None:
        raise ValueError(
            f"loss_fn._target_={config.loss_fn.target} needs pip install 'medpix-finetune[liger]'; or leave it out"
        )


def _with_what_has_an_effect(config: Config, family: Family) -> Config:
    """Returns `config` without what a family without a row cannot do; names the settings that have no effect."""
    savings = [name for name in ("packing", "vision_cache") if getattr(config, name).enabled]
    if family.plain_only and savings:
        logger.warning("%s have no effect: the model type %s has no row in vlm_core/families.py, so that it is "
                       "trained on plain rows", " and ".join(savings), family.model_type)  # fmt: skip
        off = {name: getattr(config, name).model_copy(update={"enabled": False}) for name in savings}
        return config.model_copy(update=off)
    if not config.packing.enabled and "max_tokens" in config.packing.model_fields_set:
        logger.warning("packing.max_tokens has no effect: packing.enabled=false")
    if config.packing.enabled and config.step_scheduler.local_batch_size > 1:
        logger.warning("step_scheduler.local_batch_size=%d has no effect: packing fills a forward pass up to "
                       "packing.max_tokens=%d; change that, or set packing.enabled=false",
                       config.step_scheduler.local_batch_size, config.packing.max_tokens)  # fmt: skip
    return config


def _outcome(directory: Path, config: Config) -> Path | None:
    """Returns the checkpoint that a finished run is about: the last one, or the best where it stopped early."""
    last = checkpoint_to_resume(directory, None)
    if last and load_progress(last).is_exhausted(config.step_scheduler.early_stop_patience):
        return checkpoint_to_resume(directory, LOWEST_VAL)
    return last


@contextmanager
def _sole_writer(directory: Path) -> Iterator[None]:
    """Holds the run directory's lock; raises ValueError where another run holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory / ".lock", timeout=0):
            for rubbish in directory.glob(".epoch_*/"):  # left by a run that was killed while it saved
                shutil.rmtree(rubbish)
            yield
    except Timeout:
        raise ValueError(f"another run is writing to {directory}; wait for it, or give another directory") from None


def _read_tokens(
    config: Config, conversations: Path, processor: Any, family: Family, collate: Callable[..., Any] | None
) -> dict[str, TokenDataset]:
    """Returns the token ids of both splits; raises ValueError where too many examples are longer than allowed.

    A collate function of the user's reads all examples, whatever their length here.
    """
    require_template(processor, family)
    directory, dataset = build_tokens(conversations, processor, family), config.dataset
    last_only = dataset.train_on == "last_answer"
    longest = None if collate else dataset.max_length
    found = {split: TokenDataset(directory, split, longest, last_answer_only=last_only) for split in SPLITS}
    for split, tokens in found.items():
        left_out, rows = len(tokens.too_long), ConversationDataset(conversations, split).conversations
        if not left_out:
            continue
        first = ", ".join(rows[int(row)]["example_id"] for row in tokens.too_long[:3])
        said = f"{left_out} of {len(rows)} examples of {split} are longer than dataset.max_length={dataset.max_length}"
        if left_out > dataset.max_reject_share * len(rows) or left_out == len(rows):
            raise ValueError(
                f"{said} ({first}), and dataset.max_reject_share={dataset.max_reject_share} allows fewer: raise either"
            )
        logger.warning("%s and left out: %s", said, first)
    return found


def _own_collate(config: Config) -> Callable[..., Any] | None:
    """Returns the user's collate function, None for the family's own."""
    target = config.dataloader.collate_fn.target
    if target is None or is_built_in("collate_fn", target):
        return None
    logger.warning("%s makes the batches: packing, vision_cache, dataset.max_length and dataset.train_on "
                   "have no effect", target)  # fmt: skip
    return load_target("collate_fn", target)


def _trainer(
    config: Config,
    directory: Path,
    base: Path,
    processor: Any,
    checkpoint: Path | None,
    conversations: Path,
    tokens: dict[str, TokenDataset],
    collate: Callable[..., Any] | None,
    ranks: Ranks,
) -> Trainer:
    family, device = family_of(base), device_of(ranks.local_rank)
    model = prepare_model(config, base, family, checkpoint)
    parameters = count_parameters(model, family)  # with the vision tower, which may leave the model below
    logger.info("parameters by part of the model:\n%s", parameter_table(parameters))
    images: ImageInputs = image_inputs_of(conversations, processor, family)
    whole_model: Callable[[], AbstractContextManager[None]] = nullcontext
    if collate is None and config.vision_cache.enabled and is_tower_frozen(model, family):
        images = encode_images(model, processor, family, conversations, ranks, device)
        detached = DetachedTower(model, family)
        if config.peft is None:  # A full checkpoint has the tower too; an adapter does without, and so do we.
            whole_model = detached.attached
    train, validation = (
        build_batches(config, tokens[split], images, processor, family)
        if collate is None
        else CollatedBatches(
            ConversationDataset(conversations, split), collate, processor, config.step_scheduler.local_batch_size
        )
        for split in SPLITS
    )
    trainer = Trainer(
        config=config,
        directory=directory,
        model=model,
        processor=processor,
        family=family,
        train=train,
        validation=validation,
        dataset_fingerprint=read_manifest(conversations)["fingerprint"],
        parameters=parameters,
        ranks=ranks,
        device=device,
        compute_dtype=compute_dtype(config.model, base),
        whole_model=whole_model,
    )
    answerer = Answerer(trainer.model, processor, family)
    shown = tokens[VALIDATION_SPLIT]
    trainer.after_validation = sampler(
        answerer, conversations, shown, images, directory / SAMPLES, writes=ranks.is_main
    )
    if checkpoint:
        trainer.resume(checkpoint)
    return trainer


def _write_result(directory: Path, checkpoint: Path | None, steps: int, ranks: Ranks) -> dict[str, Any]:
    records = read_json_lines(directory / METRICS)[0]
    losses = [record["loss"] for record in records]
    result = {
        "steps": steps,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": records[-1]["elapsed_seconds"] if records else 0.0,  # over all starts of the run
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    if ranks.is_main:
        draw_losses(records, read_json_lines(directory / VALIDATION)[0], directory / LOSS_PLOT)
        write_json(directory / RESULT, result)
    return result


def main() -> None:
    """Runs the command."""
    options, config = finetune_parser(__doc__).parse_config()
    with command() as ranks:
        try:
            finetune(config, ranks, options.conversations, plan_only=options.plan)
        except Preempted as preempted:
            logger.warning("%s", preempted)
            raise SystemExit(EXIT_PREEMPTED) from None


if __name__ == "__main__":
    main()
