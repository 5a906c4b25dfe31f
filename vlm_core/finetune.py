"""Fine-tunes a model: `python -m vlm_core.finetune --config demo`, or under torchrun on several processes.

Goes on from LATEST where the run directory has one; a finished run ends at once and says so.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from vlm_core.cli import ConfigParser
from vlm_core.config import Config
from vlm_core.data.conversations import ConversationDataset, build_conversations, fetch_splits
from vlm_core.families import family_of
from vlm_core.files import read_json_lines, write_json, write_text
from vlm_core.home import medpix_home, require_writable
from vlm_core.log import configure_logging
from vlm_core.models.fetch import fetch_model
from vlm_core.models.freeze import freeze, frozen_parts, parameter_table, require_trainable
from vlm_core.models.load import device_of, load_adapter_weights, load_model, load_processor, weights_directory
from vlm_core.models.lora import apply_lora
from vlm_core.run_directory import CONFIG, METRICS, RESULT
from vlm_core.training.checkpoint import latest_checkpoint, load_progress, require_compatible
from vlm_core.training.distributed import Ranks, process_group
from vlm_core.training.loop import Trainer, total_steps

logger = logging.getLogger(__name__)


def run_directory(config: Config) -> Path:
    """Returns the directory of a run by hand: the configured one, or the one that bears the recipe's name."""
    return Path(config.checkpoint.checkpoint_dir or medpix_home() / "runs" / config.name).absolute()


def finetune(config: Config, ranks: Ranks, conversations: Path | None = None) -> dict[str, Any]:
    """Trains to the end and returns what `result.json` holds.

    `conversations` is a cache directory that is known to belong to `config`; without one it is found or built.
    Raises ValueError for wrong input, before anything is written into the run directory.
    """
    started = time.monotonic()
    config.accumulation_steps(ranks.world_size)
    directory = run_directory(config)
    require_writable(directory)
    conversations = conversations or build_conversations(fetch_splits(config))[0]
    train = ConversationDataset(conversations, "train")
    checkpoint = latest_checkpoint(directory)
    if checkpoint is not None:
        require_compatible(checkpoint, config)
        if load_progress(checkpoint).step >= total_steps(config, len(train)):
            logger.info("%s is finished at %s; nothing is left to do", directory, checkpoint.name)
            return _result(directory, checkpoint, time.monotonic() - started)
    trainer = _trainer(config, directory, checkpoint, train, ConversationDataset(conversations, "validation"), ranks)
    if ranks.is_main:
        write_text(directory / CONFIG, config.to_yaml())
    trainer.run()
    result = _result(directory, latest_checkpoint(directory), time.monotonic() - started)
    if ranks.is_main:
        write_json(directory / RESULT, result)
    return result


def _trainer(
    config: Config,
    directory: Path,
    checkpoint: Path | None,
    train: ConversationDataset,
    validation: ConversationDataset,
    ranks: Ranks,
) -> Trainer:
    base = fetch_model(config.model)
    family = family_of(base)
    device = device_of(ranks.local_rank)
    torch.manual_seed(config.rng.seed)  # The LoRA matrices are drawn from it, alike on every rank.
    if config.peft is None:
        model: Any = load_model(weights_directory(checkpoint) if checkpoint else base, config.model)
        freeze(model, config.freeze_config, family)
    else:
        model = apply_lora(load_model(base, config.model), config.peft, family, frozen_parts(config.freeze_config))
        if checkpoint:
            load_adapter_weights(model, weights_directory(checkpoint))
    require_trainable(model)
    logger.info("parameters by part of the model:\n%s", parameter_table(model, family))
    trainer = Trainer(
        config, directory, model.to(device), load_processor(base), family, train, validation, ranks, device
    )
    if checkpoint:
        trainer.resume(checkpoint)
    return trainer


def _result(directory: Path, checkpoint: Path | None, seconds: float) -> dict[str, Any]:
    losses = [record["loss"] for record in read_json_lines(directory / METRICS)[0]]
    return {
        "steps": len(losses),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": round(seconds, 2),
        "checkpoint": str(checkpoint) if checkpoint else None,
    }


def main() -> None:
    """Runs the command."""
    parser = ConfigParser(prog="python -m vlm_core.finetune", description=__doc__)
    parser.add_argument("--conversations", type=Path, help="cache directory of the conversations, when it is known")
    options, config = parser.parse_config()
    with process_group() as ranks:
        configure_logging(quiet=not ranks.is_main)
        try:
            finetune(config, ranks, options.conversations)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
