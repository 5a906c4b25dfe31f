"""Where a dataset comes from: the hub, a local directory, or the phantom generator; always parquet files a split."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow.parquet as pq
from datasets import ReadInstruction, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError

from vlm_core.cache import cached_directory
from vlm_core.config import DatasetConfig
from vlm_core.data.phantom import PHANTOM_VERSION, write_phantom
from vlm_core.home import medpix_home
from vlm_core.hub import download, is_repository_id

logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "mode", "case_id", "question", "answer")  # of mmoukouba/MedPix-VQA
PHANTOM = "builtin:phantom"
PHANTOM_DEFAULTS = {"images": 1000, "seed": 0, "image_size": 56}


@dataclass(frozen=True)
class SplitSource:
    """The rows `[start, stop)` of a split's parquet files."""

    name: str  # as asked for, for example `dataset.path_or_dataset`: says in messages which setting to mend
    files: tuple[Path, ...]
    start: int
    stop: int
    fingerprint: str  # of the files' content and the row range
    revision: str | None  # the commit, for a dataset of the hub


def fetch_split(config: DatasetConfig) -> SplitSource:
    """Returns the checked source of one split, downloaded or generated where it is missing.

    Raises ValueError for a repository that cannot be had, a missing split or column, and an empty split.
    """
    directory, revision = _fetch(config)
    files = _files_by_split(directory, config.path_or_dataset)
    split, start, stop = _resolve_split(config, files)
    for path in files[split]:
        _check_columns(path, config.path_or_dataset)
    if start >= stop:
        raise ValueError(f"dataset {config.path_or_dataset!r} is empty: split {config.split!r} has no rows")
    # A commit names its content; without one the content is read.
    content = [revision] if revision else [_digest(path) for path in files[split]]
    identity = "|".join([split, str(start), str(stop), *content])
    return SplitSource(
        name=config.path_or_dataset,
        files=tuple(files[split]),
        start=start,
        stop=stop,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        revision=revision if is_repository_id(config.path_or_dataset) else None,
    )


def _fetch(config: DatasetConfig) -> tuple[Path, str | None]:
    name = config.path_or_dataset
    if name.partition("?")[0] == PHANTOM:
        directory = _phantom(name)
        return directory, directory.name
    if Path(name).is_dir():
        return Path(name).absolute(), None
    if is_repository_id(name):
        snapshot = download(name, "dataset", config.revision, ["*.parquet", "*.md"])
        return snapshot, snapshot.name
    raise ValueError(f"no dataset {name!r}: neither a directory, nor a hub id owner/name, nor {PHANTOM}")


def _phantom(name: str) -> Path:
    settings = dict(PHANTOM_DEFAULTS)
    for key, value in parse_qsl(name.partition("?")[2]):
        if key not in settings or not value.isdecimal():
            raise ValueError(f"{name!r}: {key}={value!r} is wrong; {PHANTOM} takes whole numbers for {[*settings]}")
        settings[key] = int(value)
    key = "-".join([f"v{PHANTOM_VERSION}", *(f"{key}{value}" for key, value in settings.items())])

    def build(directory: Path) -> dict[str, int]:
        write_phantom(directory, settings["images"], settings["seed"], settings["image_size"])
        return settings

    directory, reused = cached_directory(medpix_home() / "cache" / "phantom", key, build)
    logger.info("phantom dataset %s %s", key, "reused" if reused else "generated")
    return directory


def _files_by_split(directory: Path, name: str) -> dict[str, list[Path]]:
    try:
        builder = load_dataset_builder(str(directory), cache_dir=str(medpix_home() / "cache" / "datasets"))
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"dataset {name!r} holds no data files: {error}") from None
    if builder.name != "parquet" or not builder.config.data_files:
        raise ValueError(f"dataset {name!r} must hold parquet files per split, found {builder.name}")
    return {str(split): [Path(path) for path in paths] for split, paths in builder.config.data_files.items()}


def _resolve_split(config: DatasetConfig, files: dict[str, list[Path]]) -> tuple[str, int, int]:
    rows = {split: sum(pq.read_metadata(path).num_rows for path in paths) for split, paths in files.items()}
    name = config.split.partition("[")[0]
    if name not in rows:
        raise ValueError(f"dataset {config.path_or_dataset!r} has no split {name!r}; it has {', '.join(rows)}")
    parts = ReadInstruction.from_spec(config.split).to_absolute(rows)
    if len(parts) != 1:
        raise ValueError(f"split {config.split!r} must name one range of one split, for example {name}[:1000]")
    return name, parts[0].from_ or 0, rows[name] if parts[0].to is None else parts[0].to


def _check_columns(path: Path, name: str) -> None:
    present = pq.read_schema(path).names
    missing = [column for column in COLUMNS if column not in present]
    if missing:
        raise ValueError(
            f"dataset {name!r} lacks the column {', '.join(missing)}: {path.name} has {', '.join(present)}; "
            f"MedPix-VQA's layout has {', '.join(COLUMNS)}"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
