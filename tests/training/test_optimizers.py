"""Groups of parameters and learning rates by part; optimizers with small states resume bit for bit."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils import _pytree as pytree

from tests.conftest import small_config, tiny_directory
from vlm_core.config import OptimizerConfig
from vlm_core.families import FAMILIES, GEMMA3, part_of
from vlm_core.files import read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.load import load_model
from vlm_core.models.prepare import prepare_model
from vlm_core.run_directory import METRICS, TRAINING_STATE
from vlm_core.training.checkpoint import RunProgress, Snapshot, load_state
from vlm_core.training.distributed import Ranks
from vlm_core.training.optim import build_optimizer, build_scheduler, require_optimizer, state_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of which everything trains."""
    return load_model(tiny_directory("gemma3"), small_config().model)


def groups(model: Any, ratio: float | None = None, **settings: Any) -> dict[str, tuple[float, float]]:
    """Returns (learning rate, weight decay) of each parameter that trains."""
    made = build_optimizer(model, OptimizerConfig(**settings), GEMMA3, ratio)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found


def test_all_parameters_are_one_group_unless_a_setting_divides_them(model: Any) -> None:
    made = build_optimizer(model, OptimizerConfig(lr=1e-3), GEMMA3)
    assert [len(group["params"]) for group in made.param_groups] == [len(list(model.parameters()))]
    assert set(groups(model, lr=1e-3).values()) == {(1e-3, 0.01)}


def test_each_part_has_its_learning_rate(model: Any) -> None:
    found = groups(model, lr=1e-3, lr_by_part={"projector": "1e-4", "vision_tower": 1e-5})
    for name, (lr, decay) in found.items():
        assert (lr, decay) == ({"projector": 1e-4, "vision_tower": 1e-5}.get(part_of(name, GEMMA3) or "", 1e-3), 0.01)


def test_norms_and_biases_can_do_without_decay(model: Any) -> None:
    found = groups(model, weight_decay=0.1, decay_norms_and_biases=False)
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert {name for name in found if "norm" in name or name.endswith(".bias")} == found.keys() - decayed != set()
    assert all(found[name] == (1e-5, 0.1) for name in decayed)


def test_the_schedule_scales_every_learning_rate(model: Any) -> None:
    made = build_optimizer(model, OptimizerConfig(lr=1e-3, lr_by_part={"projector": 1e-4}), GEMMA3)
    schedule = build_scheduler(made, small_config(**{"lr_scheduler.lr_warmup_steps": 4}).lr_scheduler, 10)
    made.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([2.5e-4, 2.5e-5])  # the first one is reported as lr


def test_lora_plus_speeds_up_the_b_matrices() -> None:
    peft = {"peft.dim": 4, "peft.modules_to_save": ["*multi_modal_projector"]}
    model = prepare_model(small_config(**peft), tiny_directory("gemma3"), FAMILIES["gemma3"], None)
    found = groups(model, 16.0, lr=1e-4, lr_by_part={"projector": 1e-5})
    for name, (lr, _) in found.items():
        assert lr == pytest.approx(1.6e-3 if ".lora_B." in name else 1e-4 if "lora_A" in name else 1e-5)


def test_a_part_that_does_not_train_warns(caplog: pytest.LogCaptureFixture) -> None:
    frozen = load_model(tiny_directory("gemma3"), small_config().model)
    frozen.model.vision_tower.requires_grad_(False)
    with caplog.at_level(logging.INFO):
        groups(frozen, lr=1e-3, lr_by_part={"vision_tower": 1e-5, "projector": 1e-4})
    assert "optimizer.lr_by_part.vision_tower has no effect: nothing of this part trains" in caplog.text
    assert "lr 0.0001, weight decay 0.01: 9,312 parameters" in caplog.text


@pytest.mark.parametrize(
    "rates", [{"projektor": 1e-4}, {"projector": 0}, {"projector": -1}, {"projector": "fast"}, {"audio_tower": 1e-4}]
)
def test_wrong_learning_rates_are_refused(rates: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"lr_by_part.{next(iter(rates))}"):
        OptimizerConfig(lr_by_part=rates)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("bitsandbytes.optim.PagedAdamW8bit", {}, "needs a GPU; on a CPU use bitsandbytes.optim.AdamW8bit"),
        ("bitsandbytes.optim.LARS8bit", {}, "cannot train with these settings .*momentum"),
        ("bitsandbytes.optim.SGD8bit", {}, "cannot train with these settings .*momentum"),
        ("bitsandbytes.optim.AdamW9bit", {}, "has no optimizer 'AdamW9bit'; use for example bitsandbytes.optim.AdamW8"),
        ("bitsandbytes.nn.Linear4bit", {}, "is not a torch optimizer; use for example torch.optim.AdamW, or bits"),
        ("bitsandbytes.optim.AdamW8bit", {"compute.strategy": "fsdp2"}, "does not take sharded weights"),
    ],
)
def test_an_optimizer_that_cannot_train_is_refused(target: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_optimizer(small_config(**{"optimizer._target_": target} | settings), CPU)


def test_states_take_the_bytes_that_the_plan_counts() -> None:
    kinds = {
        "torch.optim.AdamW": 8.0,
        "torch.optim.SGD": 0.0,
        "torch.optim.Adafactor": 0.0,
        "bitsandbytes.optim.AdamW8bit": 2.0,
        "bitsandbytes.optim.PagedAdamW8bit": 2.0,
        "bitsandbytes.optim.Lion8bit": 1.0,
    }
    assert {target: state_bytes(OptimizerConfig(_target_=target)) for target in kinds} == kinds


def test_betas_of_another_length_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    made = build_optimizer(
        torch.nn.Linear(2, 2), OptimizerConfig(_target_="bitsandbytes.optim.AdEMAMix8bit", betas=(0.8, 0.9))
    )
    assert made.defaults["betas"] == (0.9, 0.999, 0.9999)
    assert "optimizer.betas has no effect: AdEMAMix8bit does not take it" in caplog.text


@pytest.mark.slow
def test_a_run_over_nf4_with_8_bit_states_resumes_bit_for_bit(conversations: Path, tmp_path: Path) -> None:
    settings = {
        "model.quantization": "nf4",
        "optimizer._target_": "bitsandbytes.optim.AdamW8bit",
        "optimizer.lr_by_part": {"projector": 1e-4},
        "optimizer.decay_norms_and_biases": False,
        "peft": {"dim": 64, "use_dora": True, "loraplus_lr_ratio": 4, "modules_to_save": ["*multi_modal_projector"]},
        "step_scheduler": {"global_batch_size": 4, "max_steps": 4, "ckpt_every_steps": 2, "val_every_steps": None},
    }  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    middle = {"checkpoint.restore_from": str(whole / "epoch_0_step_2")}
    for directory, changes in ((whole, {}), (resumed, middle)):
        finetune(
            small_config(**settings, **{"checkpoint.checkpoint_dir": str(directory)} | changes), Ranks(), conversations
        )
    curves = [
        {r["step"]: (r["loss"], r["grad_norm"], r["lr"]) for r in read_json_lines(run / METRICS)[0]}
        for run in (whole, resumed)
    ]
    assert curves[1] == {step: curves[0][step] for step in (3, 4)}
    saved = "epoch_0_step_4/model/adapter_model.safetensors"
    assert (whole / saved).read_bytes() == (resumed / saved).read_bytes()
    states = [
        torch.load(run / "epoch_0_step_4" / TRAINING_STATE, weights_only=True)["optimizer"] for run in (whole, resumed)
    ]
    assert any(value.dtype == torch.uint8 for value in pytree.tree_leaves(states[0]) if isinstance(value, torch.Tensor))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


SMALL = ["bitsandbytes.optim.AdamW8bit", "bitsandbytes.optim.Lion8bit", "torch.optim.Adafactor"]
SMALL += [f"torchao.optim.{name}" for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8")]


@pytest.mark.parametrize("target", SMALL)
def test_an_optimizer_with_small_states_resumes_bit_for_bit(target: str, tmp_path: Path) -> None:
    if target.startswith("torchao"):
        pytest.importorskip("torchao")  # not in an extra
    config = OptimizerConfig(_target_=target, lr=1e-2)

    def steps(optimizer: Any, parameter: torch.Tensor, numbers: range) -> None:
        for number in numbers:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            with torch.compiler.set_stance("force_eager"):
                optimizer.step()

    models = [torch.nn.Linear(128, 128, bias=False) for _ in range(2)]
    whole = build_optimizer(models[0], config)
    steps(whole, models[0].weight, range(3))
    snapshot = Snapshot({}, {"optimizer": whole.state_dict(), "scheduler": {}}, RunProgress("")).copy()
    torch.save(snapshot.training_state, tmp_path / TRAINING_STATE)
    models[1].load_state_dict(models[0].state_dict())
    resumed = build_optimizer(models[1], config)
    resumed.load_state_dict(load_state(tmp_path)["optimizer"])
    for optimizer, model in zip((whole, resumed), models, strict=True):
        steps(optimizer, model.weight, range(3, 6))
    assert models[0].weight.equal(models[1].weight)
    assert state_bytes(config) < 3
