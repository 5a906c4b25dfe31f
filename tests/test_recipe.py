"""The config: precedence, types, and errors that suggest the right key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import small_config
from vlm_core.cli import ConfigParser, parse_overrides
from vlm_core.config import Config
from vlm_core.recipe import config_keys, load_config, recipe_names

RECIPE = """
model: {pretrained_model_name_or_path: owner/model}
dataset: {path_or_dataset: owner/data, revision: abc}
optimizer: {lr: 2e-5}
peft: {dim: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


PARTS = ("embeddings", "vision_tower", "projector", "language_model")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_named(name: str) -> None:
    assert load_config(name).name == name


def test_defaults_then_recipe_then_overrides(recipe: Path) -> None:
    config = load_config(recipe, {"peft.alpha": 7, "optimizer": {"weight_decay": 0.5}})
    assert config.optimizer.lr == pytest.approx(2e-5)  # YAML 1.1 reads 2e-5 as a string
    assert config.optimizer.weight_decay == 0.5
    assert (config.peft.dim, config.peft.alpha) == (4, 7)
    assert config.rng.seed == Config.model_fields["rng"].default.seed


def test_a_recipe_may_build_on_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base_recipe: gemma3_4b_lora\npeft: {dim: 4}\ndataset: {path_or_dataset: scans, where: {lang: en}}\n"
    )
    config, base = load_config(path, {"optimizer.lr": 3e-4}), load_config("gemma3_4b_lora")
    assert (config.name, config.peft.dim, config.peft.alpha, config.optimizer.lr) == ("mine", 4, base.peft.alpha, 3e-4)
    assert (config.dataset.path_or_dataset, config.dataset.where) == ("scans", ["lang=en"])
    assert config.model == base.model
    assert load_config(path, {"dataset.where": {"lang": ["de", "fr"]}}).dataset.where == ["lang=de", "lang=fr"]
    path.write_text("base_recipe: mine\n")
    with pytest.raises(ValueError, match=r"mine.yaml: base_recipe='mine' is not a shipped recipe; choose one of demo"):
        load_config(path)


def test_resolved_config_reads_back_as_itself() -> None:
    config = small_config(**{"peft.exclude_modules": ["*vision*"], "optimizer.betas": [0.8, 0.9]})
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"step_scheduler.max_stepz": 3}, "unknown config key 'step_scheduler.max_stepz'"),
        ({"step_scheduler.max_stepz": 3}, "nearest: 'step_scheduler.max_steps'"),
        ({"optimzer.lr": 3}, "unknown config key 'optimzer'; nearest: 'optimizer'"),
        ({"lr": 3}, "nearest: 'optimizer.lr'"),
        ({"optimizer.lr": -1}, "optimizer.lr=-1: Input should be greater than 0"),
        ({"model.attn_implementation": "flash_attention_2"}, "drop Gemma 3's mask over the image tokens; use sdpa"),
        ({"model.attn_implementation": "paged"}, "should be 'sdpa', 'eager' or 'flex_attention'"),
        (
            {f"freeze_config.freeze_{part}": True for part in PARTS} | {"peft": None},
            "nothing is left to train: freeze_embeddings, freeze_vision_tower, freeze_projector, freeze_language_model",
        ),
        (
            {
                "packing.enabled": False,
                "step_scheduler.global_batch_size": 30,
                "step_scheduler.local_batch_size": 4,
            },
            "try 28 or 32",
        ),
        ({"peft.match_all_linear": True, "peft.target_modules": ["*q_proj"]}, "give one of them"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_with_a_remedy(recipe: Path, override: dict, message: str) -> None:
    with pytest.raises(ValueError, match="mine.yaml: ") as error:
        load_config(recipe, override)
    assert message in str(error.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        load_config("demp")


def test_validation_follows_the_dataset_unless_it_is_set(recipe: Path) -> None:
    following = load_config(recipe).validation_source
    assert (following.path_or_dataset, following.revision, following.split) == ("owner/data", "abc", "auto")
    own = load_config(recipe, {"validation_dataset.path_or_dataset": "other/data"}).validation_source
    assert (own.path_or_dataset, own.revision) == ("other/data", None)


def test_overrides_on_the_command_line() -> None:
    words = "--a.b 2e-5 --c=-1 --flag --none null --list [1,2] --globs *vision* *lm_head* --negative -3"
    assert parse_overrides(words.split()) == {
        "a.b": "2e-5",
        "c": -1,
        "flag": True,
        "none": None,
        "list": [1, 2],
        "globs": ["*vision*", "*lm_head*"],
        "negative": -3,
    }
    with pytest.raises(ValueError, match="'stray' does not belong to an option"):
        parse_overrides(["stray"])


@pytest.mark.parametrize(
    "text",
    [
        "scans #2",
        "a: b",
        "'quoted'",
        '"x"',
        "on",
        "1",
        "1.0",
        "yes",
        "~",
        "[1]",
        "{a}",
        "*x",
        "&x",
        "!x",
        "null ",
        "2026-01-01",
    ],
)
def test_a_text_on_the_command_line_stays_unchanged(text: str) -> None:
    keys = ("dataset.path_or_dataset", "dataset.case_column", "model.revision", "dataset.split")
    for words in ([f"--{key}", text] for key in keys):
        assert parse_overrides(words) == {words[0][2:]: text}
        assert parse_overrides(["=".join(words)]) == {words[0][2:]: text}
    listed = parse_overrides(["--peft.exclude_modules", "on", "a #b", "--evaluation.compare_with", "1"])
    assert listed == {"peft.exclude_modules": ["on", "a #b"], "evaluation.compare_with": "1"}
    assert parse_overrides(["--dataset.case_column", "null", "--peft", "null"]) == {
        "dataset.case_column": None,
        "peft": None,
    }


def keys_of_schema(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, JSON schema) of all keys, from pydantic's schema of the config."""
    for name, found in schema["properties"].items():
        kinds = [found, *found.get("anyOf", [])]
        (reference,) = [kind["$ref"].rpartition("/")[2] for kind in kinds if "$ref" in kind] or [None]
        if reference is None or "anyOf" in found:
            yield prefix + name, found
        if reference is not None:
            yield from keys_of_schema(definitions[reference], definitions, f"{prefix}{name}.")


def facts(schema: dict[str, Any]) -> Iterator[str]:
    """Yields the facts that the help must have about a key: bounds and choices, also of items of lists and pairs."""
    for lowest, sign in (("minimum", "<="), ("exclusiveMinimum", "<")):
        highest = next(
            (f" {s} {schema[k]:g}" for k, s in (("maximum", "<="), ("exclusiveMaximum", "<")) if k in schema), ""
        )
        kind = {"integer": "int", "number": "float"}.get(schema.get("type", ""))
        if lowest in schema:
            low = f"{schema[lowest]:g}"
            yield f"{low} {sign} {kind}{highest}" if highest else f"{kind} {sign.replace('<', '>')} {low}"
    if "enum" in schema:
        yield " | ".join(schema["enum"])
    if schema.get("type") == "null":
        yield "| null"
    if "pattern" in schema:
        yield schema["pattern"]
    items = schema.get("items")
    for part in (*schema.get("anyOf", []), *schema.get("prefixItems", []), *([items] if items else [])):
        yield from facts(part)


def test_help_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ConfigParser(prog="test").parse_args(["--help-all"])
    lines = capsys.readouterr().out.splitlines()
    schema = Config.model_json_schema()
    keys = dict(keys_of_schema(schema, schema["$defs"]))
    assert list(keys) == [key for key, _ in config_keys()]
    assert {"peft", "peft.dim", "optimizer.betas"} <= keys.keys()
    for key, described in keys.items():
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"  --{key}  ")]
        kind, _, default = lines[place].partition(", default ")
        assert described["description"] == lines[place + 1].strip()
        if "default" in described:
            assert (default if isinstance(described["default"], str) else json.loads(default)) == described["default"]
        else:
            assert kind.endswith(", required")
        for fact in facts(described):
            assert fact in kind, key


def test_the_help_has_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ConfigParser(prog="test").parse_args(["--help-all"])
    text = capsys.readouterr().out
    for line in (
        "--step_scheduler.max_steps  int >= 1 | null, default null",
        "--peft.dropout  0 <= float < 1, default 0.0",
        "--optimizer.lr  float > 0, default 1e-05",
        "--optimizer.betas  [0 <= float < 1, 0 <= float < 1], default [0.9, 0.95]",
        "--dataset.split_by  auto | published | case | image, default auto",
        "--evaluation.controls  list of shuffled | blank | question_only, default ",
        "--packing.enabled  bool, default true",
        "--peft  section | null, default null",
        "--registry.alias  str matching ^[A-Za-z][A-Za-z0-9_-]{0,99}$, default challenger",
    ):
        assert f"  {line}" in text


def test_the_resolved_config_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ConfigParser(prog="test").parse_config(["--config", "demo", "--optimizer.lr", "0.25", "--print-config"])
    assert stop.value.code == 0
    assert Config.model_validate(yaml.safe_load(capsys.readouterr().out)).optimizer.lr == 0.25


def test_wrong_key_on_the_command_line_exits_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ConfigParser(prog="test").parse_config(["--config", "demo", "--optimizer.lrr", "1"])
    assert stop.value.code == 2
    assert "nearest: 'optimizer.lr'" in capsys.readouterr().err


def test_a_list_of_one_is_a_word_on_the_command_line() -> None:
    overrides = parse_overrides(["--peft.exclude_modules", "*vision*", "--evaluation.controls=blank"])
    config = load_config("gemma3_4b_lora", overrides)
    assert (config.peft.exclude_modules, config.evaluation.controls) == (["*vision*"], ["blank"])
    assert load_config("demo", parse_overrides(["--evaluation.controls", "[]"])).evaluation.controls == []


def test_models_to_compare_with_have_unique_names() -> None:
    names = ["base", "champion=models:/m/3", "runs/lr=1e-4/epoch_0_step_2", "old=runs/a/LATEST", "models:/m@challenger"]
    assert small_config(**{"evaluation.compare_with": names}).evaluation.comparisons == {
        "base": "base",
        "champion": "models:/m/3",
        "epoch_0_step_2": "runs/lr=1e-4/epoch_0_step_2",
        "old": "runs/a/LATEST",
        "challenger": "models:/m@challenger",
    }
    for names in (["a/LATEST", "b/LATEST"], ["shuffled=base"]):
        with pytest.raises(ValueError, match="would name two things in the results; write NAME=MODEL"):
            small_config(**{"evaluation.compare_with": names})


@pytest.mark.parametrize("alias", ["champion", "Champion", "latest", "LATEST", "v1", "V22"])
def test_reserved_aliases_are_refused_before_anything_runs(alias: str) -> None:
    with pytest.raises(ValueError, match=f"registry.alias='{alias}': '{alias}' is reserved: only the gate gives"):
        load_config("demo", {"registry.alias": alias})


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a@b", "../x", "a\n", "\u0441hampion", "x" * 101])
@pytest.mark.parametrize("key", ["alias", "model_name"])
def test_names_that_the_registry_would_refuse_are_refused_in_the_config(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"registry.{key}=.*should match pattern"):
        load_config("demo", {f"registry.{key}": name})
    assert load_config("demo", {f"registry.{key}": "medpix-gemma3_2"})
