"""The plan of a run matches the run; a run that cannot fit is refused, with settings that would fit."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import small_config, tiny_directory
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.families import FAMILIES, Family
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.chat import load_chat
from vlm_core.models.prepare import prepare_model
from vlm_core.run_directory import METRICS
from vlm_core.training.distributed import Ranks
from vlm_core.training.flops import flops_per_token
from vlm_core.training.plan import Plan, plan_run, planned_sizes, require_fit


def planned(family: Family, conversations: Path, **overrides: Any) -> Plan:
    base = tiny_directory(family.model_type)
    tokens = TokenDataset(build_tokens(conversations, load_chat(base)), "train")
    return plan_run(small_config(**overrides), base, tokens, load_chat(base), world_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, {"dim": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "plain"])
def test_the_plan_matches_the_run(
    peft: dict[str, int] | None, packing: bool, family: Family, small_conversations: Path, tmp_path: Path
) -> None:
    settings = {
        "dataset.path_or_dataset": "builtin:phantom?images=12",
        "model.pretrained_model_name_or_path": f"builtin:tiny-{family.model_type}",
        "step_scheduler.max_steps": None,
        "step_scheduler.num_epochs": 1,
        "step_scheduler.global_batch_size": 12,
        "step_scheduler.local_batch_size": 4,
        "peft": peft,
        "packing.enabled": packing,
        "vision_cache.enabled": False,
        "checkpoint.checkpoint_dir": str(tmp_path),
    }
    config = small_config(**settings)
    plan = planned(family, small_conversations, **settings)
    unsaved = config.checkpoint.model_copy(update={"enabled": False})
    finetune(config.model_copy(update={"checkpoint": unsaved}), Ranks(), small_conversations)
    records = read_json_lines(tmp_path / METRICS)[0]
    assert (plan.steps_per_epoch, plan.steps, len(records)) == (9, 9, 9)  # 100 examples
    computed = sum(record["computed_tokens"] for record in records)
    # A packed row has an upper bound only: its questions may start with the same words, and share them.
    assert computed <= plan.tokens_per_epoch <= computed * (1.1 if packing else 1.0)
    model = prepare_model(config, tiny_directory(family.model_type), family, None)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (True, False)]
    assert [plan.trained, plan.frozen] == counts


def test_settings_that_save_memory_change_the_estimate(family: Family, conversations: Path) -> None:
    usual = planned(family, conversations)
    assert (
        planned(family, conversations, **{"compute.gradient_checkpointing": True}).memory["activations"]
        < (usual.memory["activations"])
    )
    assert (
        planned(family, conversations, peft={"dim": 4}).memory["gradients and optimizer"]
        < (usual.memory["gradients and optimizer"])
    )
    assert planned(family, conversations, **{"packing.max_tokens": 200}).largest_batch < usual.largest_batch


# The published sizes of Qwen3-VL 8B and 30B-A3B.
TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
DENSE = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8}
SPARSE = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "text", "parameters", "active"),
    [("qwen3_vl", DENSE, 8_767_123_696, 6.9e9), ("qwen3_vl_moe", SPARSE, 31_070_754_032, 2.8e9)],
)
def test_published_shapes_have_their_parameters(
    model_type: str, text: dict[str, int], parameters: int, active: float, tmp_path: Path
) -> None:
    """A token of the mixture of experts computes as much as one of a model of 3 B parameters."""
    common = {"num_attention_heads": 32, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False}
    vision = TOWER | {"out_hidden_size": text["hidden_size"], "model_type": f"{model_type}_vision"}
    text_config = text | common | {"model_type": f"{model_type}_text"}
    whole = {
        "model_type": model_type,
        "text_config": text_config,
        "vision_config": vision,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    live = {"vision_cache.enabled": False, "freeze_config.freeze_embeddings": False}
    family = FAMILIES[model_type]
    sizes = planned_sizes(small_config(**live), tmp_path, family)
    parts, idle = sizes.parts, sizes.idle
    assert sum(map(sum, parts.values())) == parameters
    assert sum(parts["language_model"]) - sum(idle) == pytest.approx(active, rel=0.03)
    sizes = planned_sizes(small_config(**{"peft.dim": 8, "peft.dropout": 0.0}), tmp_path, family)
    adapted, idle = sizes.parts, sizes.idle
    trained = adapted["language_model"].trainable - idle.trainable
    assert 0 < trained < 0.01 * active
    assert flops_per_token(adapted, idle) == pytest.approx(4 * active, rel=0.03)


# The published sizes of Gemma 4: what differs between E4B, 12B, 26B-A4B and 31B.
BOTH = {"use_bidirectional_attention": "vision", "attention_k_eq_v": True, "hidden_size_per_layer_input": 0}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "head_dim": 72,
          "num_attention_heads": 16, "num_key_value_heads": 16, "standardize": True}  # fmt: skip
GEMMA4_SIZES = {
    "E4B": ("gemma4", {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_kv_shared_layers": 18,
    }, {}, {}, 7_941_100_832, 3.97e9),
    "12B": ("gemma4_unified", {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    }, {}, {}, 11_959_730_176, 10.9e9),
    "26B-A4B": ("gemma4", {
        "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128,
        "top_k_experts": 8, "moe_intermediate_size": 704,
    } | BOTH, SO400M, None, 25_805_933_872, 3.1e9),
    "31B": ("gemma4", {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60, "num_attention_heads": 32,
        "num_key_value_heads": 16, "num_global_key_value_heads": 4,
    } | BOTH, SO400M, None, 31_273_086_512, 29.3e9),
}  # fmt: skip


@pytest.mark.parametrize("size", GEMMA4_SIZES)
def test_published_sizes_of_gemma4_have_their_parameters(size: str, tmp_path: Path) -> None:
    """Tables with a row per token are no part of what computes: 2.8 B of E4B's parameters are per-layer embeddings."""
    model_type, text, vision, audio, parameters, active = GEMMA4_SIZES[size]
    whole = {"model_type": model_type, "text_config": text, "vision_config": vision, "audio_config": audio}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    family = FAMILIES[model_type]
    sizes = planned_sizes(small_config(**{"vision_cache.enabled": False}), tmp_path, family)
    parts, idle = sizes.parts, sizes.idle
    assert sum(map(sum, parts.values())) == parameters
    assert "other" not in parts
    assert sum(parts["language_model"]) - sum(idle) == pytest.approx(active, rel=0.02)
    cached = planned_sizes(small_config(), tmp_path, family).parts
    assert ("vision_tower" in parts, "vision_tower" in cached) == (size != "12B", False)
    adapted = planned_sizes(small_config(**{"peft.dim": 8, "peft.dropout": 0.0}), tmp_path, family)
    assert flops_per_token(adapted.parts, adapted.idle) == pytest.approx(4 * active, rel=0.03)


def test_a_run_that_cannot_fit_is_refused_with_settings_that_would(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "total")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(10_000_000))
    with pytest.raises(ValueError, match=r"needs about \d+ MB and cpu has 10 MB; to need less, use compute.gradient_"):
        finetune(small_config(**{"checkpoint.checkpoint_dir": str(tmp_path)}), Ranks(), conversations)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_may_not_fit_warns(
    conversations: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(FAMILIES["gemma3"], conversations)
    memory = namedtuple("memory", "total")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(plan.bytes_needed / 1.2))
    require_fit(plan, small_config(), torch.device("cpu"))
    assert "it may not fit" in caplog.text


@pytest.mark.slow
def test_the_command_prints_the_plan_and_trains_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlm_core.finetune", "--config", "demo", "--plan"]
    command += ["--dataset.path_or_dataset", "builtin:phantom?images=40", "--checkpoint.checkpoint_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for words in ("examples    340: 4 steps per epoch, 24 in total", "parameters  ", "memory      about ", "on H100"):
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
