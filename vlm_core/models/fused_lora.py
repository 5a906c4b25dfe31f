"""LoRA as one autograd function: the base product and the adapter's, for the plain case of a linear layer.

peft adds the adapter with separate operations: a scaled copy and a sum as large as the layer's output, and gradient
products in a slow orientation. `LoraProduct` accumulates into the base product instead, and keeps only the layer's
input and the adapter's narrow product for the backward pass. Names of weights, saving and loading stay peft's.

A Triton kernel for the addition would save nothing: `addmm_` is one product of cuBLAS that reads and writes the output
once, N * out * 2 * 2 bytes in bfloat16 (84 MB for 2,048 tokens and 10,240 outputs). A kernel that adds to the base
product moves the same bytes. Only one that computes the base product too would move fewer: it would replace cuBLAS.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def use_fused_lora(config: LoraConfig) -> None:
    """Makes `get_peft_model` create a `FusedLora` for each plain linear layer; others get peft's own layers."""
    layers: Any = {nn.Linear: _fused_layer}
    config._register_custom_module(layers)


def has_fused_layer(model: nn.Module) -> bool:
    """Returns whether `use_fused_lora` applied to any layer of `model`."""
    return any(isinstance(module, FusedLora) for module in model.modules())


def _fused_layer(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> "FusedLora | None":
    """Returns the layer for `target`, or None: then peft chooses, for example for a quantised subclass of Linear."""
    if type(target) is not nn.Linear:
        return None
    return FusedLora(target, adapter_name, config=config, **kwargs)


class FusedLora(PeftLinear):
    """peft's linear layer with LoRA. `forward` computes the plain case in one function and leaves the rest to peft."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or not self._is_plain(names[0]):
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        down: Any = self.lora_A[names[0]].weight
        up: Any = self.lora_B[names[0]].weight
        dtype: torch.dtype = base.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            if torch.get_autocast_dtype(x.device.type) != dtype:
                return super().forward(x)
            x, down, up = x.to(dtype), down.to(dtype), up.to(dtype)
        if not x.dtype == down.dtype == up.dtype == dtype:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        # Reshaped out here: a model may change the output in place, which autograd forbids for a view made inside.
        product = LoraProduct.apply(rows, base.weight, base.bias, down, up, self.scaling[names[0]])
        return product.view(*x.shape[:-1], len(base.weight))

    def _is_plain(self, name: str) -> bool:
        """Returns whether the layer computes `base(x) + scaling * B(A(x))` with a frozen base and nothing else."""
        if name not in self.lora_A or name in self.lora_variant or self.fan_in_fan_out:
            return False
        dropout, layers = self.lora_dropout[name], (self.base_layer, self.lora_A[name], self.lora_B[name])
        return (
            (isinstance(dropout, nn.Identity) or not dropout.training)
            and all(type(layer) is nn.Linear and not any(getattr(layer, hooks) for hooks in HOOKS) for layer in layers)
            and layers[1].bias is None
            and layers[2].bias is None
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
        )


class LoraProduct(torch.autograd.Function):
    """`x W^T + bias + scale (x A^T) B^T` for x (N, in), W (out, in), A (r, in) and B (out, r), all of one dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        narrow = x @ down.T
        product = nn.functional.linear(x, weight, bias)
        product.addmm_(narrow, up.T, alpha=scale)
        ctx.save_for_backward(x, narrow, weight, down, up)
        ctx.scale = scale
        return product

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]  # the decorator's type has no names
        ctx: Any, *grad_outputs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grad_outputs
        x, narrow, weight, down, up = ctx.saved_tensors
        # A copy of B by columns: 1.4 times as fast on a CPU.
        grad_narrow = (grad @ up.T.contiguous().T).mul_(ctx.scale)
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_narrow, down)
        if ctx.needs_input_grad[3]:
            grad_down = grad_narrow.T @ x
        if ctx.needs_input_grad[4]:
            grad_up = (narrow.T @ grad).T * ctx.scale  # `grad.T @ narrow` takes four to seven times as long on a CPU
        return grad_x, None, None, grad_down, grad_up, None
