"""Each option of LoRA changes what it should and nothing else; the adapter loads in plain peft and merges."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError

from tests.conftest import small_config, tiny_directory
from vlm_core.config import Config, ModelConfig, PeftConfig
from vlm_core.families import FAMILIES, GEMMA3, part_of
from vlm_core.models.derived_family import family_of
from vlm_core.models.load import load_model
from vlm_core.models.lora import adapter_sizes, apply_lora, select_experts
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import load_adapter_weights, save_weights

FROZEN = {"vision_tower", "embeddings"}
BATCH = {
    "input_ids": torch.arange(300, 340)[None],
    "attention_mask": torch.ones(1, 40, dtype=torch.long),
    "token_type_ids": torch.zeros(1, 40, dtype=torch.long),
}
PROJECTOR = "model.multi_modal_projector"


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(tiny_directory("gemma3"), small_config().model)


def made(base: Any, frozen: set[str] = FROZEN, **options: Any) -> Any:
    torch.manual_seed(0)
    return apply_lora(copy.deepcopy(base), PeftConfig(**{"dim": 4, "alpha": 8} | options), GEMMA3, frozen).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**BATCH).logits


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def disturb(model: Any) -> None:
    """Moves everything that trains a little, as steps would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.05 * torch.randn_like(parameter)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "pissa_patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"*q_proj": 2},
        "alpha_pattern": {"*mlp*": 3},
        "use_rslora": True,
    },
    "olora": {"init_lora_weights": "olora", "use_rslora": True},
    "patterns": {"rank_pattern": {"*q_proj": 2, "*layers.0.*": 3}, "alpha_pattern": {"*mlp*": 16}},
    "projector": {"modules_to_save": ["*multi_modal_projector*"]},
    "rslora_dora": {"use_rslora": True, "use_dora": True, "modules_to_save": ["*soft_emb_norm"]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_starts_at_the_base_model_and_loads_in_plain_peft(name: str, base: Any, tmp_path: Path) -> None:
    model = made(base, **OPTIONS[name])
    config = PeftConfig(**{"dim": 4, "alpha": 8} | OPTIONS[name])
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in trained(model).values()) == sum(adapter_sizes(base, config, GEMMA3, FROZEN).values())
    disturb(model)
    expected = logits(model)
    assert (expected - logits(base)).abs().max() > 0.01
    save_weights(model, tmp_path)
    again: Any = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(again.merge_and_unload()), expected, rtol=1e-3, atol=1e-3)
    resumed = made(base, **OPTIONS[name])
    load_adapter_weights(resumed, tmp_path)
    assert all(parameter.equal(trained(resumed)[key]) for key, parameter in trained(model).items())
    assert logits(resumed).equal(expected)


NO_EFFECT = "peft.use_triton=true has no effect on training"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_triton": True}, None),
        ({"use_triton": True, "dropout": 0.1}, "peft.dropout=0.1"),
        ({"use_triton": True, "use_dora": True}, "peft.use_dora=true"),
        ({"use_triton": False, "dropout": 0.1}, None),
        ({"dropout": 0.1}, None),  # the default is not the user's wish
    ],
)
def test_fused_layers_that_nothing_uses_are_reported(
    options: dict[str, Any], reason: str | None, base: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made(base, target_modules=["*layers.0.self_attn.q_proj"], **options)
    assert (NO_EFFECT in caplog.text) is (reason is not None)
    assert (reason or "") in caplog.text


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in trained(model).items()}


def test_options_that_scale_change_only_the_scale(base: Any) -> None:
    plain, scaled = made(base), made(base, use_rslora=True)
    assert shapes(plain) == shapes(scaled)
    assert all(parameter.equal(trained(scaled)[name]) for name, parameter in trained(plain).items())
    scales = [
        {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
        for model in (plain, scaled, made(base, alpha_pattern={"*mlp*": 16}))
    ]
    assert scales == [{2.0}, {4.0}, {2.0, 4.0}]


def test_patterns_set_ranks_of_the_modules_that_they_name(base: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain, other = shapes(made(base)), shapes(made(base, rank_pattern={"*q_proj": 2, "*layers.0.*": 3}))
    ranks = {name: shape[0] for name, shape in other.items() if ".lora_A." in name}
    for name, rank in ranks.items():
        assert rank == (3 if ".layers.0." in name else 2 if "q_proj" in name else 4)
    assert plain.keys() == other.keys()
    made(base, alpha_pattern={"q_proj": 1})
    assert "peft.alpha_pattern has no effect for 'q_proj': it matches no adapted module" in caplog.text


def test_starts_differ_only_in_the_matrices(base: Any) -> None:
    plain = made(base)
    for start in ("gaussian", "orthogonal"):
        model = made(base, init_lora_weights=start)
        changed = {n for n, p in trained(model).items() if not p.equal(trained(plain)[n])}
        assert {n for n in changed if ".lora_A." in n}
        assert {n.partition(".lora_")[1] for n in changed} == {".lora_"}
        frozen = dict(base.named_parameters())
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                assert parameter.equal(frozen[name.removeprefix("base_model.model.").replace(".base_layer", "")])


def test_dora_adds_one_length_per_output(base: Any) -> None:
    plain, dora = shapes(made(base)), shapes(made(base, use_dora=True))
    added = {name: shape for name, shape in dora.items() if name not in plain}
    assert all(".lora_magnitude_vector." in name for name in added)
    assert len(added) == sum(".lora_A." in name for name in plain)
    assert {name: dora[name] for name in plain} == plain


def test_a_projector_trains_beside_the_adapter(base: Any) -> None:
    plain, saved = shapes(made(base)), shapes(made(base, modules_to_save=["*multi_modal_projector*"]))
    added = {name.removeprefix("base_model.model.") for name in saved.keys() - plain.keys()}
    own = {name for name, _ in base.named_parameters() if name.startswith(f"{PROJECTOR}.")}
    assert {name.replace(".modules_to_save.default", "") for name in added} == own
    assert len(own) == 2  # a matrix and a norm, which LoRA cannot adapt


@pytest.mark.parametrize(
    ("frozen", "pattern", "message"),
    [
        (FROZEN, "*projektor*", "matches no module; patterns match full names"),
        (FROZEN, "projector", "matches no module"),
        (set(), "lm_head", "shares .* with another module"),
        (set(), "*embed_tokens", "shares .* with another module"),
        (FROZEN | {"projector"}, "*multi_modal_projector", "freeze_projector=true; set that to false"),
        (FROZEN, "*avg_pool", "has no weights"),
        (FROZEN, "model.language_model.layers", "is a list of modules"),
    ],
)
def test_modules_that_cannot_be_saved_are_refused(base: Any, frozen: set[str], pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"peft\.modules_to_save.*{message}"):
        made(base, frozen, modules_to_save=[pattern])


def test_modules_that_are_saved_are_not_adapted_too(base: Any) -> None:
    model = made(base, modules_to_save=["*language_model.layers.0.mlp"])
    assert not [name for name in trained(model) if "language_model.layers.0.mlp." in name and "lora_" in name]
    assert [name for name in trained(model) if ".layers.0.mlp." in name and "modules_to_save" in name]


def test_the_vision_tower_can_be_adapted(base: Any) -> None:
    parts = {part_of(name.removeprefix("base_model.model."), GEMMA3) for name in trained(made(base, {"embeddings"}))}
    assert parts == {"vision_tower", "language_model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "corda"}, "'corda' is not supported, because it takes a product"),
        ({"init_lora_weights": "false"}, "random changes of the model"),
        ({"init_lora_weights": False}, "random changes of the model"),
        ({"init_lora_weights": "loftq"}, "beside the quantised ones"),
        ({"init_lora_weights": "pizza"}, "is not an initialisation of peft; use one of true, gaussian"),
        ({"init_lora_weights": "pissa_niter_N"}, "is not an initialisation of peft"),
        ({"init_lora_weights": "pissa_niter_0"}, "is not an initialisation of peft"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "exclude each other"),
        ({"loraplus_lr_ratio": 0}, "greater than 0"),
        ({"rank_pattern": {"*": 0}}, "greater than or equal to 1"),
        ({"init_lora_weights": "orthogonal", "dim": 3}, "even rank"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"*": 5}}, "even rank"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PeftConfig(**options)


def test_experts_take_ranks_but_neither_dora_nor_starts_from_the_weights(tmp_path: Path) -> None:
    directory = tiny_directory("gemma4_26b")
    family = family_of(directory)
    model = load_model(directory, ModelConfig(pretrained_model_name_or_path=str(directory), torch_dtype="float32"))
    for options in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ValueError, match=r"experts.*or add '\*experts\*' to peft.exclude_modules"):
            select_experts(model, PeftConfig(**options), family, FROZEN)
    config = PeftConfig(dim=2, rank_pattern={"*experts*": 3, "*q_proj": 1}, use_rslora=True)
    sizes = adapter_sizes(model, config, family, FROZEN)
    adapted = apply_lora(model, config, family, FROZEN)
    assert sum(sizes.values()) == sum(p.numel() for p in trained(adapted).values())


def test_every_option_prepares_from_a_config(tmp_path: Path) -> None:
    """Through the config, as a run does: the start is the same in every process, so that a run resumes."""
    config: Config = small_config(**{"peft.dim": 4, "peft.init_lora_weights": "pissa_niter_2"})
    models = [prepare_model(config, tiny_directory("gemma3"), FAMILIES["gemma3"], None) for _ in range(2)]
    assert all(p.equal(dict(models[1].named_parameters())[name]) for name, p in models[0].named_parameters())
    save_weights(models[0], tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["init_lora_weights"]) == (8, True)
