"""Which files of a local directory are its tables, and which split each of them is."""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from vlm_core.cache import MANIFEST
from vlm_core.data.image_folder import files_below
from vlm_core.data.text_files import unpacked_name

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
}
TEXT_FORMATS = ("json", "csv")  # These may be compressed.
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "validate": "validation", "valid": "validation", "val": "validation",
    "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHARD = re.compile(r"data/(?P<split>\w+(?:[.-]\w+)*?)-\d{5}-of-\d{5}[^/]*")  # as `push_to_hub` names them
NO_TABLES = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", MANIFEST)
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
LISTED = 8  # tables that an error names

Splits = dict[str, list[Path]]


def format_of(path: Path) -> str | None:
    """Returns the format that a file's suffix says, in small or capital letters; None if the file is not a table.

    JSON and CSV files may be compressed: `train.csv.gz`.
    """
    plain = unpacked_name(path)
    found = FORMATS.get(plain.suffix.lower())
    return found if plain == path or found in TEXT_FORMATS else None


def find_tables(directory: Path, name: str) -> tuple[Splits, list[str]]:
    """Returns (`{split: files}` of the tables below a directory, notes for the log about the choice).

    One table alone is taken whatever its name is. Several are splits if their folders or names say so, and parts of one
    table if their names differ in numbers alone. Returns nothing for a directory without a table.
    Raises ValueError that lists the tables for several that are neither, and for one split in several formats.
    """
    known = [file for file in files_below(directory) if format_of(Path(file)) and _plain_name(file) not in NO_TABLES]
    # Beside another table, a .json file mostly holds settings. The notes name the files that are not read.
    files = [file for file in known if not _plain_name(file).lower().endswith(".json")] or known
    for rule in (_split_of_shard, _split_of_folder, _split_of_name):
        if splits := _divided(files, rule):
            break
    else:
        splits = {"train": files} if files else {}
        if len({re.sub(r"\d+", "", Path(file).name.lower()) for file in files}) > 1:
            raise ValueError(
                f"dataset {name!r} holds {len(files)} tables whose names say no split: {_listed(files)}. Name one "
                f"(dataset.path_or_dataset={Path(name) / files[0]}), or rename them train and validation"
            )
    for split, found in splits.items():
        if len({format_of(Path(file)) for file in found}) > 1:
            raise ValueError(
                f"dataset {name!r} has the split {split} in several formats: {_listed(found)}. Move all but one away, "
                f"or name one (dataset.path_or_dataset={Path(name) / found[0]})"
            )
    return {split: [directory / file for file in found] for split, found in splits.items()}, _notes(known, splits)


def spreadsheets(directory: Path) -> list[str]:
    """Returns the spreadsheets below a directory, which are not read."""
    return [file for file in files_below(directory) if Path(file).suffix.lower() in SHEETS]


def _divided(files: list[str], rule: Callable[[str], str | None]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for file in files:
        if split := rule(file):
            found[split].append(file)
    return dict(sorted(found.items(), key=lambda item: [*SPLIT_WORDS, item[0]].index(item[0])))


def _split_of_shard(file: str) -> str | None:
    shard = SHARD.fullmatch(file)
    return shard["split"] if shard else None


def _split_of_folder(file: str) -> str | None:
    return next((split for part in file.split("/")[:-1] if (split := split_of(part))), None)


def _split_of_name(file: str) -> str | None:
    return split_of(Path(_plain_name(file)).stem)


def _plain_name(file: str) -> str:
    return unpacked_name(Path(file)).name


def split_of(text: str) -> str | None:
    """Returns the split that a word in a name means; None if no word does."""
    words = re.split(r"[-._ 0-9]+", text.lower())
    return next((split for word, split in SPLIT_WORDS.items() if word in words), None)


def _notes(files: list[str], splits: dict[str, list[str]]) -> list[str]:
    notes = [f"{split}: {len(found)} files are read as one: {_listed(found)}" for split, found in splits.items()
             if len(found) > 1]  # fmt: skip
    if unread := sorted(set(files) - {file for found in splits.values() for file in found}):
        notes.append(f"not read, beside other tables: {_listed(unread)}")
    return notes


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - LISTED} more" if len(files) > LISTED else ""
    return ", ".join(files[:LISTED]) + more
