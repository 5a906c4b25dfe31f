"""The row of a checkpoint's model family: the written one, or for any other model type one that the model itself gives.

Names of modules are asked of transformers (`get_encoder`, `get_decoder`, the embeddings), the end of a turn of the chat
template, and what a batch needs of the processor and the model's `forward`.
"""

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_core.data.collate import TOKEN_TYPES
from vlm_core.data.tokenization_generic import OWN_ROW, end_of_turn
from vlm_core.families import FAMILIES, Family, model_type_of
from vlm_core.models.load import load_processor


def family_of(model_directory: Path) -> Family:
    """Returns the row of the checkpoint in `model_directory`.

    Raises ValueError for a model that is no image-text-to-text model of transformers, or has no chat template.
    """
    model_type = model_type_of(model_directory)
    return FAMILIES[model_type] if model_type in FAMILIES else _own_row(model_directory, model_type)


@lru_cache(maxsize=8)
def _own_row(directory: Path, model_type: str) -> Family:
    model: Any = _empty_model(directory)
    processor: Any = load_processor(directory)
    if getattr(processor, "image_token", None) is None or processor.chat_template is None:
        lacking = "chat template" if processor.chat_template is None else "image token"
        raise ValueError(
            f"the processor of {directory}, a {model_type} model without a row in vlm_core/families.py, has no "
            f"{lacking}; give it the files of a chat model (chat_template.jinja), or {OWN_ROW}"
        )
    end = end_of_turn(processor)
    if not end and processor.tokenizer.eos_token is None:
        raise ValueError(
            f"nothing ends an answer of {directory}: neither its chat template nor an eos token; {OWN_ROW}"
        )
    parts = _parts(model)
    return Family(
        model_type=model_type,
        end_of_turn=end,
        image_placeholder="image_token",
        image_expansion=None,
        image_token=processor.image_token,
        required_keys=frozenset({"input_ids", "attention_mask"}),
        parts=parts,
        bidirectional_images=False,
        vision_tower=next(iter(parts.get("vision_tower", ())), ""),
        vision_features="",
        token_types_key=_token_types_key(model, processor),
        plain_only=True,
    )


def _empty_model(directory: Path) -> Any:
    """Returns the model in `directory` without its weights; raises ValueError where transformers has none."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{directory} holds a model of type {config.model_type!r}, which AutoModelForImageTextToText does not "
            "load; give a vision-language model with a chat template"
        )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def _parts(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns the parts of a model with the names of their modules; what is none of the others is the projector."""
    found = {
        "embeddings": (model.get_input_embeddings(), model.get_output_embeddings()),
        "vision_tower": (model.get_encoder("image"),),
        "audio_tower": (model.get_encoder("audio"),),
        "language_model": (model.get_decoder(),),
    }
    name_of = {module: name for name, module in model.named_modules()}
    whole = (None, model, model.base_model)  # what transformers returns where it finds nothing
    parts = {
        part: tuple(name_of[module] for module in modules if not any(module is other for other in whole))
        for part, modules in found.items()
    }
    parts = {part: names for part, names in parts.items() if names}
    claimed = tuple(name + "." for names in parts.values() for name in names)
    rest = (name for name, _ in model.named_parameters() if not name.startswith(claimed))
    others = tuple(dict.fromkeys(".".join(name.split(".")[:2]) for name in rest))
    return parts | ({"projector" if "language_model" in parts else "language_model": others} if others else {})


def _token_types_key(model: Any, processor: Any) -> str:
    """Returns the key of a batch that tells image tokens from others, "" where processor or model has none."""
    made = processor(text=[processor.image_token], images=[[Image.new("RGB", (64, 64))]])
    accepted = inspect.signature(model.forward).parameters
    return next((key for key in TOKEN_TYPES if key in made and key in accepted), "")
