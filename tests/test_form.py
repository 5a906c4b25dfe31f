"""The form has every field of a section, empty by default; only filled fields change the recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import preprocess_schema, validate
from pydantic import ValidationError

from pipelines.evaluate import medpix_evaluate
from pipelines.finetune import medpix_finetune
from pipelines.sweep import medpix_sweep
from pipelines.watch import medpix_retrain_watch
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
from vlm_core.recipe import load_config, recipe_names

Optimizer, Peft, Steps, Registry = map(form_of, (OptimizerConfig, PeftConfig, StepSchedulerConfig, RegistryConfig))


def loaded(tuning: Any = "as in the recipe", recipe: str = "demo", **sections: Any) -> Any:
    return load_config(recipe, form_overrides(recipe, tuning, sections))


def test_an_empty_form_is_the_recipe() -> None:
    empty = {"optimizer": Optimizer(), "peft": Peft(), "step_scheduler": Steps(), "registry": Registry()}
    for recipe in ("demo", "gemma3_4b_lora"):
        assert loaded(recipe=recipe, **empty) == load_config(recipe)


def test_a_field_does_not_change_its_siblings() -> None:
    config = loaded(optimizer=Optimizer(lr="2e-5"), step_scheduler=Steps(max_steps=7))
    recipe = load_config("demo")
    assert config.optimizer == recipe.optimizer.model_copy(update={"lr": 2e-5})
    assert config.step_scheduler == recipe.step_scheduler.model_copy(update={"max_steps": 7})


def test_one_parameter_moves_a_run_to_a_cluster() -> None:
    form = form_of(ComputeConfig)
    assert loaded(compute=form(launcher="slurm")).compute == ComputeConfig(launcher="slurm")
    filled = form(launcher="slurm", nodes=2, cluster={"partition": "gpu"})
    cluster = ClusterConfig(partition="gpu")
    assert loaded(compute=filled).compute == ComputeConfig(launcher="slurm", nodes=2, cluster=cluster)
    assert form(cluster={}).model_dump() == {}


def test_tuning_adds_or_removes_lora() -> None:
    assert loaded("lora").peft == PeftConfig()
    assert loaded("lora", peft=Peft(dim=4)).peft == PeftConfig(dim=4)
    assert loaded("lora", "gemma3_4b_lora").peft == load_config("gemma3_4b_lora").peft
    assert loaded("full", "gemma3_4b_lora").peft is None
    with pytest.raises(ValueError, match=r"has no LoRA: empty peft\.dim"):
        loaded("full", peft=Peft(dim=4))
    with pytest.raises(ValueError, match=r"has no LoRA: empty peft\.dim, or choose tuning=lora"):
        loaded(peft=Peft(dim=4))
    assert loaded(recipe="gemma3_4b_lora", peft=Peft(dim=4)).peft.dim == 4


def test_booleans_are_choices_since_an_untouched_switch_submits_false() -> None:
    assert loaded(registry=Registry(promote="no")).registry.promote is False
    assert loaded(registry=Registry(require_interval="yes")).registry.require_interval is True
    assert loaded(registry=Registry()).registry.promote is True


@pytest.mark.parametrize(
    "section",
    [OptimizerConfig, PeftConfig, StepSchedulerConfig, EvaluationConfig, RegistryConfig, ClusterConfig, ComputeConfig],
)
def test_the_schema_has_the_configs_facts_and_no_defaults(section: Any) -> None:
    form = form_of(section)
    schema, original = form.model_json_schema(), section.model_json_schema()["properties"]
    assert schema["properties"].keys() == original.keys() - {"_target_"}  # a form cannot name a function
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


FLOWS = {flow.name: flow for flow in (medpix_finetune, medpix_evaluate, medpix_sweep, medpix_retrain_watch)}
LEARNING_RATE = {"optimizer": {"lr": 2e-5}}


def described(schema: Any) -> Iterator[str]:
    """Yields every title and description of a JSON schema."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if isinstance(value, dict | list):
            yield from described(value)
        elif key in ("title", "description") and isinstance(value, str):
            yield value


@pytest.mark.parametrize("name", FLOWS)
def test_no_text_of_a_form_is_parsed_as_html(name: str) -> None:
    """Prefect renders descriptions as Markdown, which would hide `<model family>` as a tag."""
    texts = list(described(FLOWS[name].parameters.model_dump()))
    assert len(texts) > 4
    assert [text for text in texts if "<" in text] == []


@pytest.mark.parametrize("name", FLOWS)
def test_every_field_of_a_form_is_described(name: str) -> None:
    fields = dict(fields_of(FLOWS[name].parameters.model_dump()))
    assert len(fields) > 1
    described_badly = {field: text for field, text in fields.items() if not text or text.startswith(("None", "Empty"))}
    assert described_badly == {}


def fields_of(schema: Any, path: str = "") -> Iterator[tuple[str, str | None]]:
    """Yields the path and the description of every field of a JSON schema."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        here = f"{path}/{key}"
        if path.endswith("/properties"):
            yield here, value.get("description")
        if isinstance(value, dict | list):
            yield from fields_of(value, here)


@pytest.mark.parametrize("name", FLOWS)
def test_overrides_are_one_editor_for_json(name: str) -> None:
    """Prefect shows alternatives as tabs: a type `dict | None` would be the tabs "dict" and "None"."""
    overrides = FLOWS[name].parameters.properties["overrides"]
    assert (overrides["type"], overrides["default"], "anyOf" in overrides) == ("object", {}, False)
    assert errors(name, overrides=overrides["default"], checkpoint="m") == []  # an untouched form can be submitted


def test_a_form_shows_the_most_used_fields_first() -> None:
    schema = medpix_finetune.parameters
    order = sorted(schema.properties, key=lambda name: schema.properties[name]["position"])
    assert order[:5] == ["recipe", "tuning", "dataset", "step_scheduler", "optimizer"]
    assert order[-1] == "overrides"
    fields = {}
    for name in order[2:-1]:
        definition = schema.definitions[schema.properties[name]["$ref"].rpartition("/")[2]]
        first, complete = definition["anyOf"]
        assert set(first["properties"]) < set(complete["properties"])
        assert {first["title"], complete["title"]} <= {"most used", "all settings", "as in the recipe", "change"}
        assert schema.properties[name]["default"] == {}  # this default opens the first tab
        fields[name] = list(first["properties"])
    assert {name: found for name, found in fields.items() if found} == {
        "dataset": ["path_or_dataset", "split"],
        "step_scheduler": ["num_epochs", "max_steps", "global_batch_size"],
        "optimizer": ["lr"],
    }


@pytest.mark.parametrize("name", FLOWS)
def test_recipes_are_a_choice_that_allows_other_paths(name: str, tmp_path: Path) -> None:
    shipped, own = FLOWS[name].parameters.properties["recipe"]["anyOf"]
    assert shipped["enum"] == recipe_names()
    assert (own["type"], "enum" in own) == ("string", False)
    for recipe in ("demo", str(tmp_path / "own.yaml")):
        assert errors(name, recipe=recipe, checkpoint="m") == []


def errors(name: str, **parameters: Any) -> list[tuple[list[str], str]]:
    """Returns the server's validation errors for parameters, as (field, message)."""
    known = FLOWS[name].parameters.model_dump()
    given = {key: value for key, value in parameters.items() if key in known["properties"]}
    found = validate(given, preprocess_schema(known), raise_on_error=False)
    return [([str(part) for part in error.absolute_path], error.message) for error in found]


@pytest.mark.parametrize(
    "parameters",
    [
        LEARNING_RATE,
        {"recipe": "gemma3_4b_lora", "compute": {"launcher": "slurm", "nodes": 2, "cluster": {"partition": "gpu"}}},
        {"dataset": {"path_or_dataset": "/data", "image_column": "scan"}, "overrides": {"rng.seed": 7}},
        {"peft": {"dim": 4, "exclude_modules": ["*vision*"]}, "tuning": "lora", "registry": {"promote": "no"}},
        {"step_scheduler": {"max_steps": 3}, "model": {}, "evaluation": {"limit": 10}, "overrides": {}},
    ],
)
def test_the_server_accepts_the_parameters_that_the_flow_accepts(parameters: dict[str, Any]) -> None:
    assert errors("medpix-finetune", **parameters) == []
    checked = medpix_finetune.validate_parameters(parameters)
    for section in parameters.keys() & {"compute", "dataset", "peft", "step_scheduler", "evaluation", "registry"}:
        assert checked[section].model_dump() == parameters[section]


@pytest.mark.parametrize(
    ("parameters", "place", "message"),
    [
        ({"optimizer": {"lr": -1}}, ["optimizer", "lr"], "-1 is less than or equal to the minimum of 0"),
        ({"optimizer": {"lrr": 1}}, ["optimizer"], "'lrr' was unexpected"),
        ({"peft": {"dim": 0}}, ["peft", "dim"], "0 is less than the minimum of 1"),
        ({"registry": {"promote": "maybe"}}, ["registry", "promote"], "'maybe' is not one of"),
        ({"compute": {"cluster": {"partition": "a b"}}}, ["compute", "cluster", "partition"], "does not match"),
    ],
)
def test_the_server_names_the_field_that_is_wrong(parameters: dict[str, Any], place: list[str], message: str) -> None:
    ((found, text),) = errors("medpix-finetune", **parameters)
    assert found == place
    assert message in text
