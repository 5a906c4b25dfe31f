"""One row per model family: every fact that differs between families, and nothing else.

`vlm_core.models.derived_family` derives the facts of any other model type from the model and its processor.
`vlm_core.models.chat` turns a row into the object that the rest of the code works with.
The names of modules and processor attributes are those of transformers 5.23.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FULL, SLIDING = "full_attention", "sliding_attention"  # types of layers, as the models' configs name them


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts about a model family. Only the fast path reads those of the second group."""

    model_type: str  # in the checkpoint's config.json
    end_of_turn: str  # closes an assistant's turn in the chat template; the last supervised token
    image_token: str  # image features replace the embeddings of this token
    parts: Mapping[str, tuple[str, ...]]  # part -> prefixes of its modules' names; the longest prefix decides
    vision_tower: str  # module whose output depends on the image alone
    required_keys: frozenset[str]  # keys of a batch with images; without one of them the model computes other numbers
    token_types_key: str = "token_type_ids"  # key of a batch that marks the image tokens; "": the model takes none
    also_stop: tuple[str, ...] = ()  # tokens that end an answer, besides the end of turn and the tokenizer's own
    not_adaptable: tuple[str, ...] = ()  # patterns of linear modules whose forward is never called: LoRA has no effect

    image_placeholder: str = "image_token"  # the chat template writes this attribute of the processor for an image
    # In its place the processor writes these attributes of its own. With a grid, it repeats `image_token` per token.
    image_text: tuple[str, ...] = ("image_token",)
    image_grid: Literal["", "smart_resize"] = ""  # rule that makes a size of tokens; "": all images have equally many
    image_inputs: tuple[str, ...] = ("pixel_values",)  # outputs of the image processor that the model takes
    mrope: bool = False  # whether a position is three numbers: time, height and width (M-RoPE)
    bidirectional_images: tuple[str, ...] = ()  # types of layers in which the tokens of an image see each other
    bidirectional_if: tuple[str, str] | None = None  # ... if this key of the text config has this value
    vision_features: str = ""  # module whose output is cached: the tower, or a pool without weights after it
    softcaps_logits: bool = False  # whether forward() applies the text config's final_logit_softcapping


GEMMA3 = Family(
    model_type="gemma3",
    end_of_turn="<end_of_turn>",
    image_placeholder="boi_token",
    image_text=("full_image_sequence",),
    image_token="<image_soft_token>",
    # Without token_type_ids Gemma 3 attends causally over the image, silently.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model",),
    },
    bidirectional_images=(FULL, SLIDING),
    vision_tower="model.vision_tower",
    vision_features="model.multi_modal_projector.avg_pool",  # 4096 patches become 256 tokens, before any weight
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
    not_adaptable=("*.altup.correction_coefs", "*.altup.prediction_coefs"),  # their weights are read and clamped
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    end_of_turn="<|im_end|>",
    image_token="<|image_pad|>",
    image_grid="smart_resize",
    image_inputs=("pixel_values", "image_grid_thw"),
    mrope=True,
    # Without mm_token_type_ids or the grid, an image's tokens get the positions of text, silently.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger",),
        "language_model": ("model.language_model",),
    },
    vision_tower="model.visual",
    vision_features="model.visual",  # the projector is part of it: cached if that is frozen too
    token_types_key="mm_token_type_ids",
    also_stop=("<|endoftext|>",),
)

FAMILIES = {family.model_type: family for family in (GEMMA3, GEMMA3N, QWEN2_5_VL)}


def model_type_of(model_directory: Path) -> str:
    """Returns the type of the model in a directory, as transformers names it."""
    return str(json.loads((model_directory / "config.json").read_text(encoding="utf-8")).get("model_type"))


def part_of(module_name: str, family: Family) -> str | None:
    """Returns the part that a module or parameter belongs to, None for one outside all parts.

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
