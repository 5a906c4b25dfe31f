"""The fused LoRA layer computes what peft's layer computes, and leaves unusual cases to peft."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from vlm_core.models import fused_lora
from vlm_core.models.fused_lora import FusedLora, LoraProduct, use_fused_lora


class Own(nn.Linear):
    """A subclass with another forward, as quantised layers have."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).tanh()


class Net(nn.Module):
    def __init__(self, kind: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.one, self.two, self.head = kind(6, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.head(self.two(self.one(x).relu_()))  # models change outputs in place


def peft_model(net: nn.Module, options: dict[str, Any], *, fused: bool) -> Any:
    """Returns `net` with LoRA matrices that are not zero."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["one", "two"]} | options)
    if fused:
        use_fused_lora(config)
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(net), config)
    randomize(model)
    return model.train()


def randomize(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.5)


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    apply = LoraProduct.apply

    class Counted:
        @staticmethod
        def apply(*arguments: Any) -> torch.Tensor:
            calls.append(None)
            return apply(*arguments)

    monkeypatch.setattr(fused_lora, "LoraProduct", Counted)
    return calls


def results(model: Any, x: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Returns the output, the gradient of the input and those of all trained weights."""
    torch.manual_seed(2)  # for dropout
    x = x.clone().requires_grad_()
    output = model(x, **kwargs)
    found = {"output": output.detach()}
    if output.requires_grad:
        (output * torch.arange(1, 1 + output.numel(), device=x.device).view_as(output)).float().sum().backward()
        found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found |= {"x": x.grad} if x.grad is not None else {}
    model.zero_grad()
    return found


def require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], limit: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).norm() <= limit * tensor.norm(), name


def add_second(model: Any, active: list[str]) -> None:
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=3, target_modules=["one", "two"]))
    randomize(model)
    model.base_model.set_adapter(active)


def with_hook(model: Any) -> None:
    model.get_submodule("base_model.model.one.base_layer").register_forward_hook(lambda m, i, output: output * 2)


def with_trained_base(model: Any) -> None:
    model.get_submodule("base_model.model.one.base_layer").requires_grad_(True)


def half(model: Any) -> None:
    model.to(torch.bfloat16)


def nothing(model: Any) -> None:
    pass


# name: (options of LoRA, what is done to the model, fused layers of the two)
CASES: dict[str, tuple[dict[str, Any], Callable[[Any], Any], int]] = {
    "plain": ({}, nothing, 2),
    "rslora": ({"use_rslora": True}, nothing, 2),
    "ranks": ({"rank_pattern": {"one": 1}, "alpha_pattern": {"two": 7}}, nothing, 2),
    "initialisation": ({"init_lora_weights": "pissa"}, nothing, 2),
    "modules to save": ({"modules_to_save": ["head"]}, nothing, 2),
    "one adapted": ({"target_modules": ["one"]}, nothing, 1),
    "dropout": ({"lora_dropout": 0.5}, nothing, 0),
    "dropout in eval mode": ({"lora_dropout": 0.5}, lambda model: model.eval(), 2),
    "dora": ({"use_dora": True}, nothing, 0),
    "bias of lora": ({"lora_bias": True, "target_modules": ["one"]}, nothing, 0),
    "trained biases": ({"bias": "all"}, nothing, 1),  # `two` has no bias
    "trained base": ({}, with_trained_base, 1),
    "merged": ({}, lambda model: model.merge_adapter(), 0),
    "unmerged again": ({}, lambda model: (model.merge_adapter(), model.unmerge_adapter()), 2),
    "disabled": ({}, lambda model: model.base_model.disable_adapter_layers(), 0),
    "two adapters": ({}, lambda model: add_second(model, ["default", "other"]), 0),
    "second of two": ({}, lambda model: add_second(model, ["other"]), 2),
    "hook on the base": ({}, with_hook, 1),
    "bfloat16 throughout": ({}, half, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_pefts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, change, fused = CASES[name]
    torch.manual_seed(3)
    net, x = Net(), torch.randn(2, 5, 6)
    models = [peft_model(net, options, fused=is_fused) for is_fused in (True, False)]
    for model in models:
        change(model)
    x, limit = (x.bfloat16(), 2e-2) if change is half else (x, 1e-5)
    calls = count_products(monkeypatch)
    found, expected = (results(model, x) for model in models)
    assert len(calls) == fused
    require_equal(found, expected, limit)


def test_a_batch_of_several_adapters_is_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [peft_model(Net(), {}, fused=fused) for fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        add_second(model, ["default"])
        model.eval()
    calls = count_products(monkeypatch)
    found, expected = (results(model, torch.ones(2, 6), adapter_names=["default", "other"]) for model in models)
    assert not calls
    require_equal(found, expected)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 4, 6)])
def test_any_shape_of_input(shape: tuple[int, ...]) -> None:
    net = Net()
    found, expected = (results(peft_model(net, {}, fused=fused), torch.ones(shape)) for fused in (True, False))
    require_equal(found, expected)
    strided = torch.randn(6, 4, 3).permute(2, 1, 0)
    found, expected = (results(peft_model(net, {}, fused=fused), strided) for fused in (True, False))
    require_equal(found, expected)


@pytest.mark.parametrize(("weights", "fused"), [(torch.bfloat16, 2), (torch.float32, 0)])
def test_autocast_rounds_as_peft_does(weights: torch.dtype, fused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: a frozen base of bfloat16, and trained matrices of float32."""
    net = Net().to(weights)
    models = [peft_model(net, {}, fused=is_fused) for is_fused in (True, False)]
    calls = count_products(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (results(model, torch.randn(4, 6, generator=torch.manual_seed(5))) for model in models)
    assert len(calls) == fused
    require_equal(found, expected, 2e-2)


def test_other_layers_stay_pefts() -> None:
    model = peft_model(Net(Own), {}, fused=True)
    assert type(model.base_model.model.one) is PeftLinear
    assert type(model.base_model.model.two) is FusedLora


def test_compiled_and_checkpointed_layers_compute_the_same() -> None:
    net, x = Net(), torch.randn(5, 6)
    model = peft_model(net, {}, fused=True)
    expected = results(peft_model(net, {}, fused=False), x)
    model.base_model.model.one.compile(backend="aot_eager", fullgraph=True)
    require_equal(results(model, x), expected)
    two = model.base_model.model.two.forward
    model.base_model.model.two.forward = lambda x: torch.utils.checkpoint.checkpoint(two, x, use_reentrant=False)
    require_equal(results(model, x), expected)


def test_plain_peft_loads_the_adapter(tmp_path: Path) -> None:
    net = Net()
    model = peft_model(net, {}, fused=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(net), tmp_path)
    assert type(loaded.base_model.model.one) is PeftLinear
    x = torch.randn(4, 6)
    torch.testing.assert_close(loaded(x), model(x))
    torch.testing.assert_close(model.merge_and_unload()(x), loaded(x))
