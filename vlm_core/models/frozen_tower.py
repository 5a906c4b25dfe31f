"""The frozen vision tower: its features, their fingerprint, and the stub that replaces the tower.

The cache holds the last output before the first weight that may train. For Gemma 3, these are the pooled patches (256
of 4096); for Gemma 3n and Gemma 4, the tower's output. In Qwen's models the projector is part of the tower: the cache
holds the projector's output, if the projector is frozen too. Everything after the cached output runs as usual.

Qwen3-VL's tower has further outputs, which are added to the hidden states after the first layers (DeepStack, arXiv
2406.04334). They have the shape of the projector's output, so the cache holds all outputs as one tensor.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_core.data.chat_model import FEATURES, PIXELS, Batch, ChatModel, ImageGrid
from vlm_core.data.grids import patch_grids
from vlm_core.families import Family
from vlm_core.models.load import unwrapped

VISION_VERSION = 2  # raise it whenever the same tower and images must give other features


def is_tower_frozen(model: Any, family: Family) -> bool:
    """Returns whether the model has a tower of which no parameter trains, so that an image's features never change."""
    if not family.vision_tower:
        return False
    tower = unwrapped(model).get_submodule(family.vision_tower)
    return not any(parameter.requires_grad for parameter in tower.parameters())


def tower_fingerprint(model: Any, chat: ChatModel) -> str:
    """Returns a hash of everything that features depend on: weights and their dtype, settings, preprocessing."""
    tower = unwrapped(model).get_submodule(chat.family.vision_tower)
    digest = hashlib.sha256()
    # Leave out what differs between training and evaluation: the model's dtype and its path.
    config = {key: value for key, value in tower.config.to_dict().items() if key not in ("dtype", "_name_or_path")}
    preprocessing = chat.processor.image_processor.to_dict()
    settings = [VISION_VERSION, chat.family.vision_features, preprocessing, config]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


class _Captured(Exception):
    """Ends a forward pass once the wanted output is captured."""


@torch.no_grad()
def vision_features(model: Any, images: Batch, family: Family) -> Sequence[torch.Tensor]:
    """Returns the features of each image: the output of the family's `vision_features` module.

    A tower with several outputs (the family's `layer_features`) gives (tokens, outputs, hidden size) for each image.
    `images` is what `ChatModel.image_inputs` returns, on the tower's device and in its dtype.
    """
    if holds_projector(family):
        encoded = unwrapped(model).get_image_features(**images)
        if not family.layer_features:
            return encoded.pooler_output
        outputs = encoded.pooler_output, *getattr(encoded, family.layer_features)
        return [torch.stack(of_image, dim=1) for of_image in zip(*outputs, strict=True)]

    def capture(module: nn.Module, arguments: Any, output: Any) -> None:
        raise _Captured(getattr(output, "last_hidden_state", output))

    core = unwrapped(model)
    handle = core.get_submodule(family.vision_features).register_forward_hook(capture)
    try:
        core.get_image_features(**images)
    except _Captured as captured:
        return _of_each_image(captured.args[0], images)
    finally:
        handle.remove()
    raise AssertionError(f"get_image_features does not call {family.vision_features}")


def _of_each_image(features: Any, images: Batch) -> Sequence[torch.Tensor]:
    """Returns the features of each image; Gemma 4's tower gives the tokens of all images in a row."""
    if "image_position_ids" not in images:
        return features
    patches = (images["image_position_ids"] >= 0).all(dim=-1).sum(dim=-1)  # without padding
    return features.split((patches * len(features) // patches.sum()).tolist())


def feature_inputs(features: Sequence[torch.Tensor], grids: Sequence[ImageGrid], chat: ChatModel) -> Batch:
    """Returns the inputs that replace `ChatModel.image_inputs` while the tower is detached; {} without images.

    `features` and `grids` have one entry per image, in the order of the image tokens.
    """
    if not features:
        return {}
    key = PIXELS if needs_stub(chat.family) else FEATURES
    batch = {key: torch.cat([*features]) if chat.family.image_grid else torch.stack([*features])}
    if "image_grid_thw" in chat.family.image_inputs:  # needed to compute positions
        batch["image_grid_thw"] = patch_grids(grids, chat.processor.image_processor.merge_size)
    return batch


def holds_projector(family: Family) -> bool:
    """Returns whether the projector is part of the tower; then the model takes the cached features directly."""
    return all(name.startswith(f"{family.vision_tower}.") for name in family.parts["projector"])


def needs_stub(family: Family) -> bool:
    """Returns whether cached features enter as pixels, through a stub that passes them on to the projector."""
    return not holds_projector(family) and not family.feature_projector


class _Stub(nn.Module):
    """Replaces the tower: takes features as `pixel_values` and returns them, so that the projector still runs."""

    def __init__(self, tower: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.dtype = pooled, next(tower.parameters()).dtype  # The model reads the dtype of its tower.

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        if self.pooled:
            tokens = pixel_values.flatten(2).transpose(1, 2)
        else:
            # Match the tower's memory layout: with another one, the next module rounds differently.
            tokens = pixel_values.clone(memory_format=torch.channels_last)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens)


class DetachedTower:
    """Keeps the tower of a model that trains on cached features: off the device, and attached only for saving."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.name = unwrapped(model), family.vision_tower
        self.tower = self.model.get_submodule(family.vision_tower)
        pooled = family.vision_features != family.vision_tower
        self.stub = _Stub(self.tower, pooled=pooled) if needs_stub(family) else nn.Identity()
        self.model.set_submodule(self.name, self.stub)
        if pooled:
            # The features are pooled already: a square of tokens_per_side, which the projector must not pool again.
            self.model.set_submodule(family.vision_features, nn.Identity())
            projector = self.model.get_submodule(family.vision_features.rpartition(".")[0])
            projector.patches_per_image = projector.tokens_per_side

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager: reattaches the tower, because a checkpoint needs all weights."""
        self.model.set_submodule(self.name, self.tower)
        try:
            yield
        finally:
            self.model.set_submodule(self.name, self.stub)
