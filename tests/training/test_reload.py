"""Plain transformers loads what training saved, with equal logits, in each format and family.

Adapters in plain peft are in tests/models/test_prepare.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_core.finetune
from tests.conftest import small_config, tiny_directory
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import Family
from vlm_core.models.chat import FastChat
from vlm_core.run_directory import CONSOLIDATED
from vlm_core.training.distributed import Ranks
from vlm_core.training.loop import Trainer


def logits(model: Any, chat: ChatModel, conversations: Path) -> torch.Tensor:
    batch = collate([ConversationDataset(conversations, "train")[0]], chat)
    del batch["labels"]
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.slow
@pytest.mark.parametrize("save_format", ["safetensors", "torch_save"])
def test_plain_transformers_loads_what_was_trained(
    save_format: str, family: Family, conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: list[torch.Tensor] = []

    class Observed(Trainer):
        def run(self) -> None:
            super().run()
            with self.full_model():
                live.append(logits(self.model, self.chat, conversations))

    monkeypatch.setattr("vlm_core.training.setup.Trainer", Observed)
    settings = {
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family.model_type}",
        "checkpoint.checkpoint_dir": str(tmp_path),
        "checkpoint.model_save_format": save_format,
        "lr_scheduler.lr_warmup_steps": 0,
    }
    result = vlm_core.finetune.finetune(small_config(**settings), Ranks(), conversations)
    directory = Path(result["checkpoint"]) / "model" / (CONSOLIDATED if save_format == "torch_save" else "")
    chat = FastChat(AutoProcessor.from_pretrained(directory), family)
    plain = AutoModelForImageTextToText.from_pretrained(directory)
    assert logits(plain, chat, conversations).equal(live[0])
    base = AutoModelForImageTextToText.from_pretrained(tiny_directory(family.model_type))
    assert not torch.allclose(logits(base, chat, conversations), live[0])  # the model has learnt something
