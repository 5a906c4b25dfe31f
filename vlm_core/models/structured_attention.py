"""Attention over packed rows on a CPU that computes no masked-out pair of tokens.

A dense mask makes the kernel compute every pair of a row, and in a packed row most pairs are masked. Here each prefix
attends to itself, all branches of a group attend to its prefix without a mask, and each branch attends to itself. A
branch's two results are merged by their logarithms of the sums of exponentials. The backward pass calls the kernel's
backward with the merged result, which gives the exact gradient of each part. FlexAttention does the same on GPUs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vlm_core.models.attention import OTHER_MASKS, LayerRule, Places, dense_mask
from vlm_core.models.load import unwrapped
from vlm_core.models.packed_groups import Group, group_mask, groups_of

STRUCTURED = "structured"  # as transformers' attn_implementation

Kernel = Callable[..., tuple[torch.Tensor, ...]]
_forward: Kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def use_structured_attention(model: Any, device: torch.device) -> None:
    """Makes the language model of a family that packs use structured attention in place of SDPA, on a CPU."""
    core = unwrapped(model)
    if device.type == "cpu" and core.config.get_text_config()._attn_implementation == "sdpa":
        core.set_attn_implementation({"text_config": STRUCTURED})


@dataclass(frozen=True)
class Span:
    """One range of tokens that attends to another: a prefix to itself, or the branches of a group to their prefix."""

    queries: slice
    keys: slice
    mask: torch.Tensor | None
    causal: bool
    additive: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)  # the mask as the kernel takes it

    def mask_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Returns the mask as numbers that the kernel adds to the scores. All layers share it."""
        if self.mask is not None and dtype not in self.additive:
            self.additive[dtype] = torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask, -torch.inf)
        return self.additive.get(dtype)

    @property
    def folds(self) -> bool:
        """Whether the query heads of a key head can be one long sequence, since all queries see the same keys."""
        return self.mask is None and not self.causal

    def take_queries(self, x: torch.Tensor, key_heads: int) -> torch.Tensor:
        """Returns (N, heads, D) as the kernel takes it: (1, heads, n, D), or folded (1, key heads, ..., D)."""
        part = x[self.queries].transpose(0, 1)
        return part.reshape(1, key_heads if self.folds else x.shape[1], -1, x.shape[2])

    def put_queries(self, part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Returns the kernel's (1, ..., D) as (n, heads, D)."""
        return part.reshape(like.shape[1], -1, part.shape[-1]).transpose(0, 1)

    def take_keys(self, x: torch.Tensor, repeats: int) -> torch.Tensor:
        part = x[self.keys].transpose(0, 1)[None]
        return part if self.folds else repeat_kv(part, repeats)

    def put_keys(self, part: torch.Tensor, key_heads: int) -> torch.Tensor:
        return part.unflatten(1, (key_heads, -1)).sum(2)[0].transpose(0, 1)

    @property
    def at_queries(self) -> slice:
        return self.queries

    @property
    def at_keys(self) -> slice:
        return self.keys


@dataclass(frozen=True)
class Branches:
    """All branches of a batch, each attending to itself: a batch of causal sequences, padded with their last tokens."""

    index: torch.Tensor  # (branches, longest) token numbers
    real: torch.Tensor  # (branches, longest) bool

    causal = True

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device) -> "Branches | None":
        """Returns the branches of `groups`, None if there are none."""
        pairs = [pair for group in groups for pair in zip(group.branches, group.branches[1:], strict=False)]
        if not pairs:
            return None
        starts, ends = torch.tensor(pairs, device=device).T[:, :, None]
        columns = starts + torch.arange(int((ends - starts).max()), device=device)
        return cls(torch.minimum(columns, ends - 1), columns < ends)

    def mask_in(self, dtype: torch.dtype) -> None:
        """Returns None: the kernel is causal without a mask."""

    def take_queries(self, x: torch.Tensor, key_heads: int) -> torch.Tensor:
        return x[self.index].transpose(1, 2)

    def put_queries(self, part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return part.transpose(1, 2)[self.real]

    def take_keys(self, x: torch.Tensor, repeats: int) -> torch.Tensor:
        return repeat_kv(x[self.index].transpose(1, 2), repeats)

    def put_keys(self, part: torch.Tensor, key_heads: int) -> torch.Tensor:
        return part.unflatten(1, (key_heads, -1)).sum(2).transpose(1, 2)[self.real]

    @cached_property
    def at_queries(self) -> torch.Tensor:
        return self.index[self.real]

    @property
    def at_keys(self) -> torch.Tensor:
        return self.at_queries


@dataclass(frozen=True, eq=False)
class Structure(BlockMask):
    """What the layers of one type attend to in a packed batch. The model takes it in place of a mask.

    It is a `BlockMask` because transformers hands those to the layers unchanged. Nothing else of that class is used.
    """

    parts: tuple[Span | Branches, ...]
    crosses: tuple[Span, ...]  # what branches see of their prefixes; what they see of themselves is in `parts`
    padding: torch.Tensor  # token numbers
    places: Places
    rule: LayerRule

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense mask."""
        rows, length = self.places.position_ids.shape
        return rows, 1, length, length

    def dense(self) -> torch.Tensor:
        """Returns the mask, for what the kernel cannot compute."""
        return dense_mask(self.places, self.places, self.rule)

    def __getitem__(self, index: Any) -> "Structure":
        """Returns this structure: Gemma 4 takes a slice of all queries. Raises ValueError for a part of them."""
        if any(part not in (slice(None), slice(0, None)) for part in index):
            raise ValueError(
                f"structured attention cannot take the part {index} of a mask; set packing.structured_attention=false"
            )
        return self


def _mask_of(queries: Places, keys: Places, rule: LayerRule) -> Any:
    """Returns the structure of a packed batch, or a dense mask if a group has another pattern; see `group_mask`."""
    parts: list[Span | Branches] = []
    crosses: list[Span] = []
    found = groups_of(queries) if queries is keys else []
    for group in found:
        masks = group_mask(group, queries, rule)
        if masks is None:
            return dense_mask(queries, keys, rule)
        prefix, own = slice(group.start, group.prefix_end), slice(group.prefix_end, group.end)
        if prefix.start < prefix.stop:
            parts.append(Span(prefix, prefix, masks.prefix, causal=masks.prefix is None))
        if prefix.start < prefix.stop and own.start < own.stop:
            crosses.append(Span(own, prefix, masks.cross, causal=False))
    if not found:
        return dense_mask(queries, keys, rule)
    branches = Branches.of(found, queries.group_ids.device)
    padding = (queries.group_ids == 0).flatten().nonzero()[:, 0]
    of_branches = [] if branches is None else [branches]
    return Structure((*parts, *of_branches), tuple(crosses), padding, queries, rule)


def structured_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (R, heads, T, D), keys and values (R, key heads, T, D)."""
    if isinstance(attention_mask, Structure):
        if not dropout and query.device.type == "cpu" and query.dtype == key.dtype == value.dtype:
            rows, _, length, width = query.shape
            by_token = [x.transpose(1, 2).reshape(rows * length, -1, width) for x in (query, key, value)]
            output = _Attention.apply(*by_token, attention_mask, scaling)
            return output.view(rows, length, -1, width), None
        attention_mask = attention_mask.dense()
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)  # pyrefly: ignore


class _Attention(torch.autograd.Function):
    """Maps queries (N, heads, D), keys and values (N, key heads, D) of all tokens to outputs (N, heads, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, structure: Structure, scale: float | None
    ) -> torch.Tensor:
        heads, repeats = k.shape[1], q.shape[1] // k.shape[1]
        # The parts cover every token but the padding, so nothing has to be zero before they are written.
        output, log_sums = torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=torch.float32)
        # A token of the padding attends to itself. Zeros would have an infinite gradient in Gemma 3n.
        output[structure.padding] = v[structure.padding].repeat_interleave(repeats, dim=1)

        def attend(part: Span | Branches) -> tuple[torch.Tensor, torch.Tensor]:
            taken = part.take_queries(q, heads), part.take_keys(k, repeats), part.take_keys(v, repeats)
            found, sums = _forward(*taken, 0.0, part.causal, attn_mask=part.mask_in(q.dtype), scale=scale)
            return part.put_queries(found, q), part.put_queries(sums[..., None], q)

        for part in structure.parts:
            output[part.at_queries], log_sums[part.at_queries] = attend(part)
        for cross in structure.crosses:
            found, sums = attend(cross)
            own = log_sums[cross.queries]
            both = torch.logaddexp(own, sums)
            merged = output[cross.queries] * (own - both).exp() + found * (sums - both).exp()
            output[cross.queries], log_sums[cross.queries] = merged.to(q.dtype), both
        ctx.save_for_backward(q, k, v, output, log_sums)
        ctx.structure, ctx.scale = structure, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor | None, ...]:
        q, k, v, output, log_sums = ctx.saved_tensors
        (grad,), heads, repeats = grad_outputs, k.shape[1], q.shape[1] // k.shape[1]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def gradients(part: Span | Branches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            of_output = part.take_queries(grad, heads)
            if isinstance(part, Branches):  # Tokens that pad a branch are repeated: their gradient counts once.
                of_output = of_output * part.real[:, None, :, None]
            found = _backward(
                of_output,
                part.take_queries(q, heads),
                part.take_keys(k, repeats),
                part.take_keys(v, repeats),
                part.take_queries(output, heads),
                part.take_queries(log_sums, heads)[..., 0].contiguous(),
                0.0,
                part.causal,
                attn_mask=part.mask_in(q.dtype),
                scale=ctx.scale,
            )
            return part.put_queries(found[0], q), part.put_keys(found[1], heads), part.put_keys(found[2], heads)

        for part in ctx.structure.parts:
            dq[part.at_queries], dk[part.at_keys], dv[part.at_keys] = gradients(part)
        for cross in ctx.structure.crosses:
            of_queries, of_keys, of_values = gradients(cross)
            dq[cross.queries] += of_queries
            dk[cross.keys] += of_keys
            dv[cross.keys] += of_values
        for gradient in (dq, dk, dv):
            gradient[ctx.structure.padding] = 0
        return dq, dk, dv, None, None


AttentionInterface.register(STRUCTURED, structured_attention)
AttentionMaskInterface.register(STRUCTURED, sdpa_mask)  # for rows that are not packed
OTHER_MASKS[STRUCTURED] = _mask_of
