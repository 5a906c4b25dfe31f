"""Opens a dataset: from the hub, a local directory or file, the phantom generator, or a user's function."""

import hashlib
import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vlm_core.config import DatasetConfig
from vlm_core.data.archives import unpacked
from vlm_core.data.cell_images import CellImages
from vlm_core.data.columns import resolve_columns
from vlm_core.data.dataset_card import has_named_files
from vlm_core.data.dataset_files import Tables, data_files, read_table
from vlm_core.data.dataset_safety import require_own_files
from vlm_core.data.examples import FUNCTION_COLUMNS, Columns
from vlm_core.data.function_rows import FunctionRows
from vlm_core.data.hub_files import hub_files
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.image_places import image_digests, image_places
from vlm_core.data.medical.settings import identity
from vlm_core.data.phantom_cache import PHANTOM, is_phantom, phantom_directory
from vlm_core.data.pseudonyms import Pseudonyms, pseudonyms_of
from vlm_core.data.row_readers import Rows
from vlm_core.data.split_expression import resolve_split
from vlm_core.files import file_sha256
from vlm_core.hub import current_commit, download, is_repository_id
from vlm_core.targets import load_target

logger = logging.getLogger(__name__)

TRAIN = "train"


@dataclass(frozen=True)
class SplitSource:
    """The rows `[start, stop)` of a split, and everything that turns a row into an example."""

    name: str  # as in the config, so that an error names the value to correct
    split: str
    rows: Rows
    start: int
    stop: int | None  # None: to the end
    columns: Columns
    images: CellImages
    fingerprint: str  # of the content, the row range, the columns and the settings of images
    revision: str | None  # the commit, for a dataset of the hub
    notes: tuple[str, ...] = ()  # for the log: choices that the data decided, not the config
    pseudonyms: Pseudonyms | None = None  # replace case ids

    @property
    def folder(self) -> ImageFolder:
        """The folder in which its images are searched for."""
        return self.images.folder


@dataclass(frozen=True)
class OpenDataset:
    """A dataset on this machine: its tables by split, and the directory of its images."""

    config: DatasetConfig
    directory: Path
    revision: str | None
    tables: Tables
    archives: tuple[Path, ...] = ()  # the directories of their content
    _identified: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)  # `_content` by split

    def take(self, expression: str) -> SplitSource:
        """Returns the checked source of the rows that a split expression selects, such as `train[:1000]`.

        Raises ValueError for a missing split or column, and an empty split.
        """
        name, is_remote = self.config.path_or_dataset, is_repository_id(self.config.path_or_dataset)
        expression, only = self._only_table(expression)
        split, start, stop = resolve_split(name, expression, self.tables.by_split)
        rows, files = self.tables.by_split[split]
        root = self.directory if self.directory.is_dir() else self.directory.parent
        beside = tuple(sorted({file.parent for file in files}))
        folder = ImageFolder(root, anywhere=not is_remote, beside=beside, unpacked=self.archives)
        if start >= stop:
            raise ValueError(f"dataset {name!r} is empty: split {expression!r} has no rows{_listed_files(files)}")
        columns, notes = resolve_columns(self.config, rows, folder)
        _require_in_every_file(rows, columns)
        pseudonyms = pseudonyms_of(self.config, columns)
        if split not in self._identified:  # `train[:90%]` and `train[90%:]` have the same files
            self._identified[split] = self._content(rows, files, columns, folder)
        content, how = self._identified[split]
        return SplitSource(
            name=name,
            split=split,
            rows=rows,
            start=start,
            stop=stop,
            columns=columns,
            images=CellImages(folder, self.config.images),
            fingerprint=_hash(
                [
                    split,
                    start,
                    stop,
                    self.config.config_name,
                    sorted(columns.settings.items()),
                    identity(self.config.images),
                    *_identity_of_rules(self.config),
                    *([pseudonyms.fingerprint] if pseudonyms else []),
                    *content,
                ]
            ),
            revision=self.revision if is_remote else None,
            # A path may hold the id of a patient.
            notes=(*self.tables.notes, *only, *_notes_of(rows), *notes, *(_without_paths(how) if pseudonyms else how)),
            pseudonyms=pseudonyms,
        )

    def _content(
        self, rows: Rows, files: list[Path], columns: Columns, folder: ImageFolder
    ) -> tuple[list[str], list[str]]:
        """Returns (what identifies the content of a split, notes about images found elsewhere).

        A commit identifies the content, but not how images were found in it. Without one, tables and images are hashed.
        """
        places, how = image_places(rows, columns, folder)
        if self.revision:
            return [self.revision, *how], how
        return [*_digests(files), *image_digests(places, folder)], how

    def _only_table(self, expression: str) -> tuple[str, list[str]]:
        """Returns (the split expression to train on, notes); a local dataset of one table trains on that table."""
        split, *others = self.tables.by_split
        name, bracket, part = expression.partition("[")
        if others or name != TRAIN or name == split or is_repository_id(self.config.path_or_dataset):
            return expression, []
        taken = f"{self.config.path_or_dataset} has one table, named {split}: it is used for training"
        return f"{split}{bracket}{part}", [taken]


def open_dataset(config: DatasetConfig) -> OpenDataset:
    """Returns the dataset's tables by split; downloads or generates them if they are missing.

    Raises ValueError if the repository cannot be downloaded or a table cannot be read.
    """
    directory, revision = _fetch(config)
    anywhere = not is_repository_id(config.path_or_dataset)
    require_own_files(directory, config.path_or_dataset, anywhere=anywhere)
    tables = read_table(
        directory,
        config.path_or_dataset,
        anywhere=anywhere,
        image_column=config.image_column,
        config_name=config.config_name,
        data_files=config.data_files,
        column_names=config.column_names,
    )
    commit = None if anywhere else revision
    archives = unpacked(directory, config.archives, config.path_or_dataset, commit) if config.archives else ()
    return OpenDataset(config, directory, revision, tables, archives)


def fetch_split(config: DatasetConfig) -> SplitSource:
    """Returns the checked source of one split; downloads or generates the dataset if it is missing.

    Raises ValueError as `open_dataset` and `OpenDataset.take` do.
    """
    if config.target is not None:
        return _of_function(config)
    return open_dataset(config).take(config.split)


def _of_function(config: DatasetConfig) -> SplitSource:
    """Returns a source whose rows a user's function returns; the fingerprint covers its code, arguments and data."""
    assert config.target
    pseudonyms = pseudonyms_of(config, FUNCTION_COLUMNS)
    private = [pseudonyms.fingerprint] if pseudonyms else []
    function, path = load_target("dataset", config.target), Path(config.path_or_dataset)
    content = _digests(sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path])
    try:
        code = _digests([Path(inspect.getfile(function))])
    except TypeError:
        raise ValueError(f"dataset._target_={config.target!r} must be a function defined in a Python file") from None
    commit = None
    if is_repository_id(config.path_or_dataset):
        commit = current_commit(config.path_or_dataset, "dataset", config.revision)
    return SplitSource(
        name=config.path_or_dataset,
        split=config.split,
        rows=FunctionRows(partial(function, path_or_dataset=config.path_or_dataset, split=config.split)),
        start=0,
        stop=None,
        columns=FUNCTION_COLUMNS,
        images=CellImages(ImageFolder(path if path.is_dir() else path.parent, anywhere=True), config.images),
        fingerprint=_hash(
            [
                config.target,
                *code,
                config.path_or_dataset,
                config.split,
                commit,
                identity(config.images),
                *private,
                *content,
            ]
        ),
        revision=commit,
        pseudonyms=pseudonyms,
    )


def _fetch(config: DatasetConfig) -> tuple[Path, str | None]:
    name = config.path_or_dataset
    if is_phantom(name):
        directory = phantom_directory(name)
        return directory, directory.name
    if Path(name).exists():
        return Path(name).absolute(), None
    if is_repository_id(name):
        named = [file for _, _, file in (pair.partition("=") for pair in config.data_files)]
        for patterns in hub_files(named, config.archives):
            snapshot = download(name, "dataset", config.revision, patterns)
            if named or (data_files(snapshot) and has_named_files(snapshot, config.config_name)):
                break
        return snapshot, snapshot.name
    raise ValueError(f"no dataset {name!r}: neither a directory or file, nor a hub id owner/name, nor {PHANTOM}")


def _notes_of(rows: Rows) -> tuple[str, ...]:
    return tuple(getattr(rows, "notes", ()))


def _without_paths(notes: list[str]) -> list[str]:
    """Returns notes about images without the paths, which may have the id of a patient in them."""
    return [note.partition(":")[0] for note in notes]


def _listed_files(files: list[Path]) -> str:
    return f" ({', '.join(map(str, files[:3]))})" if files else ""


def _require_in_every_file(rows: Rows, columns: Columns) -> None:
    """Raises ValueError for the first file that lacks a column in use."""
    for path, names in rows.columns_by_file():
        if lacking := [column for column in columns.used if column not in names]:
            keys = [f"dataset.{key}" for key, column in columns.settings.items() if column in lacking]
            raise ValueError(
                f"{path} lacks the column {', '.join(lacking)}, which other files of its split have: it has "
                f"{', '.join(names)}. Rename the column there, or set {', '.join(keys) or 'dataset.data_files'}"
            )


def _identity_of_rules(config: DatasetConfig) -> list[object]:
    """Returns what identifies the config's rules about files and rows; nothing if it sets none."""
    keys = ("where", "question_template", "column_names", "data_files", "archives")
    rules = [getattr(config, key) for key in keys]
    return rules if any(rules) else []


def _digests(files: Iterable[Path]) -> list[str]:
    return [file_sha256(path) for path in files if path.is_file()]


def _hash(identity: list[object]) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()
