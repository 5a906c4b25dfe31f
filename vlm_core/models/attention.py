"""Who sees whom in a packed batch, as the dictionary of masks by layer type that the models take as they are.

transformers makes its own masks from indices in the sequence, and 5.23 looks an image up at the wrong index once
`position_ids` restart; here everything goes by position, group, branch and image.
"""

from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

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


def packed_masks(queries: Places, keys: Places, model: Any, family: Family) -> dict[str, Any]:
    """Returns `{layer type: mask}` for the text model of `model`, broadcastable to (R, heads, queries, keys).

    A query sees the keys of its group that lie in the prefix or in its own branch, and that do not come after it or
    belong to its image; in sliding layers none that is `sliding_window` positions or more behind it. The masks are
    boolean, True = seen; additive for eager attention, which would add a boolean mask as 0 and 1; for FlexAttention a
    BlockMask, which names the blocks of 128 x 128 that are not empty and never holds the whole square.
    """
    text_config = model.config.get_text_config()
    windows = {"full_attention": None, "sliding_attention": text_config.sliding_window}
    used = {kind: window for kind, window in windows.items() if kind in text_config.layer_types}
    if text_config._attn_implementation == "flex_attention":
        return {kind: _block_mask(queries, keys, family, window) for kind, window in used.items()}
    rows = Places(*(ids[:, :, None] for ids in queries))
    columns = Places(*(ids[:, None, :] for ids in keys))
    seen = {kind: _sees(rows, columns, family, window)[:, None] for kind, window in used.items()}
    if text_config._attn_implementation == "eager":
        return {kind: _additive(mask, model.dtype) for kind, mask in seen.items()}
    return seen


def _sees(query: Places, key: Places, family: Family, window: int | None) -> torch.Tensor:
    visible = key.position_ids <= query.position_ids
    if family.bidirectional_images:
        visible = visible | ((query.image_ids == key.image_ids) & (query.image_ids > 0))
    of_branch = (key.branch_ids == 0) | (key.branch_ids == query.branch_ids)
    visible = visible & (query.group_ids == key.group_ids) & of_branch
    return visible if window is None else visible & (query.position_ids - key.position_ids < window)


def _block_mask(queries: Places, keys: Places, family: Family, window: int | None) -> BlockMask:
    def sees(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return _sees(
            Places(*(ids[row, query] for ids in queries)), Places(*(ids[row, key] for ids in keys)), family, window
        )

    (rows, length), device = queries.position_ids.shape, queries.position_ids.device
    longest = keys.position_ids.shape[1]
    # Compiled, it makes no dense mask on the way.
    return create_block_mask(sees, rows, None, length, longest, device=str(device), _compile=device.type == "cuda")


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
