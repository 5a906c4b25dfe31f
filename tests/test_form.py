"""The form: every field of a section, empty by default; what is filled changes the recipe, and nothing else does."""

from typing import Any

import pytest
from pydantic import ValidationError

from vlm_core.config import (
    ClusterConfig,
    ComputeConfig,
    EvaluationConfig,
    OptimizerConfig,
    PeftConfig,
    RegistryConfig,
    StepSchedulerConfig,
)
from vlm_core.form import form_of, form_overrides
from vlm_core.recipe import load_config

Optimizer, Peft, Steps, Registry = map(form_of, (OptimizerConfig, PeftConfig, StepSchedulerConfig, RegistryConfig))


def loaded(tuning: Any = "as in the recipe", recipe: str = "demo", **sections: Any) -> Any:
    return load_config(recipe, form_overrides(recipe, tuning, sections))


def test_an_empty_form_is_the_recipe() -> None:
    empty = {"optimizer": Optimizer(), "peft": Peft(), "step_scheduler": Steps(), "registry": Registry()}
    for recipe in ("demo", "gemma3_4b_lora"):
        assert loaded(recipe=recipe, **empty) == load_config(recipe)


def test_a_field_leaves_its_siblings_alone() -> None:
    config = loaded(optimizer=Optimizer(lr="2e-5"), step_scheduler=Steps(max_steps=7))
    recipe = load_config("demo")
    assert config.optimizer == recipe.optimizer.model_copy(update={"lr": 2e-5})
    assert config.step_scheduler == recipe.step_scheduler.model_copy(update={"max_steps": 7})


def test_one_parameter_takes_a_run_to_a_cluster() -> None:
    form = form_of(ComputeConfig)
    assert loaded(compute=form(launcher="slurm")).compute == ComputeConfig(launcher="slurm")
    filled = form(launcher="slurm", nodes=2, cluster={"partition": "gpu"})
    cluster = ClusterConfig(partition="gpu")
    assert loaded(compute=filled).compute == ComputeConfig(launcher="slurm", nodes=2, cluster=cluster)
    assert form(cluster={}).model_dump() == {}


def test_tuning_adds_lora_or_takes_it_away() -> None:
    assert loaded("lora").peft == PeftConfig()
    assert loaded("lora", peft=Peft(dim=4)).peft == PeftConfig(dim=4)
    assert loaded("lora", "gemma3_4b_lora").peft == load_config("gemma3_4b_lora").peft
    assert loaded("full", "gemma3_4b_lora").peft is None
    with pytest.raises(ValueError, match=r"has no LoRA: empty peft\.dim"):
        loaded("full", peft=Peft(dim=4))
    with pytest.raises(ValueError, match=r"has no LoRA: empty peft\.dim, or choose tuning=lora"):
        loaded(peft=Peft(dim=4))
    assert loaded(recipe="gemma3_4b_lora", peft=Peft(dim=4)).peft.dim == 4


def test_yes_and_no_are_choices_since_an_untouched_switch_would_say_no() -> None:
    assert loaded(registry=Registry(promote="no")).registry.promote is False
    assert loaded(registry=Registry(require_interval="yes")).registry.require_interval is True
    assert loaded(registry=Registry()).registry.promote is True


@pytest.mark.parametrize(
    "section",
    [OptimizerConfig, PeftConfig, StepSchedulerConfig, EvaluationConfig, RegistryConfig, ClusterConfig, ComputeConfig],
)
def test_the_schema_has_what_the_config_says_and_no_defaults(section: Any) -> None:
    form = form_of(section)
    schema, original = form.model_json_schema(), section.model_json_schema()["properties"]
    assert schema["properties"].keys() == original.keys() - {"_target_"}  # no form names a function
    assert "required" not in schema
    assert form().model_dump() == {}
    for name, field in schema["properties"].items():
        assert "default" not in field
        assert "null" not in str(field.get("anyOf", ""))
        assert field["description"].startswith(original[name]["description"])
        for bound in ("minimum", "maximum", "exclusiveMinimum", "enum"):
            assert original[name].get(bound) in (None, field.get(bound))


def test_bounds_hold_and_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Optimizer(lr=-1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Optimizer(lrr=1)
