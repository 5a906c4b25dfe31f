"""Fetching, freezing and adapting a base model."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.conftest import small_config, tiny_directory
from tests.more_models import more_directory
from vlm_core.config import FreezeConfig, ModelConfig, PeftConfig
from vlm_core.data.collate import collate
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.families import FAMILIES, GEMMA3, Family, part_of
from vlm_core.models.base_model import fetch_model
from vlm_core.models.chat import load_chat
from vlm_core.models.derived_family import family_of
from vlm_core.models.freeze import count_parameters, freeze, frozen_parts, parameter_table, require_trainable
from vlm_core.models.load import load_model
from vlm_core.models.lora import apply_lora, select_modules
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import load_trained, save_weights
from vlm_core.recipe import load_config

GUIDE_EXCLUDES = ["*vision_tower*", "*vision*", "*visual*", "*audio*", "*image_encoder*", "*lm_head*"]

NO_EFFECT = "freeze_projector=false has no effect: LoRA adapts no module of this part"
FROZEN = frozen_parts(FreezeConfig(), GEMMA3)


def model_of(family: Family) -> Any:
    directory = tiny_directory(family.model_type)
    config = ModelConfig(pretrained_model_name_or_path=str(directory), torch_dtype="float32")
    return load_model(directory, config)


@pytest.fixture
def copy(tiny_gemma3: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_gemma3, tmp_path / "model"))


def fetch(name: Any) -> Path:
    return fetch_model(ModelConfig(pretrained_model_name_or_path=str(name)))


def test_a_directory_without_a_processor_is_refused(copy: Path) -> None:
    (copy / "processor_config.json").unlink()
    (copy / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no processor .* processor.save_pretrained"):
        fetch(copy)


def test_other_wrong_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot download the model 'google/gemma-3-4b-it'"):
        fetch("google/gemma-3-4b-it")
    with pytest.raises(ValueError, match="no model 'nothing': neither a directory"):
        fetch("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        fetch(tmp_path / "empty")


def test_every_parameter_belongs_to_a_part(family: Family) -> None:
    assert {part_of(name, family) for name, _ in model_of(family).named_parameters()} <= set(family.parts)


@pytest.mark.parametrize("part", ["embeddings", "vision_tower", "audio_tower", "language_model"])
def test_each_setting_freezes_only_its_part(family: Family, part: str) -> None:
    if part not in family.parts:
        pytest.skip(f"{family.model_type} has no {part}")
    # No dataset has audio, so the audio tower is always frozen.
    everything_trains = {name: name == "freeze_audio_tower" for name in FreezeConfig.model_fields}
    config = FreezeConfig(**everything_trains | {f"freeze_{part}": True})
    model = model_of(family)
    freeze(model, frozen_parts(config, family), family)
    frozen = {part_of(name, family) for name, p in model.named_parameters() if not p.requires_grad}
    trained = {part_of(name, family) for name, p in model.named_parameters() if p.requires_grad}
    expected = {part, "audio_tower"} & set(family.parts)
    assert (frozen, trained) == (expected, set(family.parts) - expected)


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v"])
def test_a_projector_inside_a_tower_trains_or_not(name: str) -> None:
    directory = more_directory(name)
    family, model = family_of(directory), load_model(directory, small_config().model)
    freeze(model, frozen_parts(FreezeConfig(freeze_projector=False), family), family)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "visual" in name}
    assert trained == {name for name, _ in model.named_parameters() if "visual.merger" in name} != set()
    freeze(model, frozen_parts(FreezeConfig(freeze_projector=True), family), family)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "visual" in name)


@pytest.mark.parametrize(
    ("name", "freezes", "excluded", "warns"),
    [
        ("gemma3", False, [], True),  # its projector is a matrix without a linear module
        ("gemma3", True, [], False),
        ("qwen2_5_vl", False, [], False),
        ("qwen2_5_vl", False, ["*visual*"], True),
    ],
)
def test_lora_that_leaves_out_a_part_says_so(
    name: str, freezes: bool, excluded: list[str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"peft.dim": 4, "peft.exclude_modules": excluded, "freeze_config.freeze_projector": freezes}
    settings |= {"freeze_config.freeze_vision_tower": False, "freeze_config.freeze_embeddings": True}
    prepare_model(small_config(**settings), tiny_directory(name), FAMILIES[name], None)
    assert (NO_EFFECT in caplog.text) is warns
    assert ("freeze_vision_tower=false has no effect" in caplog.text) is ("*visual*" in excluded)
    assert "freeze_language_model" not in caplog.text
    assert "freeze_embeddings" not in caplog.text


def test_a_users_recipe_that_leaves_out_the_projector_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The recipe does not mention the projector, which trains by default: LoRA cannot adapt Gemma 3's."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base_recipe: demo\npeft: {dim: 4}\nfreeze_config: {freeze_vision_tower: false}\n")
    prepare_model(load_config(str(recipe), {}), tiny_directory("gemma3"), GEMMA3, None)
    assert NO_EFFECT in caplog.text
    assert "freeze_vision_tower" not in caplog.text


def test_an_audio_tower_cannot_be_trained_without_audio() -> None:
    with pytest.raises(ValueError, match="no example has audio"):
        frozen_parts(FreezeConfig(freeze_audio_tower=False), FAMILIES["gemma3n"])


def test_nothing_to_train_is_an_error() -> None:
    model = model_of(GEMMA3)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        require_trainable(model)


def test_the_table_adds_up() -> None:
    model = model_of(GEMMA3)
    freeze(model, FROZEN, GEMMA3)
    parts = count_parameters(model, GEMMA3)
    assert {part for part, counts in parts.items() if counts.trainable} == set(GEMMA3.parts) - FROZEN
    total = parameter_table(parts).splitlines()[-1].split()
    assert sum(int(number.replace(",", "")) for number in total[1:]) == sum(p.numel() for p in model.parameters())


def test_the_guides_patterns_adapt_only_the_language_model(family: Family) -> None:
    config = PeftConfig(exclude_modules=GUIDE_EXCLUDES)
    names = select_modules(model_of(family), config, family, FROZEN)
    assert names
    assert {part_of(name, family) for name in names} == {"language_model"}


def test_wildcards_match_full_names(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(GEMMA3)
    names = select_modules(model, PeftConfig(target_modules=["*.q_proj"], exclude_modules=["*vision*"]), GEMMA3, set())
    assert names == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(len(names))]
    with caplog.at_level(logging.WARNING):
        select_modules(model, PeftConfig(target_modules=["*.q_proj"], exclude_modules=["*viison*"]), GEMMA3, set())
    assert "'*viison*' matches no linear module" in caplog.text
    with pytest.raises(ValueError, match="write '\\*q_proj' and not 'q_proj'"):
        select_modules(model, PeftConfig(target_modules=["q_proj"]), GEMMA3, set())


@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_adapter_loads_in_plain_peft_with_identical_logits(name: str, conversations: Path, tmp_path: Path) -> None:
    family, base = FAMILIES[name], tiny_directory(name)
    model = apply_lora(model_of(family), PeftConfig(dim=4), family, FROZEN)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)  # LoRA starts at zero: any adapter would load "identically"
    save_weights(model, tmp_path / "adapter")
    example = ConversationDataset(conversations, "train")[0]
    batch = collate([example], load_chat(base))
    del batch["labels"]
    with torch.no_grad():
        ours = model.eval()(**batch).logits
        plain = PeftModel.from_pretrained(model_of(family), tmp_path / "adapter").eval()(**batch).logits
        config = ModelConfig(pretrained_model_name_or_path=str(base), torch_dtype="float32")
        again = load_trained(tmp_path / "adapter", base, config).eval()(**batch).logits
        untrained = model_of(family).eval()(**batch).logits
    assert ours.equal(plain)
    assert ours.equal(again)
    assert not torch.allclose(ours, untrained)


def test_an_adapter_names_a_hub_model_by_its_id(tmp_path: Path, tiny_gemma3: Path) -> None:
    config = small_config(**{"model.pretrained_model_name_or_path": "google/gemma-3-4b-it"}).model
    model = apply_lora(load_model(tiny_gemma3, config), PeftConfig(), GEMMA3, FROZEN)
    save_weights(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "google/gemma-3-4b-it"
