"""The two halves of a forward pass: hidden states of a padded or packed batch, and the head at chosen positions."""

import inspect
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_core.data.chat_model import FEATURES
from vlm_core.data.collate import IGNORE_INDEX
from vlm_core.families import Family
from vlm_core.models.attention import Places, packed_masks

LABELS = ("labels", "targets")
LOGITS_AT_ONCE = 2**26  # 256 MB in float32: 256 tokens of a vocabulary of 262k


def hidden_states(model: Any, batch: dict[str, torch.Tensor], family: Family) -> torch.Tensor:
    """Returns the last hidden states (B, T, hidden size) of a batch of `collate`, or of `pack`.

    `model` is the transformers model itself.
    """
    inputs = with_features({key: value for key, value in batch.items() if key not in LABELS}, model, family)
    if "group_ids" in batch:
        places = Places.of(batch)
        inputs = packed_inputs(batch, model, family) | {"attention_mask": packed_masks(places, places, model, family)}
    return model.model(**inputs, use_cache=False).last_hidden_state


def target_logits(model: Any, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    """Returns the logits (N, vocabulary) at the N positions where `chosen` (B, T) is true, by the model's own forward.

    For models whose head is not known. A model that takes `logits_to_keep` computes only the columns that have one.
    """
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key not in LABELS}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        columns = chosen.any(dim=0).nonzero()[:, 0]
        inputs["logits_to_keep"], chosen = columns, chosen[:, columns]
    return model(**inputs, use_cache=False).logits[chosen]


def targets_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the target token of each position, (B, T) int64; -100 means that the position is not supervised."""
    if "targets" in batch:
        return batch["targets"]
    return functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)


def packed_inputs(batch: dict[str, torch.Tensor], model: Any, family: Family) -> dict[str, Any]:
    """Returns the model's arguments for a packed batch, without the masks: tokens, images and positions."""
    inputs = {key: batch[key] for key in ("input_ids", FEATURES, *family.image_inputs) if key in batch}
    own_positions = family.mrope and "grid_position_ids" in batch  # Rows without images count tokens.
    positions = batch["grid_position_ids" if own_positions else "position_ids"]
    return with_features(inputs | {"position_ids": positions}, model, family)


def with_features(inputs: dict[str, Any], model: Any, family: Family) -> dict[str, Any]:
    """Returns a model's arguments, with cached features of images as the model takes them: the tower's outputs.

    A projector that the cache leaves out runs here, so inside the forward pass that DDP and FSDP2 wrap.
    """
    if FEATURES not in inputs:
        return inputs
    projector = model.get_submodule(family.feature_projector) if family.feature_projector else torch.nn.Identity()
    outputs = inputs[FEATURES].unbind(1) if family.layer_features else [inputs[FEATURES]]
    of_all_images: Any = [projector(outputs[0])]
    encoded = BaseModelOutputWithPooling(pooler_output=of_all_images)
    if family.layer_features:
        setattr(encoded, family.layer_features, [[output] for output in outputs[1:]])
    rest = {key: value for key, value in inputs.items() if key != FEATURES}
    return rest | {"mm_encoder_outputs": {"image": encoded}}


def on_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Returns a batch on the model's device, its numbers in the model's dtype."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in batch.items()
    }


def head_logits(model: Any, hidden: torch.Tensor, family: Family) -> torch.Tensor:
    """Returns what the model's own forward makes of hidden states: (..., hidden size) -> (..., vocabulary)."""
    logits, cap = model.lm_head(hidden), softcap(model, family)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def softcap(model: Any, family: Family) -> float | None:
    """Returns the bound that the model's forward puts on its logits, None if it puts none."""
    return model.config.get_text_config().final_logit_softcapping if family.softcaps_logits else None


def tokens_at_once(model: Any) -> int:
    """Returns for how many tokens the logits may be in memory at once, given the size of the vocabulary."""
    return max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
