"""Readers of rows: parquet files in batches, any other table through `datasets`, a user's own function.

None of them decodes an image: a cell holds what the dataset stores, and `vlm_core.data.examples` takes it apart.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

ROWS_AT_ONCE = 64  # bounds the memory of a build: of MedPix-VQA, 20 MB

BUFFER = 2**20  # bytes

Row = dict[str, Any]


class Rows(Protocol):
    """Rows `[start, stop)` of a split, read as often as asked for and never all at once."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        ...

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        """Yields (number of the first row, rows with `columns`)."""
        ...

    def image_paths(self, column: str) -> set[str]:
        """Returns the paths of the images that a column refers to and does not hold itself."""
        ...


@dataclass(frozen=True)
class ParquetRows:
    """Rows of parquet files, one behind the other."""

    files: tuple[Path, ...]

    @property
    def columns(self) -> list[str]:
        return pq.read_schema(self.files[0]).names

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        position = 0
        for path in self.files:
            # Read as it goes: by default, a file's whole columns are fetched ahead, images and all.
            file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
            end = position + file.metadata.num_rows
            if end > start and (stop is None or position < stop):
                yield from _cut(file.iter_batches(ROWS_AT_ONCE, columns=list(columns)), position, start, stop)
            position = end

    def image_paths(self, column: str) -> set[str]:
        found: set[str] = set()
        for path in self.files:
            file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
            for number in range(file.num_row_groups):
                if not _holds_all_images(file.metadata.row_group(number), column):
                    found.update(_paths(file.read_row_group(number, columns=[column])[column]))
        return found


@dataclass(frozen=True)
class TableRows:
    """Rows of a dataset of the `datasets` library, memory-mapped."""

    table: Dataset

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        chosen: Any = self.table.select_columns(list(columns)).with_format("arrow")
        stop = len(self) if stop is None else stop
        for first in range(start, stop, ROWS_AT_ONCE):
            yield first, chosen[first : min(first + ROWS_AT_ONCE, stop)].to_pylist()

    def image_paths(self, column: str) -> set[str]:
        chosen: Any = self.table.select_columns([column]).with_format("arrow")
        return {
            path
            for first in range(0, len(self), ROWS_AT_ONCE)
            for path in _paths(chosen[first : first + ROWS_AT_ONCE][column])
        }


@dataclass(frozen=True)
class FunctionRows:
    """What a function of the user's returns: called when the first row is wanted, not when it is known already."""

    call: Callable[[], Any]

    columns = ["conversation", "case_id", "mode"]

    @cached_property
    def _items(self) -> Any:
        return self.call()

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        items, number = iter(self._items), 0
        while rows := list(islice(items, ROWS_AT_ONCE)):
            yield number, [{column: row.get(column) for column in columns} for row in rows]
            number += len(rows)

    def image_paths(self, column: str) -> set[str]:
        return set()  # What the function reads is its own affair: `path_or_dataset` identifies it.


def _cut(
    batches: Iterator[pa.RecordBatch], position: int, start: int, stop: int | None
) -> Iterator[tuple[int, list[Row]]]:
    for batch in batches:
        first, last = max(start - position, 0), len(batch) if stop is None else min(stop - position, len(batch))
        if first < last:
            yield position + first, batch.slice(first, last - first).to_pylist()
        position += len(batch)


def _holds_all_images(row_group: Any, column: str) -> bool:
    """Returns whether a column holds the bytes of all its images, as its statistics say: then it refers to no file."""
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    encoded = next((c for c in columns if c.path_in_schema == f"{column}.bytes"), None)
    return encoded is not None and encoded.statistics is not None and encoded.statistics.null_count == 0


def _paths(column: Any) -> list[str]:
    """Returns the distinct paths in a column of images, of lists of them, or of conversations with images in them.

    Whole numbers name image files too.
    """
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.call_function("list_flatten", [column])
    if pa.types.is_struct(column.type):
        names = {column.type.field(i).name for i in range(column.type.num_fields)}
        if {"bytes", "path"} <= names:
            missing = pc.call_function("is_null", [_field(column, "bytes")])
            return _paths(_field(column, "path").filter(missing))
        # Of a conversation: the images among the parts of its turns, and not what a turn says as plain text.
        inner = _field(column, "image" if "image" in names else "content") if names & {"image", "content"} else None
        return _paths(inner) if inner is not None and ("image" in names or not _is_text(inner.type)) else []
    if not _is_text(column.type):
        return []
    return column.drop_null().unique().to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _field(column: Any, name: str) -> Any:
    return pc.call_function("struct_field", [column], pc.StructFieldOptions([name]))
