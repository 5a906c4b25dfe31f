"""What a dataset's card (README.md) says about its files: its configs, their splits, the names of labels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from datasets import Features
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from vlm_core.data.table_files import Splits

CARD = "README.md"
LARGEST = 10_000_000  # bytes of a card
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class CardConfig:
    """One config of a card: its directory, its files (None if the card does not name them), its columns' features."""

    directory: Path
    files: Splits | None = None
    features: dict[str, Any] = field(default_factory=dict)


class MissingFilesError(ValueError):
    """A card names files that do not exist."""


def read_card(card: Path) -> dict[str, Any]:
    """Returns the settings in a card: the header of a README.md, found as `datasets` finds it, or a whole YAML file.

    Returns {} for a missing card and for one without settings. Raises ValueError for a card that is not YAML or too
    large.
    """
    if not card.is_file():
        return {}
    if card.stat().st_size > LARGEST:
        raise ValueError(f"{card} has more than {LARGEST:,} bytes: shorten it")
    text = card.read_bytes().decode("utf-8-sig", errors="replace")
    if card.suffix == ".md":
        block = REGEX_YAML_BLOCK.search(text)
        text = block[2] if block else ""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{card} is not YAML ({' '.join(str(error).split())}): correct it") from None
    return found if isinstance(found, dict) else {}


def leads_out(place: str) -> bool:
    """Returns whether a path or pattern may mean something outside of its directory: an address, or `/x` or `../x`."""
    path = PurePosixPath(place.replace("\\", "/"))
    return "://" in place or path.is_absolute() or ".." in path.parts


def has_named_files(directory: Path, wanted: str | None) -> bool:
    """Returns whether the files exist that the card names for a config."""
    try:
        card_config(directory, str(directory), wanted, anywhere=False)
    except MissingFilesError:
        return False
    except ValueError:  # Wrong in another way, which is reported when the card is read.
        return True
    return True


def card_config(directory: Path, name: str, wanted: str | None, *, anywhere: bool) -> CardConfig:
    """Returns the config that is `wanted` (null: the only one, or the card's default) of the dataset called `name`.

    Raises ValueError that lists the configs if there are several or not the wanted one, for files that do not exist,
    and, unless files may lie `anywhere`, for files outside of the dataset.
    """
    header = read_card(directory / CARD)
    configs = {str(c.get("config_name", "default")): c for c in _objects(header.get("configs"))}
    chosen = _chosen(configs, name, wanted)
    entry = configs.get(chosen, {}) if chosen else {"data_files": header.get("data_files")}
    named, base = entry.get("data_files"), str(entry.get("data_dir") or "")
    patterns = {} if named is None else _patterns(named)
    every = [base, *(pattern for found in patterns.values() for pattern in found)]
    if outside := [p for p in every if leads_out(p) and not anywhere]:
        raise ValueError(f"dataset {name!r} names files outside of itself: {outside[0]}")
    files = {split: matching_files(directory / base, found) for split, found in patterns.items()}
    if missing := [split for split, found in files.items() if not found]:
        named_files = ", ".join(patterns[missing[0]])
        raise MissingFilesError(f"dataset {name!r}: its card names {named_files}, and no such file exists")
    return CardConfig(directory / base, files or None, _features(header, chosen))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _chosen(configs: dict[str, Any], name: str, wanted: str | None) -> str | None:
    listed = ", ".join(configs)
    if wanted is not None:
        if wanted not in configs:
            has = f"it has {listed}" if configs else "its card lists none; leave dataset.config_name out"
            raise ValueError(f"dataset {name!r} has no config dataset.config_name={wanted!r}: {has}")
        return wanted
    if len(configs) < 2:
        return next(iter(configs), None)
    default = [key for key, config in configs.items() if config.get("default") or key == "default"]
    if len(default) != 1:
        first = next(iter(configs))
        raise ValueError(
            f"dataset {name!r} has several configs: {listed}; choose one, for example dataset.config_name={first}"
        )
    return default[0]


def _patterns(named: Any) -> dict[str, list[str]]:
    """Returns the patterns of files by split, in each form that a card may have."""
    if isinstance(named, dict):
        return {str(split): _list(patterns) for split, patterns in named.items()}
    entries = named if isinstance(named, list) else [named]
    if all(isinstance(entry, dict) for entry in entries):
        return {str(entry.get("split", "train")): _list(entry.get("path")) for entry in entries}
    return {"train": _list(named)}


def _list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def matching_files(directory: Path, patterns: Iterable[str]) -> list[Path]:
    """Returns the files that a card's patterns mean; the name of a file that exists is not a pattern."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        plain = directory / pattern
        is_plain = plain.is_file() or not GLOB.search(pattern) or leads_out(pattern)
        matches = [plain] if is_plain else sorted(directory.glob(pattern))
        found.update(dict.fromkeys(path for path in matches if path.is_file()))
    return list(found)


def _features(header: dict[str, Any], config: str | None) -> dict[str, Any]:
    """Returns the features that a card describes for a config, by column; nothing if it describes none."""
    infos = header.get("dataset_info")
    infos = _objects(infos if isinstance(infos, list) else [infos])
    own = [info for info in infos if len(infos) == 1 or info.get("config_name", "default") == config]
    try:
        return dict(Features._from_yaml_list(own[0]["features"])) if own and own[0].get("features") else {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
