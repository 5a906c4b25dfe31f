"""LoRA on a mixture of experts: what is adapted, what is refused, and that plain peft loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from tests.conftest import tiny_directory
from tests.other_models import directory_of
from vlm_core.config import ModelConfig, PeftConfig
from vlm_core.families import Family, part_of
from vlm_core.models.derived_family import family_of
from vlm_core.models.load import load_model
from vlm_core.models.lora import adapter_sizes, apply_lora, select_experts, select_modules

BASE = ModelConfig(pretrained_model_name_or_path="builtin:tiny-gemma3", torch_dtype="float32")
FROZEN = {"vision_tower", "embeddings"}
MOE = "gemma4_26b"


@pytest.fixture
def family() -> Family:
    return family_of(tiny_directory(MOE))


@pytest.fixture
def model() -> Any:
    return load_model(tiny_directory(MOE), BASE)


@pytest.mark.parametrize(
    ("patterns", "kinds"),
    [
        ({}, {"gate_up_proj", "down_proj"}),
        ({"match_all_linear": True}, {"gate_up_proj", "down_proj"}),
        ({"target_modules": ["*_proj"]}, {"gate_up_proj", "down_proj"}),
        ({"target_modules": ["*.experts.*"]}, {"gate_up_proj", "down_proj"}),
        ({"target_modules": ["*q_proj", "*experts.down_proj"]}, {"down_proj"}),
        ({"exclude_modules": ["*experts*"]}, set()),
        ({"target_modules": ["*q_proj"], "exclude_modules": ["*experts*"]}, set()),
    ],
)
def test_patterns_select_experts(patterns: dict[str, Any], kinds: set[str], model: Any, family: Family) -> None:
    config = PeftConfig(dim=2, **patterns)
    selected = select_experts(model, config, family, FROZEN)
    layers = [f"model.language_model.layers.{i}.experts" for i in range(6)]
    assert set(selected) == {f"{layer}.{kind}" for layer in layers for kind in kinds}
    assert select_experts(model, config, family, FROZEN | {"language_model"}) == []
    sizes = adapter_sizes(model, config, family, FROZEN)
    adapted = apply_lora(model, config, family, FROZEN)
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum(sizes.values()) == sum(trained.values())
    assert {part_of(name.removeprefix("base_model.model."), family) for name in trained} <= {
        "language_model",
        "projector",
    }


def test_experts_that_no_pattern_names_are_an_error(model: Any, family: Family) -> None:
    for config in (PeftConfig(target_modules=["*q_proj"]), PeftConfig(target_modules=["*self_attn*", "*router*"])):
        with pytest.raises(
            ValueError, match=r"match no expert, such as '.*experts\.gate_up_proj': 147,456 of the [\d,]+"
        ):
            select_experts(model, config, family, FROZEN)
    with pytest.raises(ValueError, match="peft has no dropout for experts"):
        select_experts(model, PeftConfig(dropout=0.1), family, FROZEN)
    assert select_modules(model, PeftConfig(target_modules=["*experts*"]), family, FROZEN) == []


def test_a_model_without_experts_has_none() -> None:
    for directory in (tiny_directory("gemma4"), directory_of("idefics3"), directory_of("llava")):
        config = PeftConfig(target_modules=["*q_proj"], dropout=0.1)
        assert select_experts(load_model(directory, BASE), config, family_of(directory), FROZEN) == []


def test_plain_peft_loads_and_merges_adapted_experts(model: Any, family: Family, tmp_path: Path) -> None:
    ours = apply_lora(model, PeftConfig(dim=2), family, FROZEN).eval()
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours.save_pretrained(str(tmp_path))
    batch = {"input_ids": torch.arange(300, 340)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    with torch.no_grad():
        expected = ours(**batch).logits
        base: Any = AutoModelForImageTextToText.from_pretrained(tiny_directory(MOE))
        assert (base(**batch).logits - expected).abs().max() > 0.1
        loaded: Any = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        assert loaded(**batch).logits.equal(expected)
        # Grouped products have no float64. Rounding moves logits by up to 3e-4, the adapter by more than 0.1.
        torch.testing.assert_close(loaded.merge_and_unload()(**batch).logits, expected, rtol=1e-3, atol=1e-3)


def test_matrices_of_experts_are_float32_over_a_bfloat16_model(family: Family) -> None:
    base = BASE.model_copy(update={"torch_dtype": "bfloat16"})
    adapted = apply_lora(load_model(tiny_directory(MOE), base), PeftConfig(dim=2), family, FROZEN)
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
