"""The space of a sweep: what it means, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from vlm_core.recipe import load_config
from vlm_core.search_space import Choice, Span, has, parse_space, read_space

LORA = "gemma3_4b_lora"


def parsed(text: str, recipe: str = LORA, **overrides: Any) -> Any:
    return parse_space(read_space(text), recipe, overrides)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("optimizer.lr: {log: [1e-6, 1e-3]}", Span(1e-6, 1e-3, log=True, whole=False)),  # YAML 1.1 reads these as text
        ("optimizer: {lr: {log: [0.1, 1]}}", Span(0.1, 1, log=True, whole=False)),
        ("optimizer.lr_by_part: {projector: [null, 1e-4]}", Choice((None, 1e-4))),
        ("peft.dropout: {linear: [0, 0.2]}", Span(0, 0.2, log=False, whole=False)),
        ("peft.dim: [8, '16']", Choice((8, 16))),
        ("peft.dim: {log: [4, 64.0]}", Span(4, 64, log=True, whole=True)),
        ("peft.target_modules: ['*q_proj', ['*q_proj', '*v_proj']]", Choice((["*q_proj"], ["*q_proj", "*v_proj"]))),
        ("freeze_config.freeze_projector: [true, false]", Choice((True, False))),
        ("optimizer.betas: [[0.9, 0.95], [0.9, 0.999]]", Choice(([0.9, 0.95], [0.9, 0.999]))),
        ("model.image_processor: {max_pixels: [100, 200]}", Choice((100, 200))),
    ],
)
def test_what_an_entry_means(text: str, dimension: Choice | Span) -> None:
    assert list(parsed(text).values()) == [dimension]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("optimizer.lrr: [1, 2]", "unknown config key 'optimizer.lrr'; nearest: 'optimizer.lr'"),
        ("optimizer.lr: {log: [0, 1]}", "a logarithmic scale needs bounds above 0"),
        ("optimizer.lr: {log: [1e-3, 1e-5]}", "the first one below the second one"),
        ("optimizer.lr: {log: [1e-3, .inf]}", "must be finite"),
        ("optimizer.lr: {log: [a, b]}", "log needs two numbers"),
        ("optimizer.lr: {log: 3}", "log needs two numbers"),
        ("optimizer.lr: {linear: [-1, 1]}", "optimizer.lr=-1: Input should be greater than 0"),
        ("optimizer.lr: {normal: [0, 1]}", "neither a list of choices nor {log:"),
        ("optimizer.lr: {log: [1e-5, 1e-3], linear: [1, 2]}", "neither a list of choices"),
        ("optimizer.lr: 1e-4", "neither a list of choices"),
        ("optimizer.lr: null", "neither a list of choices"),
        ("optimizer.lr: [1e-4]", "two or more different choices"),
        ("optimizer.lr: [1e-4, 0.0001]", "two or more different choices"),
        ("peft.dim: [0, 8]", "peft.dim=0: Input should be greater than or equal to 1"),
        ("peft.dim: {linear: [8, 32.5]}", "peft.dim=32.5: Input should be a valid integer"),
        ("lr_scheduler.lr_decay_style: [cosine, cosin]", "lr_decay_style='cosin'"),
        ("freeze_config.freeze_projector: {linear: [0, 1]}", "is not a number: list its choices"),
        ("compute.nproc_per_node: [1, 2]", "the section compute does not change the model"),
        ("evaluation: {batch_size: [1, 2]}", "the section evaluation does not change the model"),
        ("optimizer: [1, 2]", "unknown config key 'optimizer'"),
        ("{}", "it has no keys; write at least one"),
        ("[1, 2]", "must be a mapping of config keys"),
        ("no_such_file.yaml", "neither YAML such as .* nor a file"),
        ("optimizer.lr: [1", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parsed(text)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"peft.dim=0.*; unknown config key 'x'"):
        parsed("{peft.dim: [0, 8], x: [1, 2]}")


def test_a_section_that_is_null_has_to_be_set_first() -> None:
    with pytest.raises(ValueError, match="peft is null in the recipe; set it"):
        parsed("peft.dim: [8, 16]", "demo")
    assert parsed("peft.dim: [8, 16]", "demo", peft={})


def test_a_space_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("peft.dim: [8, 16]\n")
    assert parsed(str(tmp_path / "space.yaml")) == parsed("peft.dim: [8, 16]")


def test_whether_a_config_lies_in_a_space() -> None:
    config = load_config(LORA, {"optimizer.lr": 1e-4, "peft.dim": 8})
    for text, expected in (
        ("{optimizer.lr: {log: [1e-5, 1e-4]}, peft.dim: [8, 16]}", True),
        ("optimizer.lr: {log: [1e-5, 9e-5]}", False),
        ("peft.dim: [16, 32]", False),
        ("step_scheduler.max_steps: {linear: [1, 9]}", False),  # null in the recipe
    ):
        assert has(parsed(text), config) is expected
