"""The frozen vision tower: its features, what identifies them, and the stand-in that takes them in its place.

Cached is what comes last before the first weight that may train: for Gemma 3 the pooled patches (256 of 4096), for
Gemma 3n the tower's output; for Qwen2.5-VL, whose projector is a part of the tower, what comes out of that, where it is
frozen with the tower. Everything behind it runs as ever.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_core.data.grids import Grid, patch_grids
from vlm_core.families import Family
from vlm_core.models.load import unwrapped

VISION_VERSION = 2  # raise it whenever the same tower and images must give other features


def is_tower_frozen(model: Any, family: Family) -> bool:
    """Returns whether nothing trains in the tower, so that an image's features never change."""
    tower = unwrapped(model).get_submodule(family.vision_tower)
    return not any(parameter.requires_grad for parameter in tower.parameters())


def tower_fingerprint(model: Any, processor: Any, family: Family) -> str:
    """Returns a hash of all that an image's features depend on: weights and their dtype, settings, preprocessing."""
    tower = unwrapped(model).get_submodule(family.vision_tower)
    digest = hashlib.sha256()
    # Not what the whole model was loaded as, nor from where: training and evaluation differ in that, not in the tower.
    config = {key: value for key, value in tower.config.to_dict().items() if key not in ("dtype", "_name_or_path")}
    settings = [VISION_VERSION, family.vision_features, processor.image_processor.to_dict(), config]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


class _Captured(Exception):
    """Ends a forward pass: what lies behind the captured output is not wanted."""


@torch.no_grad()
def vision_features(
    model: Any, pixel_values: torch.Tensor, grids: Sequence[Grid], family: Family
) -> Sequence[torch.Tensor]:
    """Returns the features of each image: the output of the family's `vision_features` module.

    `pixel_values` are the processor's: (N, C, H, W), or all patches of N images with `grids`.
    """
    if grids:
        where = patch_grids(grids, family).to(pixel_values.device)
        return unwrapped(model).get_image_features(pixel_values, where).pooler_output

    def capture(module: nn.Module, arguments: Any, output: Any) -> None:
        raise _Captured(getattr(output, "last_hidden_state", output))

    core = unwrapped(model)
    handle = core.get_submodule(family.vision_features).register_forward_hook(capture)
    try:
        core.get_image_features(pixel_values)
    except _Captured as captured:
        return captured.args[0]
    finally:
        handle.remove()
    raise AssertionError(f"{family.vision_features} is no part of get_image_features")


def join_features(features: Sequence[torch.Tensor], family: Family) -> torch.Tensor:
    """Returns what the tower's stand-in takes for images, in the order of their tokens: (N, ...), or all in a row."""
    return torch.cat([*features]) if family.patches_a_token else torch.stack([*features])


class _StandIn(nn.Module):
    """Takes features where the tower takes pixels."""

    def __init__(self, tower: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        # Of those that the model asks its tower for.
        for name in ("dtype", "spatial_merge_size"):
            if hasattr(tower, name):
                setattr(self, name, getattr(tower, name))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        if self.pooled:
            tokens = pixel_values.flatten(2).transpose(1, 2)
        elif pixel_values.dim() == 4:
            # In the layout that the tower has them in: what comes next would round otherwise in another one.
            tokens = pixel_values.clone(memory_format=torch.channels_last)
        else:
            tokens = pixel_values.clone()
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens)


class DetachedTower:
    """The tower of a model that is fed with features: off the device, and there again while the model is saved."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.name = unwrapped(model), family.vision_tower
        self.tower = self.model.get_submodule(family.vision_tower)
        pooled = family.vision_features != family.vision_tower
        self.stand_in = _StandIn(self.tower, pooled=pooled)
        self.model.set_submodule(self.name, self.stand_in)
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
            self.model.set_submodule(self.name, self.stand_in)
