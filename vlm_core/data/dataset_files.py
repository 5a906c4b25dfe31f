"""The tables of a directory or file, by split; folders of images go through `datasets`."""

import glob
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from vlm_core.data.arrow_cells import label_decoders
from vlm_core.data.csv_rows import CsvFile
from vlm_core.data.dataset_card import card_config, leads_out, matching_files
from vlm_core.data.dataset_safety import SPLITS_FILE, STATE
from vlm_core.data.json_rows import checked_file, checked_files
from vlm_core.data.row_readers import ArrowRows, LabelledRows, ParquetRows, SizedRows, TableRows
from vlm_core.data.table_files import FORMATS, Splits, find_tables, format_of, split_of, spreadsheets
from vlm_core.data.text_rows import TextRows
from vlm_core.home import medpix_home

HEAD = 2**20  # bytes of a metadata file that its columns are looked for in


class Table(NamedTuple):
    """The rows of a split, and the files that hold its content."""

    rows: SizedRows
    files: list[Path]


class Tables(NamedTuple):
    """The tables of a dataset by split, and notes for the log about how they were chosen and read."""

    by_split: dict[str, Table]
    notes: list[str]


def data_files(directory: Path) -> list[Path]:
    """Returns the files below a directory whose rows can be read."""
    return [path for path in directory.rglob("*") if format_of(path) and path.is_file()]


def read_table(
    path: Path,
    name: str,
    *,
    anywhere: bool,
    image_column: str | None = None,
    config_name: str | None = None,
    data_files: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Tables:
    """Returns the tables of a directory or file; of parquet, only names of columns and numbers of rows are read.

    The dataset's card says which files are which split, for the config `config_name` if it has several. Without such a
    card, the tables below the directory are taken, and without a table its images. The `image_column` image asks for
    the images of an image folder, whose metadata is then not a table of its own. `data_files` are the config's pairs
    `SPLIT=FILE`, which replace all that; `column_names` those of CSV files without a header.
    Raises ValueError, in which the dataset is called `name`, for a dataset without a table that can be read, and,
    unless a table may lie `anywhere`, for a card that names files outside of the dataset.
    """
    if data_files:
        return Tables(_read(_named_files(path, name, data_files, anywhere), name, names=column_names), [])
    if any((path / file).is_file() for file in (SPLITS_FILE, STATE)):
        return Tables(_saved(path, name), [])
    if path.is_file():
        if format_of(path) is None:
            raise ValueError(f"dataset {name!r} is not a file of {', '.join(FORMATS)}; .json, .csv and .tsv may be .gz")
        return Tables(_read({"train": [path]}, name, names=column_names), [])
    card = card_config(path, name, config_name, anywhere=anywhere)
    if card.files and all(map(format_of, chain.from_iterable(card.files.values()))):
        return Tables(_read(card.files, name, card.features, column_names), [])
    if not card.files and not _is_image_folder(card.directory, image_column):
        splits, notes = find_tables(card.directory, name)
        if splits:
            return Tables(_read(splits, name, card.features, column_names), notes)
        if sheets := spreadsheets(card.directory):
            raise ValueError(f"dataset {name!r} has no table but {sheets[0]}: save it as CSV (UTF-8)")
    return Tables(_image_folder(path, name, config_name, anywhere), [])


def _named_files(path: Path, name: str, data_files: Sequence[str], anywhere: bool) -> Splits:
    """Returns the files that the config names, by split; raises ValueError for one that is missing or lies outside."""
    files: Splits = {}
    for split, _, pattern in (pair.partition("=") for pair in data_files):
        if leads_out(pattern) and not anywhere:
            raise ValueError(f"dataset.data_files={pattern} must name files inside of the dataset {name!r}")
        found = matching_files(path, [pattern]) if path.is_dir() else []
        if not found:
            raise ValueError(f"dataset.data_files={split}={pattern}: the dataset {name!r} has no such file")
        files[split] = [*files.get(split, []), *found]
    return files


def _read(
    files: Splits, name: str, features: Mapping[str, Any] | None = None, names: Sequence[str] = ()
) -> dict[str, Table]:
    """Returns the tables of files by split; a single JSON file may have its splits inside."""
    formats = {format_of(path) for paths in files.values() for path in paths}
    every = [*chain.from_iterable(files.values())]
    if names and (other := [path.name for path in every if format_of(path) not in (None, "csv")]):
        raise ValueError(f"dataset.column_names is for CSV files without a header, not for {other[0]}; remove it")
    if formats == {"json"} and len(every) == 1:
        found = checked_files(every[0])
        if "" not in found:
            files = dict.fromkeys(found, every)
            tables: dict[str, SizedRows] = {split: TextRows((file,)) for split, file in found.items()}
        else:
            tables = {split: TextRows((found[""],)) for split in files}
    else:
        tables = {split: _rows_of(paths, split, name, names) for split, paths in files.items()}
    labels = label_decoders(features or {})  # Other formats have a schema that names labels.
    return {
        split: Table(LabelledRows(rows, labels) if labels and isinstance(rows, TextRows) else rows, files[split])
        for split, rows in tables.items()
    }


def _rows_of(paths: list[Path], split: str, name: str, column_names: Sequence[str]) -> SizedRows:
    kinds = {format_of(path) or "csv" for path in paths}  # The config may name a table with another suffix, as .txt.
    if len(kinds) > 1:
        raise ValueError(f"dataset {name!r} has the split {split} in several formats: {', '.join(map(str, paths[:8]))}")
    kind = kinds.pop()
    if kind == "csv":
        return TextRows(tuple(CsvFile.checked(path, column_names) for path in paths))
    if kind == "json":
        return TextRows(tuple(map(checked_file, paths)))
    return (ParquetRows if kind == "parquet" else ArrowRows)(tuple(paths))


def _image_files(path: Path) -> dict[str, Any]:
    """Returns the arguments for `datasets` to load an image folder; it takes brackets in a name for a pattern."""
    if glob.escape(str(path)) == str(path):
        return {"path": str(path)}
    folders = {
        split: folder for folder in sorted(path.iterdir()) if folder.is_dir() and (split := split_of(folder.name))
    }
    patterns = {split: f"{glob.escape(str(folder))}/**" for split, folder in (folders or {"train": path}).items()}
    return {"path": "imagefolder", "data_files": patterns}


def _image_folder(path: Path, name: str, config_name: str | None, anywhere: bool) -> dict[str, Table]:
    """Returns the tables that `datasets` makes of a folder of images and its metadata."""
    try:
        builder: Any = load_dataset_builder(**_image_files(path), name=config_name, cache_dir=_cache())
    except (DatasetNotFoundError, FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"dataset {name!r} holds no data files: {error}") from None
    files = {str(s): sorted(Path(p) for p in paths) for s, paths in (builder.config.data_files or {}).items()}
    if builder.name != "imagefolder" or not files:
        raise ValueError(f"dataset {name!r} must hold parquet, Arrow, JSONL, CSV or images, found {builder.name}")
    outside = [str(p) for paths in files.values() for p in paths if not _lies_in(path, str(p))]
    if outside and not anywhere:
        raise ValueError(f"dataset {name!r} names files outside of itself: {outside[0]}")
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"dataset {name!r} cannot be read as images: {error.__cause__ or error}") from error
    return {split: Table(TableRows(builder.as_dataset(split)), paths) for split, paths in files.items()}


def _is_image_folder(directory: Path, image_column: str | None) -> bool:
    """Returns whether the images of a folder with `datasets`' own metadata (a column `file_name`) are asked for."""
    if image_column != "image":
        return False
    found = [path for path in sorted(directory.rglob("metadata.*")) if format_of(path) and path.is_file()]
    return any(b"file_name" in _head(path) for path in found)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _cache() -> str:
    return str(medpix_home() / "cache" / "datasets")


def _lies_in(directory: Path, path: str) -> bool:
    # Not resolved: the files of a snapshot are links into the hub's cache.
    return "://" not in path and os.path.normpath(path).startswith(f"{os.path.normpath(directory)}{os.sep}")


def _saved(path: Path, name: str) -> dict[str, Table]:
    try:
        loaded = load_from_disk(str(path))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"dataset {name!r} cannot be read as save_to_disk wrote it: {error!r}; save it again"
        ) from None
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return {str(name): Table(TableRows(table), _arrow_files(table)) for name, table in splits.items()}


def _arrow_files(table: Dataset) -> list[Path]:
    return [Path(file["filename"]) for file in table.cache_files]
