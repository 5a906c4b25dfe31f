"""Prints what the plan says of the recipes for one card: the tables of docs/one-card.md.

Run `python -m deployments.one_card`. It needs no weights and no network: the sizes below are those of the models'
published sizes, as far as they determine memory. Those of Gemma 4 and Qwen3-VL are typed from pages about them.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.scaling import GEMMA3_4B
from vlm_core.config import Config
from vlm_core.families import FAMILIES, Family
from vlm_core.models.derived_family import empty_model, parts_of
from vlm_core.recipe import load_config
from vlm_core.training.memory import CARDS, ModelSizes, fitting_settings, memory_of
from vlm_core.training.plan import planned_sizes

GEMMA4_E4B = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 42,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "num_kv_shared_layers": 18,
    },
    "vision_config": {"model_type": "gemma4_vision"},
    "audio_config": {"model_type": "gemma4_audio"},
}
GEMMA4_31B = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
        "head_dim": 256,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 72,
    },
    "audio_config": None,
}
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "vision_config": {"model_type": "qwen3_vl_vision", "out_hidden_size": 4096},
    "tie_word_embeddings": False,
}
RECIPES: dict[str, dict[str, Any]] = {
    "gemma3_4b_qlora": GEMMA3_4B,
    "medgemma_1_5_4b_qlora": GEMMA3_4B,
    "gemma4_e4b_qlora": GEMMA4_E4B,
    "qwen3_vl_8b_qlora": QWEN3_VL_8B,
    "gemma4_31b_qlora": GEMMA4_31B,
}
LONGEST = 400  # tokens of the longest example of MedPix-VQA with an image of 256 tokens
UNQUANTIZED = {"model": {"quantization": "none"}, "compute": {"gradient_checkpointing": False}}


def sizes_of(config: Config, architecture: dict[str, Any]) -> ModelSizes:
    """Returns the sizes of the model with the published config `architecture` in the run of `config`."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(architecture))
        return planned_sizes(config, Path(directory), _family(Path(directory), architecture["model_type"]))


def _family(directory: Path, model_type: str) -> Family:
    """Returns the family of a model, without its processor."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    parts = parts_of(empty_model(directory))
    return Family(model_type=model_type, end_of_turn="", image_token="", parts=parts, required_keys=frozenset(),
                  vision_tower=parts["vision_tower"][0])  # fmt: skip


def _short(changes: Mapping[str, Any]) -> str:
    """Returns settings in words: nf4, checkpointing."""
    words = {"model.quantization": "nf4", "compute.gradient_checkpointing": "checkpointing"}
    return ", ".join(words.get(key, f"{key}={value}") for key, value in changes.items()) or "as configured"


def rows(recipe: str) -> tuple[str, str]:
    """Returns the rows of a recipe in both tables: its memory by kind, and the settings for each size of card."""
    config, plain = load_config(recipe), load_config(recipe, UNQUANTIZED)
    sizes, tokens = sizes_of(config, RECIPES[recipe]), config.packing.max_tokens
    kinds = memory_of(config, sizes, tokens, 1)
    numbers = [*kinds.values(), sum(kinds.values()), sum(memory_of(plain, sizes, tokens, 1).values())]
    found = {card: f"{_short(changes)} ({need / 1e9:.1f} GB)"
             for card, changes, need in fitting_settings(plain, sizes, tokens, LONGEST, 1)}  # fmt: skip
    memory = " | ".join(f"{number / 1e9:.1f} GB" for number in numbers)
    return f"| `{recipe}` | {memory} |", f"| `{recipe}` | {' | '.join(found.get(card, '-') for card in CARDS)} |"


def tables() -> str:
    """Returns both tables in Markdown."""
    kinds = ("weights", "copies", "gradients, optimizer", "activations", "logits", "together", "LoRA over bfloat16")
    memory = [f"| recipe | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    cards = [f"| recipe | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---" * (len(CARDS) + 1) + "|"]
    for recipe in RECIPES:
        needed, fitting = rows(recipe)
        memory.append(needed)
        cards.append(fitting)
    return "\n".join([*memory, "", *cards])


if __name__ == "__main__":
    print(tables())
