"""Builds a validated `Config` from a recipe and overrides.

Precedence: defaults < recipe < overrides. An override is a dotted key, `{"optimizer.lr": 2e-5}`, or nested:
`{"optimizer": {"lr": 2e-5}}`; both change only that value.
"""

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vlm_core.config import Config, MoreDatasetConfig
from vlm_core.config.mixture import DATA_SECTIONS, with_main_dataset
from vlm_core.guide import translate

MOST_ENTRIES = 10_000  # limit for the values in a recipe, with its aliases expanded
RECIPES = Path(__file__).parent / "recipes"
BASE = "base_recipe"  # key of a recipe: the shipped recipe that has the values which it leaves out
# Pairs of keys for the same setting: an override of one removes the other.
ALTERNATIVES = {"lr_warmup_steps": "lr_warmup_share", "lr_warmup_share": "lr_warmup_steps"}


def recipe_names() -> list[str]:
    """Returns the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the config of `recipe` (the name of a shipped recipe, or a YAML file) with `overrides` applied.

    Raises ValueError that names every wrong key or value, and for an unknown key the most similar known one.
    """
    path = _find(recipe)
    tree = _read(path)
    try:
        # Translate both before merging, so that overrides match whether either uses the guide's keys or ours.
        tree = _merge({"name": path.stem}, _with_base(tree))
        changes: dict[str, Any] = {}
        for key, value in (overrides or {}).items():
            nested = _nest(key, value)
            tree = _without_replaced(tree, nested)
            changes = _merge(changes, with_main_dataset(nested))
        return Config.model_validate(_merge(tree, translate(changes)))
    except ValidationError as error:
        raise ValueError(f"{path.name}: {_explain(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _with_base(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the translated values of a recipe, with those of its `base_recipe` below them."""
    own = {key: value for key, value in tree.items() if key != BASE}
    base = tree.get(BASE)
    lists, own = own, with_main_dataset(own)
    if base is None:
        return translate(own)
    if base not in recipe_names():
        raise ValueError(f"{BASE}={base!r} is not a shipped recipe; choose one of {', '.join(recipe_names())}")
    below = _with_base(_read(RECIPES / f"{base}.yaml"))
    return _merge(_without_replaced(below, lists), translate(own))


def _without_replaced(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `below` without its data if `above` has a list of datasets, which says everything about the data."""
    replaced = DATA_SECTIONS if isinstance(above.get("dataset"), list) else ()
    return {key: value for key, value in below.items() if key not in replaced}


def config_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, pydantic field) for every leaf of the config tree, in order.

    An optional section such as `peft` is a key too, and comes before its fields.
    """
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        section = section_of(field.annotation)
        if section is None or section is not field.annotation:
            yield prefix + name, field
        if section is not None:
            yield from config_keys(section, f"{prefix}{name}.")


def _find(recipe: str | Path) -> Path:
    for path in (Path(recipe), RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(str(recipe), recipe_names(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no recipe {str(recipe)!r}: neither a file nor one of {', '.join(recipe_names())}{hint}")


def _read(path: Path) -> dict[str, Any]:
    """Parses a recipe file; raises ValueError if it is not a mapping in YAML, or its aliases expand too far."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        entries = sum(1 for _ in islice(_entries(tree), MOST_ENTRIES + 1))
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{path} is not valid YAML: {where}{error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML in UTF-8: {str(error).splitlines()[0]}") from None
    if entries > MOST_ENTRIES:
        raise ValueError(f"{path} has more than {MOST_ENTRIES:,} entries; its aliases (*name) may repeat each other")
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a mapping of config sections, not {type(tree).__name__}")
    return tree


def _entries(tree: Any) -> Iterator[Any]:
    """Yields every value of a tree. A value that an alias repeats is yielded each time."""
    yield tree
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in values:
        yield from _entries(value)


def _nest(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in below.items() if ALTERNATIVES.get(key) not in above}
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old if isinstance(old, dict) else {}, value) if isinstance(value, Mapping) else value
    return merged


def section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is dict:  # sections under names that the user chooses
        return None
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(dict(item)) for item in error.errors())


def _explain_one(item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown config key {key!r}; nearest: {_nearest(key)!r}"
    if item["type"] == "missing":
        return f"config key {key!r} is required and has no value"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}={item['input']!r}: {message}" if key else message


def _nearest(key: str) -> str:
    known = [known for known, _ in config_keys()]
    if key.startswith("more_datasets.") and key.count(".") > 1:
        known = [other for other, _ in config_keys(MoreDatasetConfig, ".".join(key.split(".")[:2]) + ".")]
    # Search the same section first: a wrong name in the right section is more likely than the reverse.
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    sections = [name for name in Config.model_fields if "." not in key]
    for candidates in (siblings + sections, known):
        near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
        if near:
            return near[0]
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
