"""The tables of a directory or file, by split: parquet and CSV as they lie there, all else through `datasets`."""

import glob
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from vlm_core.data.csv_rows import CsvRows
from vlm_core.data.row_readers import ParquetRows, TableRows
from vlm_core.data.table_files import FORMATS, Splits, find_tables, format_of, spreadsheets
from vlm_core.home import medpix_home

SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk
HEAD = 2**20  # bytes of a metadata file that its columns are looked for in
BUILDERS = ("parquet", "json", "csv", "arrow", "imagefolder")


class Table(NamedTuple):
    """The rows of a split, and the files that its content lies in."""

    rows: ParquetRows | TableRows | CsvRows
    files: list[Path]


class Tables(NamedTuple):
    """The tables of a dataset by split, and what to say about how they were chosen and read."""

    by_split: dict[str, Table]
    notes: list[str]


def data_files(directory: Path) -> list[Path]:
    """Returns the files below a directory whose rows can be read."""
    return [path for path in directory.rglob("*") if format_of(path) and path.is_file()]


def read_table(path: Path, name: str, *, anywhere: bool, image_column: str | None = None) -> Tables:
    """Returns the tables of a directory or file; of parquet, only names of columns and numbers of rows are read.

    A local directory (`anywhere`) gives the tables below it, and without a table its images. The `image_column` image
    asks for the images of an image folder, whose metadata is then not a table of its own.
    Raises ValueError, in which the dataset is called `name`, for a dataset without a table that can be read, and,
    unless a table may lie `anywhere`, for a card that names files outside of the dataset.
    """
    if any((path / file).is_file() for file in SAVED):
        return Tables(_saved(path), [])
    if path.is_file():
        kind = format_of(path)
        if kind is None:
            raise ValueError(f"dataset {name!r} is not a file of {', '.join(FORMATS)}")
        return Tables(_read(kind, {"train": [path]}, name), [])
    images = _is_image_folder(path, image_column)
    if anywhere and not _names_its_files(path) and not images:
        if found := _found(path, name):
            return found
        if sheets := spreadsheets(path):
            raise ValueError(f"dataset {name!r} has no table but {sheets[0]}: save it as CSV (UTF-8)")
    builder = _builder(path, name, anywhere)
    if builder.name == "imagefolder" and not images and (found := _found(path, name)):
        return found  # `datasets` looks at the images alone
    files = {str(s): sorted(Path(p) for p in paths) for s, paths in builder.config.data_files.items()}
    return Tables(_read(builder.name, files, name, builder), [])


def _found(directory: Path, name: str) -> Tables | None:
    """Returns the tables that lie below a directory, None if there is none."""
    splits, notes = find_tables(directory, name)
    tables = {split: _read(format_of(files[0]) or "", {split: files}, name)[split] for split, files in splits.items()}
    return Tables(tables, notes) if tables else None


def _builder(path: Path, name: str, anywhere: bool) -> Any:
    """Returns `datasets`' builder of a directory: what its card says, or what it takes the files for."""
    try:
        builder: Any = load_dataset_builder(str(path), cache_dir=_cache())
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"dataset {name!r} holds no data files: {error}") from None
    if builder.name not in BUILDERS or not builder.config.data_files:
        raise ValueError(f"dataset {name!r} must hold parquet, Arrow, JSONL, CSV or images, found {builder.name}")
    outside = [str(p) for paths in builder.config.data_files.values() for p in paths if not _lies_in(path, str(p))]
    if outside and not anywhere:
        raise ValueError(f"dataset {name!r} names files outside of itself: {outside[0]}")
    return builder


def _read(kind: str, files: Splits, name: str, builder: Any = None) -> dict[str, Table]:
    if kind == "parquet":
        return {split: Table(ParquetRows(tuple(paths)), paths) for split, paths in files.items()}
    if kind == "csv":
        return {split: Table(CsvRows.of(paths), paths) for split, paths in files.items()}
    try:
        if builder is None:
            texts = {split: [glob.escape(str(path)) for path in paths] for split, paths in files.items()}
            builder = load_dataset_builder(kind, data_files=texts, cache_dir=_cache())
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"dataset {name!r} cannot be read as {kind}: {error.__cause__ or error}") from error
    return {split: Table(TableRows(builder.as_dataset(split)), paths) for split, paths in files.items()}


def _names_its_files(directory: Path) -> bool:
    """Returns whether the dataset's card says which files are which split."""
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return header is not None and re.search(r"^(configs|data_files):", header[1], re.MULTILINE) is not None


def _is_image_folder(directory: Path, image_column: str | None) -> bool:
    """Returns whether the images of a folder with `datasets`' own metadata (a column `file_name`) are asked for."""
    if image_column != "image":
        return False
    found = [path for path in sorted(directory.rglob("metadata.*")) if format_of(path)]
    return any(b"file_name" in _head(path) for path in found)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _cache() -> str:
    return str(medpix_home() / "cache" / "datasets")


def _lies_in(directory: Path, path: str) -> bool:
    # Not resolved: the files of a snapshot are links into the hub's cache.
    return "://" not in path and os.path.normpath(path).startswith(f"{os.path.normpath(directory)}{os.sep}")


def _saved(path: Path) -> dict[str, Table]:
    loaded = load_from_disk(str(path))
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return {str(name): Table(TableRows(table), _arrow_files(table)) for name, table in splits.items()}


def _arrow_files(table: Dataset) -> list[Path]:
    return [Path(file["filename"]) for file in table.cache_files]
