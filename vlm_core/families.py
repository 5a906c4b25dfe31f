"""One row per model family: every fact that differs between families, and nothing else.

`vlm_core.models.derived_family` makes a row for a model type that has none, from what the model and its processor say.
The names of modules and processor attributes are those of transformers 5.23.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Family:
    """What the rest of the code has to know about a model family."""

    model_type: str  # in the checkpoint's config.json
    end_of_turn: str  # closes an assistant's turn in the chat template; the last supervised token
    image_placeholder: str  # what the chat template writes for an image: the processor's attribute of this name
    image_expansion: str | None  # what stands in its place in the input: the processor's attribute; None: see below
    image_token: str  # the token that image features take the place of
    required_keys: frozenset[str]  # of a batch with images; a dropped one changes the maths without an error
    parts: Mapping[str, tuple[str, ...]]  # part -> prefixes of its modules' names; the longest prefix decides
    bidirectional_images: bool  # whether the tokens of an image see each other both ways
    vision_tower: str  # module whose output depends on the image alone
    vision_features: str  # module without weights whose output is cached: the tower itself, or a pool behind it
    patches_a_token: int = 0  # a side; an image has as many tokens as its size asks for. 0: all have the same number
    token_types_key: str = "token_type_ids"  # of a batch: what says which tokens are those of an image
    also_stop: tuple[str, ...] = ()  # tokens that end an answer, besides the end of turn and the tokenizer's own
    softcaps_logits: bool = False  # whether forward() applies the text config's final_logit_softcapping
    not_adaptable: tuple[str, ...] = ()  # wildcards of linear modules whose forward is not called: LoRA has no effect
    # Of a model without a row: its processor says what images become, and its own forward and generate() do the rest.
    plain_only: bool = False


GEMMA3 = Family(
    model_type="gemma3",
    end_of_turn="<end_of_turn>",
    image_placeholder="boi_token",
    image_expansion="full_image_sequence",
    image_token="<image_soft_token>",
    # Without token_type_ids Gemma 3 attends causally over the image, silently.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model",),
    },
    bidirectional_images=True,
    vision_tower="model.vision_tower",
    vision_features="model.multi_modal_projector.avg_pool",  # 4096 patches become 256 tokens, before any weight
)

GEMMA3N = Family(
    model_type="gemma3n",
    end_of_turn="<end_of_turn>",
    image_placeholder="image_token",
    image_expansion="full_image_sequence",
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
    bidirectional_images=False,
    vision_tower="model.vision_tower",
    vision_features="model.vision_tower",
    softcaps_logits=True,
    not_adaptable=("*.altup.correction_coefs", "*.altup.prediction_coefs"),  # their weights are read and clamped
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    end_of_turn="<|im_end|>",
    image_placeholder="image_token",
    image_expansion=None,
    image_token="<|image_pad|>",
    # Without mm_token_type_ids an image's tokens stand in a line, silently; without the grid as well.
    required_keys=frozenset({"input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"}),
    parts={
        "embeddings": ("model.language_model.embed_tokens", "lm_head"),
        "vision_tower": ("model.visual",),
        "projector": ("model.visual.merger",),
        "language_model": ("model.language_model",),
    },
    bidirectional_images=False,
    vision_tower="model.visual",
    vision_features="model.visual",  # behind its merger: cached where that is frozen too
    patches_a_token=2,
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
