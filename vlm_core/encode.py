"""Encodes every image of a dataset once: `python -m vlm_core.encode --config demo`, or under torchrun.

Stores the features of a frozen vision tower in the vision cache, for training and evaluation. Images in the cache are
not encoded again, so a killed job resumes where it stopped.
"""

from vlm_core.arguments import encode_parser, read_config

if __name__ == "__main__":  # before the imports below, which take seconds
    ARGUMENTS = read_config(encode_parser(__doc__), "torch and transformers")
else:
    ARGUMENTS = None

import argparse
import logging
from pathlib import Path

from vlm_core.config import Config
from vlm_core.data.loader import worker_processes
from vlm_core.data.prepare import prepare_conversations
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat
from vlm_core.models.frozen_tower import is_tower_frozen
from vlm_core.models.load import device_of
from vlm_core.models.prepare import prepare_model
from vlm_core.training.distributed import Ranks, command, main_rank_first
from vlm_core.training.setup import unpacked_reason
from vlm_core.training.vision_cache import encode_images

logger = logging.getLogger(__name__)


def encode(config: Config, ranks: Ranks, conversations: Path | None = None) -> None:
    """Fills the vision cache for `config`; logs the reason if there is nothing to cache."""
    if not config.vision_cache.enabled:
        logger.info("vision_cache.enabled=false: no images are encoded in advance")
        return
    with main_rank_first(ranks):
        conversations = conversations or prepare_conversations(config)[0]
        base = fetch_model(config.model)
    chat = load_chat(base, config.model.image_processor.settings)
    if not chat.caches_features:
        reason = "has no vision tower" if chat.packs else unpacked_reason(chat.family)
        logger.info("the model type %s %s: no images are encoded in advance", chat.family.model_type, reason)
        return
    model = prepare_model(config, base, chat.family, None)
    if not is_tower_frozen(model, chat.family):
        logger.info("the vision tower trains, so its features change: no images are encoded in advance")
        return
    decoders = worker_processes(config.dataloader.num_workers, decodes=True)
    encode_images(model, chat, conversations, ranks, device_of(ranks.local_rank), decoders)


def main(options: argparse.Namespace, config: Config) -> None:
    """Runs the command."""
    with command() as ranks:
        encode(config, ranks, options.conversations)


if ARGUMENTS:
    main(*ARGUMENTS)
