"""A merged checkpoint is a plain transformers directory that answers like the adapter."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import small_config, tiny_directory
from vlm_core import export
from vlm_core.arguments import export_parser
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import Family
from vlm_core.models.load import load_model
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import load_trained, save_weights


def merge(checkpoint: Path, output: Path) -> None:
    arguments = ["merge", "--checkpoint-path", str(checkpoint), "--output-dir", str(output)]
    export.main(export_parser(None).parse_args(arguments))


def adapter(base: Path, family: Family, directory: Path) -> Path:
    """Writes an adapter that changes the model's answers."""
    adapted = prepare_model(small_config(**{"peft.dim": 4}), base, family, None)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    save_weights(adapted, directory)
    return directory


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.one_family
def test_merged_weights_give_the_adapters_logits(
    chat: ChatModel, conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, base = chat.processor, tiny_directory(chat.family.model_type)
    checkpoint = adapter(base, chat.family, tmp_path / "adapter")
    merge(checkpoint, tmp_path / "merged")
    batch = collate([ConversationDataset(conversations, "validation")[i] for i in (0, 11)], chat)
    expected = logits(load_trained(checkpoint, base, small_config().model), batch)
    merged = logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged"), batch)
    assert (merged - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (logits(load_model(base, small_config().model), batch) - expected).abs().max() > 0.01 * expected.abs().max()
    again = AutoProcessor.from_pretrained(tmp_path / "merged")
    assert again.chat_template == processor.chat_template
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_the_dtype_is_that_of_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    base = shutil.copytree(tiny_directory(family.model_type), tmp_path / "base")
    load_model(base, small_config().model).to(torch.bfloat16).save_pretrained(base)
    merge(adapter(base, family, tmp_path / "adapter"), tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert not list(tmp_path.glob(".merged*"))


def test_a_directory_that_is_not_empty_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        merge(tiny_directory("gemma3"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
