"""LoRA over a base model that bitsandbytes quantises, with its real kernels on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import small_config, tiny_directory
from vlm_core import export
from vlm_core.arguments import export_parser
from vlm_core.config import Config
from vlm_core.data.batches import DecodedImages, shown_images
from vlm_core.data.chat_model import ChatModel
from vlm_core.data.collate import collate_tokens
from vlm_core.data.packing import pack
from vlm_core.data.token_cache import TokenDataset, TokenizedExample, build_tokens
from vlm_core.families import FAMILIES, part_of
from vlm_core.models.chat import load_chat
from vlm_core.models.freeze import count_parameters
from vlm_core.models.frozen_tower import DetachedTower, feature_inputs, vision_features
from vlm_core.models.load import load_model
from vlm_core.models.merge import merged
from vlm_core.models.model_reference import find_model
from vlm_core.models.prepare import prepare_model
from vlm_core.models.quantize import BYTES_PER_WEIGHT, is_quantized, number_of, quantized_weights
from vlm_core.models.weights import load_trained, save_weights
from vlm_core.run_directory import CONFIG
from vlm_core.training.loss import TokenLoss

QUANTIZED = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
CASES = [("nf4", "gemma3"), ("nf4", "gemma3n"), ("nf4", "qwen2_5_vl"), ("int8", "gemma3")]


def config_of(kind: str, family: str, **overrides: Any) -> Config:
    model = {"model.pretrained_model_name_or_path": f"builtin:tiny-{family}", "model.quantization": kind}
    return small_config(**model, **{"peft.dim": 4, "peft.exclude_modules": ["*vis*"]} | overrides)


def adapted(kind: str, family: str, **overrides: Any) -> Any:
    """Returns a model whose adapter changes its answers."""
    model = prepare_model(config_of(kind, family, **overrides), tiny_directory(family), FAMILIES[family], None)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def nf4() -> Any:
    return adapted("nf4", "gemma3")


def groups_of(conversations: Path, chat: ChatModel) -> list[list[TokenizedExample]]:
    tokens = TokenDataset(build_tokens(conversations, chat), "train")
    members: dict[int, list[int]] = {}
    for index, group in enumerate(tokens.groups.tolist()):
        members.setdefault(group, []).append(index)
    return [[tokens[i] for i in indices[:size]] for indices, size in zip(members.values(), [3, 1, 2], strict=False)]


def gradients(model: Any, chat: ChatModel, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = torch.stack([TokenLoss(model, chat)(batch) for batch in batches]).sum()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_packed_and_cached_gradients_equal_those_of_plain_rows(kind: str, family: str, conversations: Path) -> None:
    model, chat = adapted(kind, family), load_chat(tiny_directory(family))
    groups, images = groups_of(conversations, chat), DecodedImages.of(conversations, chat)
    examples = [example for group in groups for example in group]
    plain = [collate_tokens([example], chat) | images([example.images]) for example in examples]
    expected_loss, expected = gradients(model.train(), chat, plain)
    with torch.no_grad():  # an evaluation between steps changes nothing
        TokenLoss(model.eval(), chat)(plain[0])
    rows = [groups[:2], groups[2:]]
    features = vision_features(model, images([shown_images(rows)]), chat.family)
    grids = [grid for group in groups for grid in group[0].grids]
    cached = pack(rows, chat) | feature_inputs([*features], grids, chat)
    DetachedTower(model, chat.family)
    loss, found = gradients(model.train(), chat, [cached])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert expected.keys() == found.keys() != set()
    limit = 5e-5 if family == "gemma3n" else 1e-5  # as in full precision
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= limit * gradient.norm(), name


@pytest.mark.parametrize(("exclude", "warns"), [(["*vision_tower*"], True), (["*language_model*"], False)])
def test_fused_layers_that_quantised_weights_cannot_use_are_reported(
    exclude: list[str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tower_trains = {"freeze_config.freeze_vision_tower": False, "peft.use_triton": True}
    adapted("nf4", "gemma3", **tower_trains, **{"peft.exclude_modules": exclude})
    assert ("peft.use_triton=true has no effect on training" in caplog.text) is warns


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_only_linear_modules_of_the_language_model_are_quantised(kind: str, family: str) -> None:
    row, directory = FAMILIES[family], tiny_directory(family)
    full = load_model(directory, config_of("none", family).model)
    model = load_model(directory, config_of(kind, family).model)
    found = {name for name, module in model.named_modules() if type(module).__name__ == QUANTIZED[kind]}
    assert found == {name for name, module in full.named_modules() if is_quantized(name, module, row)} != set()
    assert {part_of(name, row) for name in found} == {"language_model"}
    others = {p.dtype for name, p in model.named_parameters() if name.rpartition(".")[0] not in found}
    assert others == {torch.float32}
    assert count_parameters(full, row).keys() == count_parameters(model, row).keys()
    for part, counts in count_parameters(full, row).items():
        assert sum(count_parameters(model, row)[part]) == sum(counts), part
    weights = [model.get_submodule(name).weight for name in found]
    assert sum(map(number_of, weights)) == sum(quantized_weights(full, row))
    states = [
        value for name in found for key, value in model.get_submodule(name).state_dict().items() if "bias" not in key
    ]
    held = sum(value.numel() * value.element_size() for value in states)
    # The plan's number leaves out what does not grow with a weight: code tables, and the rest of a block.
    assert held > BYTES_PER_WEIGHT[kind] * sum(quantized_weights(full, row)) * 0.98


def test_a_checkpoint_answers_over_the_base_that_it_was_trained_on(
    nf4: Any, conversations: Path, tmp_path: Path
) -> None:
    base, chat = tiny_directory("gemma3"), load_chat(tiny_directory("gemma3"))
    save_weights(nf4, tmp_path / "run" / "model")
    (tmp_path / "run" / CONFIG).write_text(config_of("nf4", "gemma3").to_yaml())
    files = find_model(tmp_path / "run")
    plain = find_model(tmp_path / "run", config_of("none", "gemma3").model)
    assert (files.config.quantization, plain.config.quantization) == ("nf4", "none")
    assert files.fingerprint != plain.fingerprint
    example = groups_of(conversations, chat)[0][0]
    batch = collate_tokens([example], chat) | DecodedImages.of(conversations, chat)([example.images])
    with torch.no_grad():
        expected, again, other = (
            TokenLoss(model.eval(), chat)(batch).item()
            for model in (nf4, *(load_trained(f.weights, f.base, f.config) for f in (files, plain)))
        )
    assert again == expected != other

    arguments = ["merge", "--checkpoint-path", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]
    export.main(export_parser(None).parse_args(arguments))
    merged = load_model(tmp_path / "merged", config_of("none", "gemma3").model).state_dict()
    full = load_trained(plain.weights, base, plain.config).merge_and_unload().state_dict()
    assert all(merged[name].equal(full[name]) for name in full)


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantised weights cannot train; add LoRA"):
        small_config(**{"model.quantization": "nf4"})
    for start in ("pissa", "olora", "orthogonal"):
        with pytest.raises(ValueError, match=f"init_lora_weights={start} needs full-precision weights"):
            config_of("int8", "gemma3", **{"peft.init_lora_weights": start})
    saved = config_of("nf4", "gemma3", **{"peft.modules_to_save": ["*language_model.layers.0.mlp"]})
    with pytest.raises(ValueError, match=r"modules_to_save: .*layers.0.mlp is quantised, so it cannot train"):
        prepare_model(saved, tiny_directory("gemma3"), FAMILIES["gemma3"], None)
    config = config_of("nf4", "gemma3").model
    full = load_model(tiny_directory("gemma3"), config_of("none", "gemma3").model)
    save_weights(full, tmp_path, sharded=True)
    with pytest.raises(ValueError, match="shards, which do not load quantised: give its consolidated/"):
        load_trained(tmp_path, tiny_directory("gemma3"), config)
    monkeypatch.setattr("vlm_core.models.quantize.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs pip install 'medpix-finetune\[quantization\]'"):
        load_model(tiny_directory("gemma3"), config)


@pytest.mark.parametrize("wanted", [None, True])
def test_quantised_weights_are_never_merged_for_answers(nf4: Any, wanted: bool | None) -> None:
    assert merged(nf4, wanted) is nf4
