"""EVA: LoRA's matrices start in the main directions of the training data, and a resumed run keeps their ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tests.conftest import small_config, tiny_directory
from vlm_core.config import PeftConfig
from vlm_core.data.batches import DecodedImages, build_batches
from vlm_core.data.token_cache import TokenDataset, build_tokens
from vlm_core.families import GEMMA3
from vlm_core.models.chat import load_chat
from vlm_core.models.load import load_model
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import save_weights
from vlm_core.training import data_start
from vlm_core.training.data_start import FirstBatches, start_from_data
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss

EVA = {"peft.dim": 4, "peft.init_lora_weights": "eva", "peft.rank_pattern": {"*q_proj": 6}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches(small_conversations: Path) -> Any:
    chat = load_chat(tiny_directory("gemma3"))
    tokens = TokenDataset(build_tokens(small_conversations, chat), "train")
    return build_batches(small_config(), tokens, DecodedImages.of(small_conversations, chat), chat)


def new_model(resumed: Path | None = None, **changes: Any) -> Any:
    return prepare_model(small_config(**EVA | changes), tiny_directory("gemma3"), GEMMA3, resumed)


def started(batches: Any, **changes: Any) -> Any:
    model = new_model(**changes)
    start_from_data(model, batches.chat, FirstBatches(batches, [range(16), range(16, 32)]), Ranks(), CPU)
    return model


@pytest.fixture(scope="module")
def model(batches: Any) -> Any:
    return started(batches)


def adapted(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def loss(model: Any, batches: Any) -> float:
    (first,) = batches.micro_batches(range(8), 0, 1)
    with torch.no_grad():
        return TokenLoss(model, batches.chat)(batches.batch(first)).item()


def test_matrices_are_the_main_directions_of_what_reaches_a_module(model: Any, batches: Any) -> None:
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in adapted(model)}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
        for name, module in adapted(model).items()
    ]
    for batch in (batches.batch(m) for s in (range(16), range(16, 32)) for m in batches.micro_batches(s, 0, 1)):
        with torch.no_grad():
            TokenLoss(model, batches.chat)(batch)
        for inputs in seen.values():
            inputs[-1] = inputs[-1][batch["group_ids"] > 0]  # no padding
    for hook in hooks:
        hook.remove()
    for name, module in adapted(model).items():
        inputs = torch.cat(seen[name])
        down = module.lora_A["default"].weight
        directions = torch.linalg.svd(inputs - inputs.mean(dim=0), full_matrices=False).Vh[: len(down)]
        assert torch.allclose(down @ down.T, torch.eye(len(down)), atol=1e-4)
        assert (down @ directions.T).square().sum() > 0.9 * len(down), name


def test_ranks_move_to_modules_that_need_them(model: Any, batches: Any) -> None:
    before, after = adapted(new_model()), adapted(model)
    ranks = {name: after[name].r["default"] if name in after else 0 for name in before}
    assert sum(ranks.values()) == sum(module.r["default"] for module in before.values())
    assert len({rank for name, rank in ranks.items() if not name.endswith("q_proj")}) > 1
    for name, module in after.items():
        assert module.scaling["default"] == pytest.approx(before[name].scaling["default"])
        assert not module.lora_B["default"].weight.any()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    base = load_model(tiny_directory("gemma3"), small_config().model)
    assert loss(model, batches) == pytest.approx(loss(base, batches), rel=1e-6)


def test_the_start_is_the_same_each_time_and_leaves_the_random_numbers_alone(model: Any, batches: Any) -> None:
    state = dict(model.state_dict())
    new_model()
    expected = torch.rand(3)
    again = started(batches)
    assert torch.rand(3).equal(expected)
    assert again.state_dict().keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in again.state_dict().items())


def test_a_checkpoint_brings_its_ranks(model: Any, batches: Any, tmp_path: Path) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    save_weights(model, tmp_path)
    base = load_model(tiny_directory("gemma3"), small_config().model)
    assert loss(PeftModel.from_pretrained(base, tmp_path), batches) == pytest.approx(loss(model, batches), rel=1e-5)
    resumed = new_model(tmp_path)
    state = dict(model.state_dict())
    assert resumed.state_dict().keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in resumed.state_dict().items())
    assert loss(resumed, batches) == loss(model, batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft.dim": 49, "peft.rank_pattern": {}}, r"98 directions, twice the rank, and .* has 96 inputs: lower"),
        ({"model.quantization": "nf4", "peft.dim": 49}, "98 directions"),
    ],
)
def test_ranks_that_the_inputs_do_not_have_are_refused(changes: dict[str, Any], message: str, batches: Any) -> None:
    with pytest.raises(ValueError, match=message):
        started(batches, **changes)


def test_a_start_that_never_settles_is_an_error(batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_start, "MOST_PASSES", 3)
    with pytest.raises(ValueError, match="after 3 forward passes the directions still change"):
        started(batches)


def test_modules_that_the_data_does_not_reach_are_named(batches: Any) -> None:
    """Texts alone do not reach the vision tower."""
    model = new_model(**{"freeze_config.freeze_vision_tower": False})
    first = FirstBatches(batches, [range(8)])
    without = {"input_ids": torch.arange(300, 340)[None], "labels": torch.arange(300, 340)[None]}
    without |= {"token_type_ids": torch.zeros(1, 40, dtype=torch.long)}
    first.batches = type("Texts", (), {"batch": staticmethod(lambda _: without)})()
    with pytest.raises(ValueError, match=r"does not use \d+ of the adapted modules, such as model.vision_tower"):
        start_from_data(model, batches.chat, first, Ranks(), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute.strategy": "fsdp2"}, "runs the full model before the first step"),
        ({"peft.init_lora_weights": "corda"}, "'corda' is not supported, because it takes a product"),
        ({"peft.init_lora_weights": "lora_ga"}, "'lora_ga' is not supported, because it takes a product"),
    ],
)
def test_what_cannot_start_from_the_data_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**EVA | changes)


def test_quantised_weights_take_it_too() -> None:
    assert small_config(**EVA, **{"model.quantization": "nf4"}).peft == PeftConfig(
        dim=4, init_lora_weights="eva", rank_pattern={"*q_proj": 6}
    )
