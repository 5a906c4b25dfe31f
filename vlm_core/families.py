"""The table of model families: one `Family` with the facts in which each model type differs from the others.

`vlm_core.models.derived_family` derives the facts of an unlisted model type from the model and its processor.
`vlm_core.models.chat` turns a `Family` into the object that the rest of the code works with.
The names of modules and processor attributes are those of transformers 5.23.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

FULL, SLIDING = "full_attention", "sliding_attention"  # layer types, as in the models' configs


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts about a model family. Only the fast path of listed families reads the second group."""

    model_type: str  # in the checkpoint's config.json
    derived: bool = False  # whether these facts come from the model itself, and not from the table
    end_of_turn: str  # closes an assistant's turn in the chat template; the last supervised token
    image_token: str  # image features replace the embeddings of this token
    parts: Mapping[str, tuple[str, ...]]  # part -> prefixes of module names; the longest match wins
    vision_tower: str  # module whose output depends only on the image; "": the model has none
    required_keys: frozenset[str]  # keys of a batch with images; if one is missing, the model silently computes wrongly
    token_types_key: str = "token_type_ids"  # key of a batch that marks the image tokens; "": the model has none
    also_stop: tuple[str, ...] = ()  # tokens that end an answer, in addition to end_of_turn and the tokenizer's EOS
    not_adaptable: tuple[str, ...] = ()  # patterns of linear modules that LoRA cannot adapt: forward is never called

    image_placeholder: str = "image_token"  # processor attribute with the text that the chat template writes per image
    # The processor replaces the placeholder by these of its attributes. With a grid, it repeats `image_token`.
    image_text: tuple[str, ...] = ("image_token",)
    # The rule from an image's size to its grid of tokens (vlm_core/data/grids.py); "": a fixed number of tokens.
    image_grid: Literal["", "smart_resize", "soft_tokens"] = ""
    image_crops: str = ""  # setting of the image processor that cuts an image into several, which no row packs
    image_inputs: tuple[str, ...] = ("pixel_values",)  # outputs of the image processor that the model takes
    mrope: bool = False  # whether positions are (time, height, width) triples (M-RoPE)
    bidirectional_images: tuple[str, ...] = ()  # layer types with bidirectional attention among an image's tokens
    images_exceed_windows: bool = False  # whether such an image attends to itself beyond a sliding layer's window
    bidirectional_if: tuple[str, str] | None = None  # (key, value) of the text config that turns this on; None: always
    vision_features: str = ""  # module whose output is cached: the tower, or a pool without weights after it
    layer_features: str = ""  # output of the tower with further features, which enter at later layers (DeepStack)
    feature_projector: str = ""  # module that makes embeddings of cached features; "": a stub of the tower leads there
    softcaps_logits: bool = False  # whether forward() applies the text config's final_logit_softcapping


GEMMA3 = Family(
    model_type="gemma3",
    end_of_turn="<end_of_turn>",
    image_placeholder="boi_token",
    image_text=("full_image_sequence",),
    image_token="<image_soft_token>",
    # Without token_type_ids, Gemma 3 silently uses causal attention over the image.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model",),
    },
    bidirectional_images=(FULL, SLIDING),
    image_crops="do_pan_and_scan",
    vision_tower="model.vision_tower",
    vision_features="model.multi_modal_projector.avg_pool",  # pools 4096 patches to 256 tokens, without weights
)

GEMMA3N = Family(
    model_type="gemma3n",
    end_of_turn="<end_of_turn>",
    image_text=("full_image_sequence",),
    image_token="<image_soft_token>",
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values"}),
    parts={
        "embeddings": (
            "model.language_model.embed_tokens",
            "model.language_model.embed_tokens_per_layer",
            "lm_head",
        ),
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.embed_vision",),
        "audio_tower": ("model.audio_tower", "model.embed_audio"),
        "language_model": ("model.language_model",),
    },
    vision_tower="model.vision_tower",
    vision_features="model.vision_tower",
    softcaps_logits=True,
    not_adaptable=("*.altup.correction_coefs", "*.altup.prediction_coefs"),  # the model reads their weights directly
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    end_of_turn="<|im_end|>",
    image_token="<|image_pad|>",
    image_grid="smart_resize",
    image_inputs=("pixel_values", "image_grid_thw"),
    mrope=True,
    # Without mm_token_type_ids or the grid, image tokens silently get text positions.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger",),
        "language_model": ("model.language_model",),
    },
    vision_tower="model.visual",
    vision_features="model.visual",  # includes the projector: cached only if that is frozen too
    token_types_key="mm_token_type_ids",
    also_stop=("<|endoftext|>",),
)

QWEN3_VL = replace(
    QWEN2_5_VL,
    model_type="qwen3_vl",
    parts={**QWEN2_5_VL.parts, "projector": ("model.visual.merger", "model.visual.deepstack_merger_list")},
    layer_features="deepstack_features",
)

QWEN3_VL_MOE = replace(QWEN3_VL, model_type="qwen3_vl_moe")

GEMMA4 = Family(
    model_type="gemma4",
    end_of_turn="<turn|>",
    image_token="<|image|>",
    image_text=("boi_token", "image_token", "eoi_token"),
    image_grid="soft_tokens",
    image_inputs=("pixel_values", "image_position_ids"),
    # Without mm_token_type_ids, the larger models silently use causal attention over the image.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "mm_token_type_ids"}),
    parts=GEMMA3N.parts,
    token_types_key="mm_token_type_ids",
    bidirectional_images=(SLIDING,),
    bidirectional_if=("use_bidirectional_attention", "vision"),  # 26B and 31B; E2B and E4B are causal
    vision_tower="model.vision_tower",
    vision_features="model.vision_tower",
    feature_projector="model.embed_vision",
    softcaps_logits=True,
)

GEMMA4_UNIFIED = replace(
    GEMMA4,
    model_type="gemma4_unified",
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "projector": ("model.embed_vision",),  # embeds the patches of an image without a tower
        "audio_tower": ("model.embed_audio",),
        "language_model": ("model.language_model",),
    },
    vision_tower="",
    vision_features="",
    feature_projector="",
    # So in transformers 5.23; Google's own code has only the sliding layers, within the window, as GEMMA4 has.
    bidirectional_images=(FULL, SLIDING),
    images_exceed_windows=True,
)

FAMILIES = {
    family.model_type: family
    for family in (GEMMA3, GEMMA3N, GEMMA4, GEMMA4_UNIFIED, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)
}


def model_type_of(model_directory: Path) -> str:
    """Returns the `model_type` of the model in a directory."""
    return str(json.loads((model_directory / "config.json").read_text(encoding="utf-8")).get("model_type"))


def part_of(module_name: str, family: Family) -> str | None:
    """Returns the part of the model that a module or parameter belongs to, None if no part matches.

    >>> part_of("model.language_model.embed_tokens.weight", GEMMA3)
    'embeddings'
    """
    matches = [
        (len(prefix), part)
        for part, prefixes in family.parts.items()
        for prefix in prefixes
        if module_name == prefix or module_name.startswith(prefix + ".")
    ]
    return max(matches)[1] if matches else None
