"""Builds the attention masks of packed batches, by layer type, in the format that the model takes.

transformers builds its masks from sequence indices. In 5.23 it looks up images at wrong indices if `position_ids`
restart within a row. The masks built here depend only on position, group, branch and image.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import create_block_mask

from vlm_core.families import FULL, SLIDING, Family


class Places(NamedTuple):
    """The position, group, branch and image of each token, int64 (R, T) each; see `vlm_core.data.packing`."""

    position_ids: torch.Tensor
    group_ids: torch.Tensor
    branch_ids: torch.Tensor
    image_ids: torch.Tensor

    @classmethod
    def of(cls, batch: dict[str, torch.Tensor]) -> "Places":
        """Returns the places of a packed batch."""
        return cls(*(batch[name] for name in cls._fields))

    def followed_by(self, new: "Places") -> "Places":
        """Returns these places with `new` appended along the sequence."""
        return Places(*(torch.cat(pair, dim=1) for pair in zip(self, new, strict=True)))


class LayerRule(NamedTuple):
    """The attention pattern of one layer type."""

    window: int | None  # a query attends to fewer than `window` positions back; None: no limit
    bidirectional_images: bool  # the tokens of an image attend to each other in both directions
    images_exceed_window: bool = False  # they do so beyond the window too


# What takes the place of a mask in other kinds of attention, by the name of the kind.
OTHER_MASKS: dict[str, Callable[[Places, Places, LayerRule], Any]] = {}


def layer_rules(config: Any, family: Family) -> dict[str, LayerRule] | LayerRule:
    """Returns `{layer type: rule}` from the model's config, or a single rule if the model takes one mask.

    Raises ValueError for a layer type that is neither full nor sliding attention, and for a model that is not causal.
    """
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        raise ValueError(
            f"use_bidirectional_attention={text.use_bidirectional_attention!r} lets each token of this "
            f"{family.model_type} model attend to the answer that it has to give; it cannot be trained to answer"
        )
    condition = family.bidirectional_if
    is_met = condition is None or getattr(text, condition[0]) == condition[1]
    bidirectional = family.bidirectional_images if is_met else ()
    exceed = is_met and family.images_exceed_windows
    if getattr(text, "layer_types", None) is None:
        return LayerRule(getattr(text, "sliding_window", None), FULL in bidirectional, exceed)
    windows = {FULL: None, SLIDING: text.sliding_window}
    unknown = set(text.layer_types) - windows.keys()
    if unknown:
        raise ValueError(
            f"a {family.model_type} model has layers of type {', '.join(sorted(unknown))}, which packing cannot mask; "
            "set packing.enabled=false"
        )
    return {
        kind: LayerRule(windows[kind], kind in bidirectional, exceed) for kind in windows if kind in text.layer_types
    }


def packed_masks(queries: Places, keys: Places, model: Any, family: Family) -> Any:
    """Returns `{layer type: mask}` for the text model of `model`, or a single mask if it takes one for all layers.

    A mask is broadcastable to (R, heads, queries, keys). A query attends to keys of its group that are in the prefix
    or in its own branch, and that do not come after it, or belong to the same image. In a sliding layer, keys that
    are a window or more before the query are masked (see `LayerRule` for images). The masks are boolean (True: attend).
    For eager attention they are additive, because it would add a boolean mask as 0 and 1. For FlexAttention they are a
    BlockMask: it lists the non-empty blocks of 128 x 128 and never stores the full square.
    """
    attention = model.config.get_text_config()._attn_implementation

    def mask(rule: LayerRule) -> Any:
        if attention == "flex_attention":
            return _block_mask(queries, keys, rule)
        if attention in OTHER_MASKS:
            return OTHER_MASKS[attention](queries, keys, rule)
        seen = dense_mask(queries, keys, rule)
        return _additive(seen, model.dtype) if attention == "eager" else seen

    rules = layer_rules(model.config, family)
    return mask(rules) if isinstance(rules, LayerRule) else {kind: mask(rule) for kind, rule in rules.items()}


def _sees(query: Places, key: Places, rule: LayerRule) -> torch.Tensor:
    visible = key.position_ids <= query.position_ids
    same_image = (query.image_ids == key.image_ids) & (query.image_ids > 0)
    if rule.bidirectional_images and not rule.images_exceed_window:
        visible = visible | same_image
    if rule.window is not None:
        visible = visible & (query.position_ids - key.position_ids < rule.window)
    if rule.images_exceed_window:
        visible = visible | same_image
    of_branch = (key.branch_ids == 0) | (key.branch_ids == query.branch_ids)
    return visible & (query.group_ids == key.group_ids) & of_branch


def dense_mask(queries: Places, keys: Places, rule: LayerRule) -> torch.Tensor:
    """Returns the bool mask (R, 1, queries, keys) of layers that follow `rule`; True: attend."""
    rows = Places(*(ids[:, :, None] for ids in queries))
    columns = Places(*(ids[:, None, :] for ids in keys))
    return _sees(rows, columns, rule)[:, None]


def _block_mask(queries: Places, keys: Places, rule: LayerRule) -> Any:
    def sees(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return _sees(Places(*(ids[row, query] for ids in queries)), Places(*(ids[row, key] for ids in keys)), rule)

    (rows, length), device = queries.position_ids.shape, queries.position_ids.device
    longest = keys.position_ids.shape[1]
    # Only the compiled version avoids building a dense mask first.
    return create_block_mask(sees, rows, None, length, longest, device=str(device), _compile=device.type == "cuda")


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
