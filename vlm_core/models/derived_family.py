"""The family of a checkpoint: its row in the table, or for any other model type the facts that the model itself gives.

transformers names the modules (`get_encoder`, `get_decoder`, the embeddings), the chat template ends a turn, and the
processor and the model's `forward` say which tensors a batch needs.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
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

PROJECTORS = ("merger", "projector", "connector")  # parts of the names of such modules inside a tower


def family_of(model_directory: Path, images: Mapping[str, Any] | None = None) -> Family:
    """Returns the family of the checkpoint in `model_directory`, with the settings `images` of its image processor.

    No row fits a model whose image processor cuts an image into several: then the facts are the model's own.
    Raises ValueError for a model that is not an image-text-to-text model of transformers, or has no chat template.
    """
    model_type = model_type_of(model_directory)
    row = FAMILIES.get(model_type)
    if row is None:
        return _own_row(model_directory, model_type)
    if row.image_crops and images and images.get(row.image_crops):
        return replace(_own_row(model_directory, model_type), image_crops=row.image_crops)
    return row


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
        derived=True,
        end_of_turn=end,
        image_token=processor.image_token,
        required_keys=frozenset({"input_ids", "attention_mask"}),
        parts=parts,
        vision_tower=next(iter(parts.get("vision_tower", ())), ""),
        token_types_key=_token_types_key(model, processor),
    )


def _empty_model(directory: Path) -> Any:
    """Returns the model in `directory` without its weights; raises ValueError if transformers has none."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{directory} holds a model of type {config.model_type!r}, which AutoModelForImageTextToText does not "
            "load; give a vision-language model with a chat template"
        )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def _parts(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns the parts of a model with the names of their modules.

    The projector is what no other part claims, and what some towers hold as their last module (the merger of Qwen2-VL).
    """
    found = {
        "embeddings": (model.get_input_embeddings(), *_token_tables(model), model.get_output_embeddings()),
        "vision_tower": (model.get_encoder("image"),),
        "audio_tower": (model.get_encoder("audio"),),
        "language_model": (model.get_decoder(),),
    }
    name_of = {module: name for name, module in model.named_modules()}
    whole = (None, model, model.base_model)  # transformers returns one of these if it finds no such part
    parts = {
        part: tuple(dict.fromkeys(name_of[m] for m in modules if not any(m is other for other in whole)))
        for part, modules in found.items()
    }
    parts = {part: names for part, names in parts.items() if names}
    claimed = tuple(name + "." for names in parts.values() for name in names)
    rest = (name for name, _ in model.named_parameters() if not name.startswith(claimed))
    others = tuple(dict.fromkeys(".".join(name.split(".")[:2]) for name in rest))
    inside = tuple(name for tower in parts.get("vision_tower", ()) for name in _projectors_in(model, tower))
    others = others + inside if "language_model" in parts else others
    return parts | ({"projector" if "language_model" in parts else "language_model": others} if others else {})


def _projectors_in(model: Any, tower: str) -> list[str]:
    """Returns the names of the modules directly in a vision tower that lead to the language model."""
    children = model.get_submodule(tower).named_children()
    return [f"{tower}.{name}" for name, _ in children if any(word in name for word in PROJECTORS)]


def _token_tables(model: Any) -> list[torch.nn.Embedding]:
    """Returns the tables of the language model with a row per token, such as Gemma 4's per-layer embeddings."""
    text = model.config.get_text_config()
    sizes = {value for name, value in text.to_dict().items() if name.startswith("vocab_size")}
    modules = (model.get_decoder() or model).modules()
    return [module for module in modules if isinstance(module, torch.nn.Embedding) and module.num_embeddings in sizes]


def _token_types_key(model: Any, processor: Any) -> str:
    """Returns the key of a batch that marks image tokens, "" if processor or model has none."""
    made = processor(text=[processor.image_token], images=[[Image.new("RGB", (64, 64))]])
    accepted = inspect.signature(model.forward).parameters
    return next((key for key in TOKEN_TYPES if key in made and key in accepted), "")
