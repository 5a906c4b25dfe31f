"""Gemma 3n with the published vision tower (294 M parameters) and a tiny language model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3nForConditionalGeneration

from tests.conftest import small_config, tiny_directory
from vlm_core.config import FreezeConfig
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import GEMMA3N, part_of
from vlm_core.models.chat import FastChat
from vlm_core.models.freeze import freeze, frozen_parts
from vlm_core.models.load import load_processor
from vlm_core.training.loss import TokenLoss
from vlm_core.training.optim import build_optimizer

pytestmark = pytest.mark.slow


def test_a_step_with_the_published_tower(conversations: Path) -> None:
    directory = tiny_directory("gemma3n")
    config: Any = AutoConfig.from_pretrained(directory)
    config.vision_config.architecture, config.vision_config.model_args = "mobilenetv5_300m_enc", None
    config.vision_config.hidden_size = 2048
    config.vision_soft_tokens_per_image = 256
    torch.manual_seed(0)
    model = Gemma3nForConditionalGeneration(config)
    processor: Any = load_processor(directory)
    processor.image_seq_length = 256
    tokenizer = processor.tokenizer
    image_tokens = tokenizer.image_token * processor.image_seq_length
    processor.full_image_sequence = f"\n\n{tokenizer.boi_token}{image_tokens}{tokenizer.eoi_token}\n\n"
    processor.image_processor.size = {"height": 256, "width": 256}  # 768 in the published checkpoints: slow here
    chat = FastChat(processor, GEMMA3N)
    freeze(model, frozen_parts(FreezeConfig(), GEMMA3N), GEMMA3N)
    assert sum(p.numel() for p in model.model.vision_tower.parameters()) > 290e6
    batch = collate([ConversationDataset(conversations, "train")[0]], chat)
    optimizer = build_optimizer(model, small_config().optimizer)
    losses = []
    for _ in range(3):
        loss = TokenLoss(model, chat)(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {part_of(n, GEMMA3N) for n, p in model.named_parameters() if p.requires_grad} == {
        "language_model",
        "projector",
    }
