"""The frozen vision tower: its features, their fingerprint, and the stub that replaces the tower.

The cache holds the last output before the first weight that may train: for Gemma 3 the pooled patches (256 of 4096),
for Gemma 3n the tower's output, and for Qwen2.5-VL, whose projector is part of the tower, the projector's output, if it
is frozen with the tower. Everything after it runs as usual.
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
    """Returns whether nothing trains in the tower, so that an image's features never change."""
    tower = unwrapped(model).get_submodule(family.vision_tower)
    return not any(parameter.requires_grad for parameter in tower.parameters())


def tower_fingerprint(model: Any, chat: ChatModel) -> str:
    """Returns a hash of all that an image's features depend on: weights and their dtype, settings, preprocessing."""
    tower = unwrapped(model).get_submodule(chat.family.vision_tower)
    digest = hashlib.sha256()
    # Training and evaluation load the model in different dtypes and from different places; the tower is the same.
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

    `images` is what `ChatModel.image_inputs` returns, on the tower's device and in its dtype.
    """
    if holds_projector(family):
        return unwrapped(model).get_image_features(**images).pooler_output

    def capture(module: nn.Module, arguments: Any, output: Any) -> None:
        raise _Captured(getattr(output, "last_hidden_state", output))

    core = unwrapped(model)
    handle = core.get_submodule(family.vision_features).register_forward_hook(capture)
    try:
        core.get_image_features(**images)
    except _Captured as captured:
        return captured.args[0]
    finally:
        handle.remove()
    raise AssertionError(f"get_image_features does not call {family.vision_features}")


def feature_inputs(features: Sequence[torch.Tensor], grids: Sequence[ImageGrid], chat: ChatModel) -> Batch:
    """Returns what the model takes in place of `ChatModel.image_inputs` once its tower is detached; {} without images.

    `features` and `grids` are those of the images in the order of their tokens.
    """
    if not features:
        return {}
    key = FEATURES if holds_projector(chat.family) else PIXELS  # A projector of its own gets them through the stub.
    batch = {key: torch.cat([*features]) if chat.family.image_grid else torch.stack([*features])}
    if "image_grid_thw" in chat.family.image_inputs:  # Positions depend on it.
        batch["image_grid_thw"] = patch_grids(grids, chat.processor.image_processor.merge_size)
    return batch


def holds_projector(family: Family) -> bool:
    """Returns whether the projector is part of the tower, so that cached features are those that the model takes."""
    return all(name.startswith(f"{family.vision_tower}.") for name in family.parts["projector"])


class _Stub(nn.Module):
    """Takes features in place of pixels, so that the model's own code leads them to its projector, which may train."""

    def __init__(self, tower: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.dtype = pooled, next(tower.parameters()).dtype  # The model reads the dtype of its tower.

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        if self.pooled:
            tokens = pixel_values.flatten(2).transpose(1, 2)
        else:
            # The tower returns this memory layout; in another one, the next module would round differently.
            tokens = pixel_values.clone(memory_format=torch.channels_last)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens)


class DetachedTower:
    """The tower of a model that is fed with features: off the device, and back in the model while that is saved."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.name = unwrapped(model), family.vision_tower
        self.tower = self.model.get_submodule(family.vision_tower)
        pooled = family.vision_features != family.vision_tower
        self.stub = nn.Identity() if holds_projector(family) else _Stub(self.tower, pooled=pooled)
        self.model.set_submodule(self.name, self.stub)
        if pooled:
            # The pooled patches go through the projector's own code: a square of tokens_per_side, pooled no further.
            self.model.set_submodule(family.vision_features, nn.Identity())
            projector = self.model.get_submodule(family.vision_features.rpartition(".")[0])
            projector.patches_per_image = projector.tokens_per_side

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Puts the tower back for the block: a checkpoint has all weights."""
        self.model.set_submodule(self.name, self.tower)
        try:
            yield
        finally:
            self.model.set_submodule(self.name, self.stub)
