"""Rows of CSV and JSON files. Each file was checked from start to end, so its columns and its length are known."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

ROWS_AT_ONCE = 64

Row = dict[str, Any]


class TextFile(Protocol):
    """A checked text file."""

    @property
    def path(self) -> Path: ...

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        ...

    @property
    def length(self) -> int:
        """The number of its rows."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log says about how it is read."""
        ...

    @property
    def has_lines(self) -> bool:
        """Whether each row begins on a line, which `lines` returns."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yields the rows; a column may be missing from a row."""
        ...

    def lines(self) -> Iterator[int]:
        """Yields the line on which each row begins."""
        ...


@dataclass(frozen=True)
class TextRows:
    """Rows of checked files, one file after the other. No more than a batch of rows is ever in memory."""

    files: tuple[TextFile, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log says about how the files are read."""
        return tuple(note for file in self.files for note in file.notes)

    @property
    def columns(self) -> list[str]:
        return [*dict.fromkeys(name for file in self.files for name in file.names)]

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return [(file.path, file.names) for file in self.files if file.length]

    def __len__(self) -> int:
        return sum(file.length for file in self.files)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        with closing(self._rows()) as every:
            rows = islice(every, start, stop)
            while batch := [{name: row.get(name) for name in columns} for row in islice(rows, ROWS_AT_ONCE)]:
                yield start, batch
                start += len(batch)

    def holds_images(self, column: str) -> bool:
        return False

    def _rows(self) -> Generator[Row, None, None]:
        yield from chain.from_iterable(file.rows() for file in self.files)
