"""Liger's fused loss and its gradients equal those of the plain path; kernels run in triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import small_config
from vlm_core.config.training import FUSED_LOSS
from vlm_core.families import FAMILIES
from vlm_core.models.chat import load_chat
from vlm_core.models.load import load_model
from vlm_core.training.loss import TokenLoss


@pytest.mark.slow
def test_loss_and_gradients_equal_the_plain_path(conversations: Path) -> None:
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    call = [sys.executable, "-m", "tests.training.fused_gradients"]
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured = {name: found for line in done.stdout.splitlines() for name, found in json.loads(line).items()}
    assert measured.keys() == FAMILIES.keys()
    for found in measured.values():
        plain, ours = found["losses"]
        assert ours == pytest.approx(plain, rel=1e-6)
        assert found["parameters"] > 30
        assert found["gradients"] < 1e-5


def test_a_head_that_is_not_a_linear_layer_is_refused(tiny_gemma3: Path) -> None:
    model = load_model(tiny_gemma3, small_config().model)
    model.lm_head = torch.nn.Sequential(model.lm_head)  # as with a LoRA layer around it
    with pytest.raises(ValueError, match="lm_head to be a plain nn.Linear"):
        TokenLoss(model, load_chat(tiny_gemma3), fused=True)


def test_it_is_an_option_of_the_config() -> None:
    assert small_config(**{"loss_fn._target_": FUSED_LOSS}).loss_fn.is_fused
    assert not small_config().loss_fn.is_fused
