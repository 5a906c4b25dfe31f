"""Readers of rows: parquet and Arrow files in batches, tables of the `datasets` library.

No reader decodes an image: a cell holds what the dataset stores, and `vlm_core.data.examples` interprets it.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from vlm_core.data.arrow_cells import Decode, decoded, decoders_of, features_of
from vlm_core.data.text_files import require_content

ROWS_AT_ONCE = 64  # Bounds the memory of a build: 20 MB of MedPix-VQA.
BUFFER = 2**20  # bytes
ARROW_FILE = b"ARROW1"

Row = dict[str, Any]


class Rows(Protocol):
    """The rows of a split, read in batches as often as needed."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns of all files."""
        ...

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        """Returns the names of the columns of each file that has rows."""
        ...

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        """Yields (number of the first row, rows with `columns`)."""
        ...

    def holds_images(self, column: str) -> bool:
        """Returns whether a column is known to hold the bytes of every image, so that it names no file."""
        ...


class SizedRows(Rows, Sized, Protocol):
    """Rows whose number is known."""


@dataclass(frozen=True)
class ArrowTables:
    """Rows of files that Arrow reads, one file after the other: what parquet and Arrow files share."""

    files: tuple[Path, ...]

    def schema(self, path: Path) -> pa.Schema:
        """Returns the schema of a file."""
        raise NotImplementedError

    def length(self, path: Path) -> int:
        """Returns the number of rows of a file."""
        raise NotImplementedError

    def record_batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a file with some of its columns."""
        raise NotImplementedError

    @cached_property
    def _schemas(self) -> dict[Path, pa.Schema]:
        return {path: self.schema(path) for path in self.files}

    @cached_property
    def lengths(self) -> dict[Path, int]:
        """The number of rows of each file."""
        return {path: self.length(path) for path in self.files}

    @property
    def columns(self) -> list[str]:
        """The names of the columns of all files; a name that one file has twice is there twice."""
        twins = [name for schema in self._schemas.values() for name in schema.names if schema.names.count(name) > 1]
        return [
            *dict.fromkeys(name for schema in self._schemas.values() for name in schema.names),
            *dict.fromkeys(twins),
        ]

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return [(path, self._schemas[path].names) for path in self.files if self.lengths[path]]

    def __len__(self) -> int:
        return sum(self.lengths.values())

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        position = 0
        for path in self.files:
            end = position + self.lengths[path]
            if end > start and (stop is None or position < stop):
                schema = self._schemas[path]
                decoders = decoders_of(schema, features_of(schema))
                with named_in_errors(path):
                    found = self.record_batches(path, columns)
                    yield from _cut(found, position, start, stop, decoders)
            position = end


@dataclass(frozen=True)
class ParquetRows(ArrowTables):
    """Rows of parquet files."""

    @cached_property
    def _metadata(self) -> dict[Path, Any]:
        """The footer of each file."""
        found = {}
        for path in self.files:
            with named_in_errors(path):
                found[path] = pq.read_metadata(path)
        return found

    def schema(self, path: Path) -> pa.Schema:
        with named_in_errors(path):
            return self._metadata[path].schema.to_arrow_schema()

    def length(self, path: Path) -> int:
        return self._metadata[path].num_rows

    def record_batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        # By default, pyarrow reads a file's whole columns ahead, with all images.
        file = pq.ParquetFile(path, metadata=self._metadata[path], buffer_size=BUFFER, pre_buffer=False)
        return file.iter_batches(ROWS_AT_ONCE, columns=list(columns))

    def holds_images(self, column: str) -> bool:
        """Returns whether the statistics of all files say that a column holds the bytes of every image."""
        footers = self._metadata.values()
        groups = (footer.row_group(number) for footer in footers for number in range(footer.num_row_groups))
        return all(_holds_all_images(group, column) for group in groups)


@dataclass(frozen=True)
class ArrowRows(ArrowTables):
    """Rows of Arrow files (of the stream or the file format), memory-mapped."""

    def schema(self, path: Path) -> pa.Schema:
        with named_in_errors(path), _arrow_batches(path) as (schema, _):
            return schema

    def length(self, path: Path) -> int:
        with named_in_errors(path), _arrow_batches(path) as (_, batches):
            return sum(len(batch) for batch in batches)

    def record_batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with _arrow_batches(path) as (_, batches):
            for batch in batches:
                yield batch.select(list(columns))

    def holds_images(self, column: str) -> bool:
        """Returns whether a column holds the bytes of every image."""
        for path in self.files:
            with named_in_errors(path), _arrow_batches(path) as (_, batches):
                if not all(_stores_bytes(batch[column]) for batch in batches):
                    return False
        return True


@dataclass(frozen=True)
class TableRows:
    """Rows of a table of the `datasets` library, memory-mapped."""

    table: Dataset

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return []

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        chosen: Any = self.table.select_columns(list(columns)).with_format("arrow")
        decoders = decoders_of(chosen.data.schema, self.table.features)
        stop = len(self) if stop is None else stop
        for first in range(start, stop, ROWS_AT_ONCE):
            rows = chosen[first : min(first + ROWS_AT_ONCE, stop)].to_pylist()
            yield first, [decoded(row, decoders) for row in rows]

    def holds_images(self, column: str) -> bool:
        """Returns whether a column holds the bytes of every image."""
        return all(_stores_bytes(chunk) for chunk in self.table.data[column].chunks)


@dataclass(frozen=True)
class LabelledRows:
    """Rows of files that store labels as numbers; only the dataset's card has the names."""

    rows: Any
    decoders: Mapping[str, Decode]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log says about how the files are read."""
        return self.rows.notes

    @property
    def columns(self) -> list[str]:
        return self.rows.columns

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return self.rows.columns_by_file()

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        for first, rows in self.rows.batches(columns, start, stop):
            yield first, [decoded(row, self.decoders) for row in rows]

    def holds_images(self, column: str) -> bool:
        return self.rows.holds_images(column)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Turns Arrow's errors about a damaged file into a ValueError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        with path.open("rb") as stream:
            require_content(path, stream.read(64))
        what = "it is empty" if not path.stat().st_size else " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].lower()}: {what}; copy it again") from None


@contextmanager
def _arrow_batches(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Opens an Arrow file: (its schema, its batches of at most ROWS_AT_ONCE rows)."""
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            yield file.schema, _sliced(file.get_batch(i) for i in range(file.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, _sliced(stream)


def _sliced(batches: Any) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield from (batch.slice(first, ROWS_AT_ONCE) for first in range(0, len(batch), ROWS_AT_ONCE))


def _cut(
    batches: Iterator[pa.RecordBatch], position: int, start: int, stop: int | None, decoders: Mapping[str, Decode]
) -> Iterator[tuple[int, list[Row]]]:
    for batch in batches:
        first, last = max(start - position, 0), len(batch) if stop is None else min(stop - position, len(batch))
        if first < last:
            yield position + first, [decoded(row, decoders) for row in batch.slice(first, last - first).to_pylist()]
        position += len(batch)


def _holds_all_images(row_group: Any, column: str) -> bool:
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    encoded = next((c for c in columns if c.path_in_schema == f"{column}.bytes"), None)
    return encoded is not None and encoded.statistics is not None and encoded.statistics.null_count == 0


def _stores_bytes(column: pa.Array) -> bool:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.call_function("struct_field", [column], pc.StructFieldOptions(["bytes"]))
        kind = column.type
    return (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and not column.null_count
