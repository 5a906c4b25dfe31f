"""The space of a sweep: for config keys, the values among which it searches.

optimizer.lr: {log: [1e-6, 1e-3]}    # numbers between bounds, on a logarithmic scale
peft.dropout: {linear: [0, 0.2]}     # the same, on a linear scale
peft.dim: [8, 16, 32]                # a choice

A key that takes whole numbers gets whole numbers. Sections may be nested.
Every bound and every choice is checked against the config before anything runs.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm_core.config import Config
from vlm_core.recipe import config_keys, load_config

LOG, LINEAR = "log", "linear"
EXAMPLE = "optimizer.lr: {log: [1e-5, 1e-3]}"
# Sections of which no key changes the model: they say where a run works and how it is judged.
FIXED = ("name", "validation_dataset", "checkpoint", "wandb", "compute", "evaluation", "report", "registry")


@dataclass(frozen=True)
class Choice:
    """A key whose value is one of `values`."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Span:
    """A key whose value is a number from `low` to `high`."""

    low: float
    high: float
    log: bool
    whole: bool


Space = dict[str, Choice | Span]


def read_space(text: str) -> dict[str, Any]:
    """Returns the space in `text`, YAML or the path of a YAML file; raises ValueError for anything else."""
    tree = _yaml(text)
    if isinstance(tree, str):
        try:
            tree = _yaml(Path(tree).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the space {text!r} is neither YAML such as {EXAMPLE!r} nor a file: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"the space {text!r} must be a mapping of config keys, such as {EXAMPLE!r}")
    return tree


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the space is not valid YAML: {' '.join(str(error).split())}") from None


def parse_space(tree: Mapping[str, Any], recipe: str, overrides: Mapping[str, Any]) -> Space:
    """Returns the space of `tree` around a recipe with `overrides`.

    Raises ValueError that names every unknown key, malformed entry, and bound or choice that the config refuses.
    """
    space, faults = {}, []
    entries = dict(_entries(tree))
    if not entries:
        faults.append(f"it has no keys; write at least one, such as {EXAMPLE!r}")
    for key, entry in entries.items():
        try:
            space[key] = _dimension(key, entry, recipe, overrides)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(f"the space cannot be searched: {'; '.join(faults)}")
    return space


def value_of(config: Config, key: str) -> Any:
    """Returns the value of a dotted key, as JSON; None inside a section that is null."""
    found: Any = config.model_dump(mode="json")
    for part in key.split("."):
        found = None if found is None else found[part]
    return found


def has(space: Space, config: Config) -> bool:
    """Returns whether the values of `config` lie in the space."""
    return all(_has(dimension, value_of(config, key)) for key, dimension in space.items())


def _has(dimension: Choice | Span, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _entries(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, entry); a mapping other than `{log: ...}` and `{linear: ...}` is a section."""
    for name, entry in tree.items():
        key = f"{prefix}{name}"
        if isinstance(entry, Mapping) and key in _sections():
            yield from _entries(entry, f"{key}.")
        else:
            yield key, entry


def _sections() -> set[str]:
    return {key[:end] for key, _ in config_keys() for end, letter in enumerate(key) if letter == "."}


def _dimension(key: str, entry: Any, recipe: str, overrides: Mapping[str, Any]) -> Choice | Span:
    _require_searchable(key, recipe, overrides)
    if isinstance(entry, Mapping) and len(entry) == 1 and next(iter(entry)) in (LOG, LINEAR):
        ((scale, bounds),) = entry.items()
        return _span(key, scale, bounds, recipe, overrides)
    if not isinstance(entry, list):
        raise ValueError(
            f"{key}: {entry!r} is neither a list of choices nor {{{LOG}: [LOW, HIGH]}} nor {{{LINEAR}: [LOW, HIGH]}}"
        )
    values = [_checked(key, value, recipe, overrides) for value in entry]
    if len(values) < 2 or any(value in values[:number] for number, value in enumerate(values)):
        raise ValueError(f"{key}: {entry} must have two or more different choices; a single value is an override")
    return Choice(tuple(values))


def _require_searchable(key: str, recipe: str, overrides: Mapping[str, Any]) -> None:
    known = [known for known, _ in config_keys()]
    if key not in known and not key.startswith("more_datasets."):  # the config checks the keys of these itself
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown config key {key!r}; nearest: {near!r}")
    section = key.partition(".")[0]
    if section in FIXED:
        raise ValueError(f"{key}: the section {section} does not change the model, so its keys cannot be searched")
    if "." in key and getattr(load_config(recipe, overrides), section) is None:
        raise ValueError(f"{key}: {section} is null in the recipe; set it, such as with the override {section}={{}}")


def _span(key: str, scale: str, bounds: Any, recipe: str, overrides: Mapping[str, Any]) -> Span:
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {scale} needs two numbers [LOW, HIGH], not {bounds!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{key}: the bounds {bounds} must be finite, the first one below the second one")
    if scale == LOG and low <= 0:
        raise ValueError(f"{key}: a logarithmic scale needs bounds above 0, not {bounds}; write {LINEAR}")
    found = [_checked(key, _whole(value), recipe, overrides) for value in (low, high)]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in found):
        raise ValueError(f"{key} is not a number: list its choices")
    return Span(low, high, scale == LOG, all(isinstance(value, int) for value in found))


def _whole(value: float) -> int | float:
    """Returns a whole number as int: a whole-number key refuses 8.0 as text, and prints it badly."""
    return int(value) if value.is_integer() else value


def _checked(key: str, value: Any, recipe: str, overrides: Mapping[str, Any]) -> Any:
    """Returns a value as the config stores it; raises ValueError if the config refuses it."""
    return value_of(load_config(recipe, {**overrides, key: value}), key)
