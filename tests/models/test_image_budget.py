"""`model.image_processor`: how many tokens an image gets, in every part of the project."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from tests.conftest import noise, small_config, tiny_directory
from vlm_core.config import ModelConfig
from vlm_core.data.collate import collate
from vlm_core.data.conversation import answer_turn, question_turn
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.export import merge
from vlm_core.models.chat import load_chat
from vlm_core.models.frozen_tower import tower_fingerprint
from vlm_core.models.load import load_model
from vlm_core.models.model_reference import ModelFiles, find_model
from vlm_core.training.distributed import Ranks
from vlm_core.training.plan import tokens_of_images
from vlm_core.training.setup import gather

WIDE = (600, 200)
PAN_AND_SCAN = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}


@pytest.mark.parametrize(
    ("name", "settings", "tokens"),
    [
        ("gemma4", {}, 56),
        ("gemma4", {"max_soft_tokens": 140}, 120),
        ("gemma4_unified", {"max_soft_tokens": 280}, 252),
        ("qwen2_5_vl", {}, 12),
        ("qwen2_5_vl", {"max_pixels": 5000}, 4),
        ("qwen2_5_vl", {"min_pixels": 10000, "max_pixels": 20000}, 16),
        ("qwen2_5_vl", {"size": {"shortest_edge": 3136, "longest_edge": 6300}}, 4),
        ("gemma3", {"do_pan_and_scan": False}, 16),
        ("gemma3", PAN_AND_SCAN, 64),
    ],
)
def test_an_image_has_as_many_tokens_as_the_processor_writes(name: str, settings: dict[str, Any], tokens: int) -> None:
    chat, usual = load_chat(tiny_directory(name), settings), load_chat(tiny_directory(name))
    conversation = [question_turn("What is shown?", [noise(WIDE)]), answer_turn("A mass.")]
    made = chat.processor.apply_chat_template(conversation[:1], tokenize=True, return_dict=True, return_tensors="pt")
    batch = collate([{"conversation": conversation}], chat)
    (marked,) = chat.token_types(made["input_ids"]).values()
    assert int(marked.sum()) == chat.image_tokens(WIDE) == tokens
    assert chat.tokenize(conversation).input_ids[: marked.shape[1]] == made["input_ids"][0].tolist()
    assert made["pixel_values"].equal(batch["pixel_values"])
    assert chat.packs == (settings != PAN_AND_SCAN)
    changed = any(settings.values())
    assert (chat.fingerprint() != usual.fingerprint()) == changed
    if changed and chat.caches_features:
        model = load_model(tiny_directory(name), small_config().model)
        assert tower_fingerprint(model, chat) != tower_fingerprint(model, usual)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gemma4", {"max_soft_tokens": 100}, r"max_soft_tokens.*must be one of \(70, 140"),
        ("gemma4", {"max_pixels": 5000}, "Gemma4ImageProcessor cannot change that; it has max_soft_tokens$"),
        ("gemma4", {"patch_size": 8}, "image_processor.patch_size: Gemma4ImageProcessor cannot change that"),
        ("gemma3", {"size": {"height": 28, "width": 28}}, "takes images of the size that its tower was trained with"),
        ("gemma3", {"max_soft_token": 70}, "max_soft_token: Gemma3ImageProcessor cannot change that; it has do_pan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_chat(tiny_directory(name), settings)


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="min_pixels=10 is more than max_pixels=5"):
        small_config(**{"model.image_processor.min_pixels": 10, "model.image_processor.max_pixels": 5})


def config_of(name: str, **settings: Any) -> Any:
    own = {f"model.image_processor.{key}": value for key, value in settings.items()}
    return small_config(**{"model.pretrained_model_name_or_path": f"builtin:tiny-{name}"} | own)


def test_a_run_and_its_plan_have_the_budget(conversations: Path, tmp_path: Path) -> None:
    inputs = gather(config_of("gemma4", max_soft_tokens=140), tmp_path / "run", Ranks(), conversations)
    usual = load_chat(tiny_directory("gemma4"))
    counts = tokens_of_images(inputs.train, inputs.chat)
    assert counts == (inputs.chat.image_tokens((56, 56)),) * 2 == (121, 121)
    assert tokens_of_images(TokenDataset(build_tokens(conversations, usual), "train"), usual) == (64, 64)


def test_crops_train_unpacked_and_the_reason_is_said(
    conversations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = gather(config_of("gemma3", **PAN_AND_SCAN), tmp_path / "run", Ranks(), conversations)
    assert not inputs.config.packing.enabled
    assert (
        "gemma3 cuts images into several (model.image_processor.do_pan_and_scan), which are not packed" in caplog.text
    )


def test_a_model_keeps_its_budget(tmp_path: Path) -> None:
    """In a run's directory, in a registered version, and in an exported model."""
    config = config_of("gemma4", max_soft_tokens=140).model
    base = tiny_directory("gemma4")
    registered = ModelConfig(**json.loads(config.model_dump_json()))
    assert registered == config
    files = find_model(None, registered)
    assert files.chat.image_tokens((56, 56)) == 121
    merge(ModelFiles(base, base, config), tmp_path / "exported")
    exported = AutoProcessor.from_pretrained(tmp_path / "exported")
    assert exported.image_processor.max_soft_tokens == 140
    assert find_model(str(tmp_path / "exported")).chat.image_tokens((56, 56)) == 121
    assert torch.equal(
        files.chat.image_inputs([[noise(WIDE)]])["pixel_values"],
        exported.image_processor([noise(WIDE)], return_tensors="pt")["pixel_values"],
    )
