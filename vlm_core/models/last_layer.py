"""Skips the positions of the last decoder layer whose output is not used.

After the last layer, only the positions that predict a token are read. The layer's keys and values are needed at every
position, but its queries, the projection of its attention output, and its MLP are needed only at those. Hooks on these
modules select the positions, so the layer's code stays the model's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlm_core.models.load import unwrapped

PER_TOKEN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # each output position depends on one input position


@contextmanager
def only_at(chosen: torch.Tensor, model: Any) -> Iterator[None]:
    """Context manager: `model` computes hidden states where `chosen`, bool (B, T), is true; the others are undefined.

    The backward pass may run after the block. Has no effect if the layer is compiled, because each number of positions
    would compile it again.
    """
    layer = unwrapped(model).get_decoder().layers[-1]
    if layer._compiled_call_impl is not None:
        yield
        return
    places, shape = chosen.nonzero(as_tuple=True), chosen.shape

    def pick(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0][places][None]

    def spread(module: nn.Module, inputs: Any, output: Any) -> Any:
        picked, *others = output if isinstance(output, tuple) else (output,)
        full = picked.new_zeros(*shape, picked.shape[-1]).index_put(places, picked[0])
        return (full, *others) if isinstance(output, tuple) else full

    found = dict(layer.named_modules())
    modules = [found[name] for name in PER_TOKEN if name in found]
    handles = [module.register_forward_pre_hook(pick) for module in modules]
    handles += [module.register_forward_hook(spread) for module in modules]
    # The backward pass of a checkpointed layer would run it again without the hooks. It begins with this layer, so
    # recomputing it would save no memory.
    checkpointed, layer.gradient_checkpointing = getattr(layer, "gradient_checkpointing", False), False
    try:
        yield
    finally:
        layer.gradient_checkpointing = checkpointed
        for handle in handles:
            handle.remove()
