"""LoRA matrices are merged for answering where that only rounds, or where the user asks for it."""

import copy
import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from vlm_core.models.merge import merged


class Quantised(nn.Linear):
    """A linear layer with weights of integers, as those of bitsandbytes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.int8), requires_grad=False)


def adapted(kind: type[nn.Linear] = nn.Linear, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(kind(6, 8), nn.Linear(8, 4))
    net = net.to(dtype) if kind is nn.Linear else net
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], **options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    return model


@pytest.mark.parametrize(
    ("dtype", "wanted", "is_merged"),
    [
        (torch.float32, None, True),
        (torch.float32, True, True),
        (torch.float32, False, False),
        (torch.bfloat16, None, False),
        (torch.bfloat16, True, True),
    ],
)
def test_only_float32_is_merged_unasked(dtype: torch.dtype, wanted: bool | None, is_merged: bool) -> None:
    model, x = adapted(dtype=dtype), torch.randn(5, 6, dtype=dtype)
    found = merged(copy.deepcopy(model), wanted)
    assert any(isinstance(module, LoraLayer) for module in found.modules()) == (not is_merged)
    limit = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found(x), model(x), rtol=limit, atol=limit)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["1"]}])
def test_every_kind_of_lora_is_merged(options: dict[str, Any]) -> None:
    model, x = adapted(**options), torch.randn(5, 6)
    expected = model(x)
    torch.testing.assert_close(merged(model, None)(x), expected, rtol=1e-5, atol=1e-5)


def test_a_quantised_base_is_never_merged(caplog: pytest.LogCaptureFixture) -> None:
    model = adapted(Quantised)
    with caplog.at_level(logging.WARNING):
        assert merged(model, None) is model
        assert not caplog.text
        assert merged(model, True) is model
    assert "evaluation.merge_lora=true has no effect: the base model is quantised" in caplog.text
    plain = nn.Linear(2, 2)
    assert merged(plain, True) is plain
