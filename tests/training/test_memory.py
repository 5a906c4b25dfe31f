"""The plan counts quantised weights and small states, and says what fits on a card and what needs less memory."""

import dataclasses
import logging
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import small_config, tiny_directory
from vlm_core.config import Config
from vlm_core.families import GEMMA3
from vlm_core.finetune import finetune
from vlm_core.models.freeze import Counts, total
from vlm_core.models.prepare import prepare_model
from vlm_core.models.quantize import quantized_weights
from vlm_core.training.distributed import Ranks
from vlm_core.training.loop import Trainer
from vlm_core.training.memory import RESERVED, ModelSizes, fitting_settings, in_settings, memory_of, savings
from vlm_core.training.plan import planned_sizes

LORA = {"peft.dim": 4, "model.torch_dtype": "bfloat16"}
NF4 = LORA | {"model.quantization": "nf4"}


@pytest.fixture(scope="module")
def tiny() -> ModelSizes:
    return planned_sizes(small_config(**LORA), tiny_directory("gemma3"), GEMMA3)


@pytest.fixture(scope="module")
def large(tiny: ModelSizes) -> ModelSizes:
    """The sizes of a model of four billion weights, with the layers of the tiny one."""
    parts = {"language_model": Counts(15_000_000, 3_200_000_000), "embeddings": Counts(0, 670_000_000)}
    return dataclasses.replace(tiny, parts=parts, quantizable=3_200_000_000, largest=26_000_000)


def settings_of(config: Config, sizes: ModelSizes) -> dict[int, str]:
    """Returns the settings for each card, for forward passes whose activations take 20 GB without checkpointing."""
    tokens = int(20e9 / memory_of(small_config(**LORA), sizes, 1, 1)["activations"])
    found = list(fitting_settings(config, sizes, tokens, longest=400, shares=1))
    assert all(need + RESERVED <= card * 1e9 for card, _, need in found)
    return {card: in_settings(changes) for card, changes, _ in found}


def test_the_planned_sizes_are_those_of_the_model() -> None:
    options = {"peft.use_dora": True, "peft.rank_pattern": {"*q_proj": 2}, "peft.exclude_modules": ["*vis*"]}
    config = small_config(**NF4 | options | {"vision_cache.enabled": False})
    sizes = planned_sizes(config, tiny_directory("gemma3"), GEMMA3)
    unquantized = small_config(**LORA | options | {"vision_cache.enabled": False})
    model = prepare_model(unquantized, tiny_directory("gemma3"), GEMMA3, None)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (True, False)]
    assert list(total(sizes.parts)) == counts
    quantized = quantized_weights(model.unload(), GEMMA3)
    assert sizes.quantizable == sum(quantized) > sizes.largest == max(quantized) > 0


def test_quantised_weights_take_a_quarter_and_8_bit_states_too(large: ModelSizes) -> None:
    kinds = [small_config(**LORA | {"model.quantization": kind}) for kind in ("none", "nf4", "int8")]
    full, nf4, int8 = (memory_of(config, large, 1000, 1) for config in kinds)
    assert full["weights"] == pytest.approx(2 * 3_870_000_000 + 4 * 15_000_000)
    assert full["weights"] - nf4["weights"] == pytest.approx(3_200_000_000 * (2 - 0.51587), rel=1e-3)
    assert full["weights"] - int8["weights"] == pytest.approx(3_200_000_000 * (1 - 0.0039), rel=1e-3)
    assert [kind["copies of weights"] for kind in (nf4, int8)] == [6 * 26_000_000, 16 * 26_000_000]
    assert full.keys() == nf4.keys() - {"copies of weights"}
    assert all(full[key] == nf4[key] for key in full.keys() - {"weights"})
    small = memory_of(small_config(**LORA | {"optimizer._target_": "bitsandbytes.optim.AdamW8bit"}), large, 1000, 1)
    assert full["gradients and optimizer"] == 12 * 15_000_000
    assert small["gradients and optimizer"] == 6 * 15_000_000


def test_a_smaller_card_gets_settings_that_need_less(large: ModelSizes) -> None:
    found = settings_of(small_config(**LORA), large)
    assert found[80] == "as configured"
    assert found[24] == "compute.gradient_checkpointing=true"
    assert found[min(found)].startswith("model.quantization=nf4, compute.gradient_checkpointing=true")
    over_nf4 = settings_of(small_config(**NF4), large)
    assert not any("quantization" in settings for settings in over_nf4.values())
    full = settings_of(small_config(**{"model.torch_dtype": "bfloat16"}), large)
    assert not any("quantization" in settings for settings in full.values())
    assert (
        settings_of(small_config(**LORA), dataclasses.replace(large, parts={"language_model": Counts(0, 10**12)})) == {}
    )


def test_what_saves_most_comes_first(large: ModelSizes) -> None:
    few, many = (savings(small_config(**LORA), large, tokens, 100, 1) for tokens in (1000, 40_000_000))
    assert next(iter(few)) == "model.quantization=nf4"
    assert next(iter(many)) == "compute.gradient_checkpointing=true"
    assert "packing.max_tokens=20000000" in many
    assert list(many.values()) == sorted(many.values(), reverse=True)
    assert "compute.strategy=fsdp2" in savings(small_config(**{"compute.nproc_per_node": 2}), large, 1000, 100, 2)


def test_out_of_memory_names_settings_with_the_plans_numbers(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(Trainer, "run", fail)
    directory = {"checkpoint.checkpoint_dir": str(tmp_path)}
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"out of memory \(CUDA out of memory. Tried to allocate 2.00 GiB.\)") as error:
        finetune(small_config(**directory | {"peft.dim": 4}), Ranks(), conversations)
    for words in (
        r"The plan was \d+ MB: weights ",
        r"compute.gradient_checkpointing=true \(about \d+ MB less\)",
        r"packing.max_tokens=\d+ \(about \d+ MB less\)",
        r"the same command then resumes",
    ):
        assert error.match(words)
    assert re.search(r"fits on      8 GB: as configured \(\d+ MB\)\n            12 GB: as configured", caplog.text)
