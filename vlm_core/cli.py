"""Parses the options that all commands share: `--config` or `--recipe`, and dotted overrides of config keys.

python -m vlm_core.finetune --config demo --optimizer.lr 2e-5 --peft.exclude_modules '*vision*' '*lm_head*'
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlm_core.config import Config, MoreDatasetConfig
from vlm_core.program import as_called
from vlm_core.recipe import config_keys, load_config, recipe_names
from vlm_core.run_directory import CONFIG


class ConfigParser(argparse.ArgumentParser):
    """An ArgumentParser that reads all unknown options as config overrides.

    `--help` shows the command's options and the keys in `common`; `--help-all` documents every key.
    """

    def __init__(self, *, common: Sequence[str] = (), config_of: str | None = None, **options: Any) -> None:
        """`config_of` is the option that names a checkpoint. Without a recipe, the checkpoint's config is used."""
        self.common, self.config_of = common, config_of
        recipe = "[--config RECIPE]" if config_of else "--config RECIPE"
        options.setdefault("usage", f"%(prog)s {recipe} [options] [--section.key VALUE ...]")
        options |= {key: as_called(options[key]) for key in ("prog", "description") if options.get(key)}
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=_keys_help(common, " (most used; --help-all shows all)"),
            **options,
        )
        known = f"YAML file, or one of: {', '.join(recipe_names())}"
        default = f"; default: the {CONFIG} in --{config_of.replace('_', '-')}" if config_of else ""
        self.add_argument("--config", "--recipe", dest="recipe", metavar="RECIPE", help=known + default)
        self.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
        self.add_argument("--help-all", action=_HelpAll, help="show this message with every config key, and exit")

    def parse_config(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Config]:
        """Returns the command's own options and the validated config; exits with status 2 and a message on errors.

        `options.overrides` holds the overrides by dotted key.
        """
        options, overrides = self.parse_with_overrides(arguments)
        options.overrides = overrides
        try:
            return options, load_config(options.recipe, overrides)
        except ValueError as error:
            self.error(str(error))

    def parse_with_overrides(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
        """Returns the command's own options and the overrides by dotted key; exits with status 2 on wrong arguments."""
        options, rest = self.parse_known_args(arguments)
        try:
            overrides = parse_overrides(rest)
            self._require_no_misspelt_option(overrides)
            options.recipe = options.recipe or self._default_recipe(options)
            if options.print_config:
                sys.stdout.write(load_config(options.recipe, overrides).to_yaml())
                self.exit()
        except ValueError as error:
            self.error(str(error))
        return options, overrides

    def _default_recipe(self, options: argparse.Namespace) -> str:
        """Returns the config of the checkpoint; raises ValueError without one."""
        if self.config_of is None:
            raise ValueError(f"--config is missing; give a YAML file, or one of: {', '.join(recipe_names())}")
        config = Path(getattr(options, self.config_of) or ".") / CONFIG
        if not config.is_file():
            raise ValueError(f"--config is missing, and {config}, its default, does not exist: give --config")
        return str(config)

    def _require_no_misspelt_option(self, overrides: Mapping[str, Any]) -> None:
        """Raises ValueError for an unknown key that resembles one of the command's own options."""
        own = [name for action in self._actions for name in action.option_strings]
        for key in overrides.keys() - Config.model_fields.keys():
            near = difflib.get_close_matches(f"--{key}", own, n=1, cutoff=0.7)
            if near:
                raise ValueError(f"unknown option --{key}; nearest: {near[0]}")


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.epilog = _keys_help([key for key, _ in config_keys()])
        parser.print_help()
        parser.exit()


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Parses `--key value`, `--key=value`, `--flag` (true) and `--key a b` (a list) to `{dotted key: value}`.

    >>> parse_overrides(["--optimizer.lr", "2e-5", "--checkpoint.enabled=false"])
    {'optimizer.lr': '2e-5', 'checkpoint.enabled': False}

    For a key of type string, a value stays as written (`scans #2`, `on`, `1`), except `null` for an optional key. Other
    values are parsed as YAML. YAML 1.1 reads `2e-5` as a string, and the typed config converts it to a float. Raises
    ValueError for a value without a key.
    """
    words: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            words[key] = [value] if equals else []
        elif key is None:
            raise ValueError(f"{argument!r} does not belong to an option; write --section.key value")
        else:
            words[key].append(argument)
    kinds = {key: field.annotation for key, field in config_keys()}
    of_dataset = {key: field.annotation for key, field in config_keys(MoreDatasetConfig)}
    for key in words:
        section, _, rest = key.partition(".")
        if section == "more_datasets":
            kinds[key] = of_dataset.get(rest.partition(".")[2])
    return {key: _value(values, kinds.get(key)) for key, values in words.items()}


def _value(words: list[str], kind: Any) -> Any:
    """Returns the value of a key from its `words`; `kind` is the key's type, None for an unknown key."""
    is_flow_list = len(words) == 1 and words[0].startswith("[") and _list_item(kind) is not None
    if is_flow_list or not (_is_text(kind) or _is_text(_list_item(kind))):
        values = [_scalar(word) for word in words]
    else:
        nullable = any(NoneType in get_args(part) for part in (kind, _list_item(kind)))
        values = [None if word == "null" and nullable else word for word in words]
    return True if not values else values[0] if len(values) == 1 else values


def _list_item(kind: Any) -> Any:
    """Returns the item type of a list type, None for any other type."""
    return get_args(kind)[0] if get_origin(kind) is list else None


def _is_text(kind: Any) -> bool:
    """Returns whether a key holds only strings (or null)."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_text(arguments[0])
    if origin in (Union, UnionType):
        return all(part is NoneType or _is_text(part) for part in arguments)
    return kind is str or (origin is Literal and all(isinstance(choice, str) for choice in arguments))


def _scalar(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:  # a wildcard such as *vision* is not valid YAML: keep it as a string
        return word


def _keys_help(shown: Sequence[str], which: str = "") -> str:
    lines = [f"config keys{which}:"]
    fields = dict(config_keys())
    for key in shown:
        field = fields[key]
        default = "required" if field.is_required() else f"default {written(field.default)}"
        lines.append(f"  --{key}  {kind_of(field.annotation, field.metadata)}, {default}")
        lines.append(f"        {field.description or ''}")
    return "\n".join(lines)


def written(value: Any) -> str:
    """Returns a default value as it is written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value)


def kind_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns a field's type with its bounds and choices: `0 <= float < 1`, `int >= 1 | null`, `list of a | b`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"list of {kind_of(arguments[0])}"
    if origin is dict:
        return f"mapping of {kind_of(arguments[0])} to {kind_of(arguments[1])}"
    if origin is tuple:
        return f"[{', '.join(map(kind_of, arguments))}]"
    if origin in (Union, UnionType):
        return " | ".join("null" if kind is NoneType else kind_of(kind, metadata) for kind in arguments)
    if issubclass(annotation, BaseModel):
        return "section"
    return _bounded(annotation.__name__, metadata)


def _bounded(name: str, metadata: Sequence[Any]) -> str:
    # Inside a union or a list, pydantic keeps the bounds in a nested Field.
    rules = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]

    def bound(**signs: str) -> Iterator[str]:
        found = ((sign, getattr(rule, kind, None)) for rule in rules for kind, sign in signs.items())
        return (f"{sign} {value}" for sign, value in found if value is not None)

    lower, upper = list(bound(ge=">=", gt=">")), list(bound(le="<=", lt="<"))
    others = bound(min_length="with length >=", pattern="matching")
    if lower and upper:
        sign, value = lower[0].split()
        return f"{value} {sign.replace('>', '<')} {name} {upper[0]}"
    return " ".join([name, *lower, *upper, *others])
