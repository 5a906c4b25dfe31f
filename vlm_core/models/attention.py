"""Who sees whom in a packed batch, as the dictionary of masks by layer type that the models take as they are.

transformers makes its own masks from indices in the sequence, and 5.23 looks an image up at the wrong index once
`position_ids` restart; here everything goes by position, group, branch and image.
"""

from typing import Any, NamedTuple

import torch

from vlm_core.families import Family


class Places(NamedTuple):
    """Where each token stands, int64 (R, T) each; see `vlm_core.data.packing`."""

    position_ids: torch.Tensor
    group_ids: torch.Tensor
    branch_ids: torch.Tensor
    image_ids: torch.Tensor

    @classmethod
    def of(cls, batch: dict[str, torch.Tensor]) -> "Places":
        """Returns the places of a packed batch."""
        return cls(*(batch[name] for name in cls._fields))

    def followed_by(self, new: "Places") -> "Places":
        """Returns these places with `new` ones behind them."""
        return Places(*(torch.cat(pair, dim=1) for pair in zip(self, new, strict=True)))


def packed_masks(queries: Places, keys: Places, model: Any, family: Family) -> dict[str, torch.Tensor]:
    """Returns `{layer type: mask}` for the text model of `model`, broadcastable to (R, heads, queries, keys).

    A query sees the keys of its group that lie in the prefix or in its own branch, and that do not come after it or
    belong to its image; in sliding layers none that is `sliding_window` positions or more behind it. The masks are
    boolean, True = seen; additive for eager attention, which would add a boolean mask as 0 and 1.
    """
    q_position, q_group, q_branch, q_image = (ids[:, :, None] for ids in queries)
    k_position, k_group, k_branch, k_image = (ids[:, None, :] for ids in keys)
    visible = k_position <= q_position
    if family.bidirectional_images:
        visible |= (q_image == k_image) & (q_image > 0)
    full = visible & (q_group == k_group) & ((k_branch == 0) | (k_branch == q_branch))
    text_config = model.config.get_text_config()
    masks = {"full_attention": full}
    if text_config.sliding_window is not None:
        masks["sliding_attention"] = full & (q_position - k_position < text_config.sliding_window)
    used = {kind: mask[:, None] for kind, mask in masks.items() if kind in text_config.layer_types}
    if text_config._attn_implementation == "eager":
        return {kind: _additive(mask, model.dtype) for kind, mask in used.items()}
    return used


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
