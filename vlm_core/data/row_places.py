"""Finds the file and line of a row of a dataset, so that a person can open the file and look at it."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vlm_core.data.row_readers import ArrowTables, LabelledRows, Rows
from vlm_core.data.text_rows import TextRows


class _File(NamedTuple):
    path: Path
    length: int  # rows
    lines: Callable[[], Iterator[int]] | None  # the line on which each row begins; None for files without lines


def places_of(rows: Rows, numbers: Iterable[int], root: Path | None) -> dict[int, str]:
    """Returns `{number of a row: "data.csv, line 14"}`, or "data.parquet, row 12" for files without lines.

    Paths are relative to `root`. Rows without a known file are left out. A text file is read again, up to the last of
    the wanted rows.
    """
    wanted, found, first = sorted(set(numbers)), {}, 0
    for file in _files(rows):
        inside = [number for number in wanted if first <= number < first + file.length]
        if inside:
            name = os.path.relpath(file.path, root) if root else file.path.name
            found |= {number: f"{name}, {place}" for number, place in _inside(file, first, inside)}
        first += file.length
    return found


def _inside(file: _File, first: int, numbers: list[int]) -> Iterator[tuple[int, str]]:
    """Yields (number, place in the file) of rows; `first` is the number of the file's first row."""
    if file.lines is None:
        yield from ((number, f"row {number - first} (the first is 0)") for number in numbers)
        return
    remaining = set(numbers)
    for number, line in enumerate(islice(file.lines(), numbers[-1] - first + 1), start=first):
        if number in remaining:
            yield number, f"line {line}"


def _files(rows: Rows) -> list[_File]:
    if isinstance(rows, LabelledRows):
        return _files(rows.rows)
    if isinstance(rows, ArrowTables):
        return [_File(path, rows.lengths[path], None) for path in rows.files]
    if isinstance(rows, TextRows):
        return [_File(file.path, file.length, file.lines if file.has_lines else None) for file in rows.files]
    return []
