"""A user's collate function replaces ours, with the guide's labels; labels are not shifted twice."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import small_config
from vlm_core.data.batches import CollatedBatches, PlainMicroBatch
from vlm_core.data.collate import IGNORE_INDEX, collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import GEMMA3
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import FastChat
from vlm_core.models.load import load_processor
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks


def shifted(examples: list[dict[str, Any]], processor: Any) -> dict[str, torch.Tensor]:
    """The guide's labels: the supervised tokens, shifted one position earlier."""
    batch = collate(examples, FastChat(processor, GEMMA3))
    labels = batch["labels"][:, 1:]
    return batch | {"labels": torch.cat([labels, -100 * torch.ones_like(labels[:, :1])], dim=1)}


def masked(examples: list[dict[str, Any]], processor: Any) -> dict[str, torch.Tensor]:
    """The guide's default: all tokens are labels, and a mask selects the supervised ones."""
    batch = collate(examples, FastChat(processor, GEMMA3))
    right = shifted(examples, processor)["labels"]
    labels = batch["input_ids"][:, 1:]
    labels = torch.cat([labels, -100 * torch.ones_like(labels[:, :1])], dim=1)
    return batch | {"labels": labels, "loss_mask": (right != IGNORE_INDEX).long()}


def without_types(examples: list[dict[str, Any]], processor: Any) -> dict[str, torch.Tensor]:
    return {key: value for key, value in shifted(examples, processor).items() if key != "token_type_ids"}


def curve(directory: Path, conversations: Path, **overrides: Any) -> list[float]:
    settings = {"packing.enabled": False, "checkpoint.checkpoint_dir": str(directory)} | overrides
    finetune(small_config(**settings), Ranks(), conversations)
    return [record["loss"] for record in read_json_lines(directory / METRICS)[0]]


@pytest.mark.slow
def test_the_curve_equals_that_of_our_collate_function(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDPIX_TARGETS", __name__)
    expected = curve(tmp_path / "ours", conversations, **{"vision_cache.enabled": False})
    for function in (shifted, masked):
        target = {"dataloader.collate_fn._target_": f"{__name__}.{function.__name__}"}
        with caplog.at_level(logging.WARNING):
            assert curve(tmp_path / function.__name__, conversations, **target) == expected
        assert f"{function.__name__} makes the batches: packing, vision_cache" in caplog.text
    guide = {"dataloader.collate_fn._target_": "nemo_automodel.components.datasets.vlm.collate_fns.default_collate_fn"}
    assert curve(tmp_path / "guide", conversations, **guide) == pytest.approx(expected, rel=1e-6)


def test_a_dropped_key_stops_the_first_step(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPIX_TARGETS", __name__)
    with pytest.raises(ValueError, match="gemma3 lacks token_type_ids; the collate function must return"):
        curve(tmp_path, conversations, **{"dataloader.collate_fn._target_": f"{__name__}.without_types"})


def test_a_batch_that_cannot_be_learned_from_is_refused(conversations: Path, tiny_gemma3: Path) -> None:
    processor, dataset = load_processor(tiny_gemma3), ConversationDataset(conversations, "train")

    def made(change: Any) -> Any:
        function = lambda examples, processor: change(shifted(examples, processor))  # noqa: E731
        return CollatedBatches(dataset, function, processor, 2).batch(PlainMicroBatch([0, 1]))

    with pytest.raises(ValueError, match="returned no labels; it has"):
        made(lambda batch: {"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match="labels of shape .* and input_ids of shape"):
        made(lambda batch: batch | {"labels": batch["labels"][:, :-1]})
    uncounted = CollatedBatches(dataset, shifted, processor, 2).batch(PlainMicroBatch([0], counted=False))
    assert (uncounted["targets"] == IGNORE_INDEX).all()
