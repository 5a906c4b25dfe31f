"""The tables of a directory or file, by split: parquet as it lies there, all else through the `datasets` library."""

import csv
import os
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, Value, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from vlm_core.data.rows import ParquetRows, TableRows
from vlm_core.home import medpix_home

SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
BUILDERS = ("parquet", "json", "csv", "arrow", "imagefolder")


class Table(NamedTuple):
    """The rows of a split, and the files that its content lies in."""

    rows: ParquetRows | TableRows
    files: list[Path]


def data_files(directory: Path) -> list[Path]:
    """Returns the files below a directory whose rows can be read."""
    return [path for path in directory.rglob("*") if path.suffix in FORMATS and path.is_file()]


def read_table(path: Path, name: str, *, anywhere: bool) -> dict[str, Table]:
    """Returns `{split: table}` of a directory or file; nothing is read but what tells the columns and their number.

    Raises ValueError, in which the dataset is called `name`, where there is nothing to read, or, unless a table may lie
    `anywhere`, where the dataset's own card names files outside of it.
    """
    if any((path / file).is_file() for file in SAVED):
        return _saved(path)
    builder: Any = _builder(path, name)
    if builder.name not in BUILDERS or not builder.config.data_files:
        raise ValueError(f"dataset {name!r} must hold parquet, Arrow, JSONL, CSV or images, found {builder.name}")
    files = {str(s): sorted(Path(p) for p in paths) for s, paths in builder.config.data_files.items()}
    outside = [str(p) for paths in builder.config.data_files.values() for p in paths if not _lies_in(path, str(p))]
    if outside and not anywhere:
        raise ValueError(f"dataset {name!r} names files outside of itself: {outside[0]}")
    if builder.name == "parquet":
        return {split: Table(ParquetRows(tuple(paths)), paths) for split, paths in files.items()}
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"dataset {name!r} cannot be read as {builder.name}: {error.__cause__ or error}") from error
    return {split: Table(TableRows(builder.as_dataset(split)), paths) for split, paths in files.items()}


def _builder(path: Path, name: str) -> Any:
    cache = str(medpix_home() / "cache" / "datasets")
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"dataset {name!r} is no file of {', '.join(FORMATS)}")
        if path.suffix == ".csv":
            return _csv({"train": [str(path)]}, cache)
        return load_dataset_builder(FORMATS[path.suffix], data_files={"train": str(path)}, cache_dir=cache)
    try:
        found: Any = load_dataset_builder(str(path), cache_dir=cache)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"dataset {name!r} holds no data files: {error}") from None
    if found.name != "csv":
        return found
    return _csv({str(split): [*map(str, paths)] for split, paths in found.config.data_files.items()}, cache)


def _csv(files: dict[str, list[str]], cache: str) -> Any:
    """Returns a builder that takes every cell as text.

    pandas would take "None" and "N/A" for no answer at all, and the case 001 for the number 1.
    """
    with Path(next(iter(files.values()))[0]).open(newline="", encoding="utf-8") as stream:
        texts = Features({name: Value("string") for name in next(csv.reader(stream))})
    return load_dataset_builder("csv", data_files=files, cache_dir=cache, keep_default_na=False, features=texts)


def _lies_in(directory: Path, path: str) -> bool:
    # Not resolved: the files of a snapshot are links into the hub's cache.
    return "://" not in path and os.path.normpath(path).startswith(f"{os.path.normpath(directory)}{os.sep}")


def _saved(path: Path) -> dict[str, Table]:
    loaded = load_from_disk(str(path))
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return {str(name): Table(TableRows(table), _arrow_files(table)) for name, table in splits.items()}


def _arrow_files(table: Dataset) -> list[Path]:
    return [Path(file["filename"]) for file in table.cache_files]
