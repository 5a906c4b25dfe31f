"""Refuses a dataset whose files name, link or fetch anything that is not part of it.

A dataset may come from a stranger. `datasets` would follow a `state.json` to any file of this machine, and fetch
addresses in a card while it looks for data files. So this check comes before `datasets` sees the directory.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_core.data.dataset_card import CARD, leads_out, read_card
from vlm_core.files import stays_inside

CARDS = (CARD, ".huggingface.yaml")  # where `datasets` reads which files are which split
PLACES = ("data_files", "data_dir", "path")
STATE, SPLITS_FILE = "state.json", "dataset_dict.json"  # of `save_to_disk`
LARGEST = 10_000_000  # bytes of a state


def require_own_files(directory: Path, name: str, *, anywhere: bool) -> None:
    """Raises ValueError if the dataset `name` in `directory` names files that are not its own.

    A dataset of the user's own (`anywhere`) may have links and paths that lead to other directories of this machine.
    Neither may name addresses, and a saved dataset only reads files beside its state.
    """
    if not directory.is_dir():
        return
    for card in CARDS:
        for place in _places(directory / card):
            if "://" in place or "::" in place:
                raise ValueError(
                    f"the card of dataset {name!r} ({card}) names {place!r}, which is not a file of it: download the "
                    "data and name its files"
                )
            if not anywhere and leads_out(place):
                raise ValueError(f"dataset {name!r} names files outside of itself: {place}")
    if not anywhere:
        _require_no_links_out(directory, name)
    for folder in _saved_splits(directory, name):
        _require_own_state(folder, name)


def _places(card: Path) -> Iterator[str]:
    """Yields the files, patterns and directories that a card names."""
    found = read_card(card)
    yield from _named(found.get("configs"), set(), inside=False)
    yield from _named({key: found.get(key) for key in PLACES}, set(), inside=False)


def _named(value: Any, seen: set[int], *, inside: bool) -> Iterator[str]:
    """Yields the texts below keys that hold places; a part that contains itself by a YAML alias is read once."""
    if isinstance(value, str):
        if inside or "://" in value:
            yield value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, part in value.items() if isinstance(value, dict) else ((None, part) for part in value):
            yield from _named(part, seen, inside=inside or key in PLACES)


def _require_no_links_out(directory: Path, name: str) -> None:
    for folder, folders, files in os.walk(directory):
        for entry in (Path(folder, found) for found in (*folders, *files)):
            if entry.is_symlink() and not stays_inside(directory, entry):
                where = entry.relative_to(directory)
                raise ValueError(f"dataset {name!r} has a link that leads out of it: {where}; remove it")


def _saved_splits(directory: Path, name: str) -> list[Path]:
    """Returns the directories that `save_to_disk` made of a dataset's splits."""
    if (directory / SPLITS_FILE).is_file():
        splits = _read(directory / SPLITS_FILE, name).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise ValueError(f"dataset {name!r}: {SPLITS_FILE} lists no splits; save it again with save_to_disk")
        if any("/" in split or "\\" in split or split in ("", ".", "..") for split in splits):
            raise ValueError(f"dataset {name!r} names files outside of itself: {SPLITS_FILE} has {splits}")
        return [directory / split for split in splits]
    return [directory] if (directory / STATE).is_file() else []


def _require_own_state(folder: Path, name: str) -> None:
    state = _read(folder / STATE, name)
    for key in ("_data_files", "_indices_data_files"):
        for entry in state.get(key) or []:
            file = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(file, str) or not file:
                raise ValueError(f"dataset {name!r}: {STATE} names no file in {key}; save it again with save_to_disk")
            if leads_out(file) or not stays_inside(folder, folder / file):
                raise ValueError(f"dataset {name!r} names files outside of itself: {STATE} has {file!r}")


def _read(file: Path, name: str) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"dataset {name!r} lacks {file.parent.name}/{file.name}; save it again with save_to_disk")
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.read(LARGEST))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"dataset {name!r}: {file.name} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"dataset {name!r}: {file.name} is not a JSON object")
    return found
