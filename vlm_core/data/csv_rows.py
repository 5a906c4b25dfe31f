"""CSV files as people export them: separator and byte-order mark are detected, and every cell is a text.

A file is read from start to end once to check it, so that a row that does not fit the header is refused with its line
before anything is built.
"""

import csv
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vlm_core.data.text_files import encoding_of, open_text, unpacked_name

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
SAMPLE = 1000  # records that the separator is chosen by
# Characters: an image as base64 fits, and an unclosed quote does not fill the memory.
LARGEST_CELL = 2**26


@dataclass(frozen=True)
class CsvFile:
    """A checked file: how to read it, the names of its columns, its number of rows."""

    path: Path
    encoding: str
    separator: str
    names: tuple[str, ...]
    length: int
    notes: tuple[str, ...] = ()
    has_header: bool = True
    quoted: bool = True  # whether quotes enclose fields

    has_lines = True

    @classmethod
    def checked(cls, path: Path, column_names: Sequence[str] = ()) -> "CsvFile":
        """Reads the whole file once; raises ValueError with file, line and remedy for what is not a table.

        With `column_names` the file has no header: its first line is a row. If its quotes do not enclose fields, they
        are part of the texts.
        """
        try:
            return cls._checked(path, column_names, quoted=True)
        except ValueError:
            if column_names:
                with suppress(ValueError):
                    return cls._checked(path, column_names, quoted=False)
            raise

    @classmethod
    def _checked(cls, path: Path, column_names: Sequence[str], *, quoted: bool) -> "CsvFile":
        encoding, decoded = encoding_of(path)
        separator = _separator_of(path, encoding, len(column_names))
        records = _records(path, encoding, separator, quoted=quoted)
        line, header = (1, [*column_names]) if column_names else next(records, (1, []))
        if not any(name.strip() for name in header):
            raise ValueError(f"{path} is empty: its first line must have the names of the columns")
        names = _names(path, line, header)
        named_by = "dataset.column_names" if column_names else "the header"
        length = sum(1 for _ in _checked_rows(path, records, names, separator, named_by))
        unusual = separator != "," and not _is_tsv(path)
        read = [*decoded, *([f"separated by {SEPARATORS[separator]}s"] if unusual else [])]
        read += [] if quoted else ["quotes are part of the texts"]
        notes = (f"{path}: {', '.join(read)}",) if read else ()
        return cls(path, encoding, separator, names, length, notes, not column_names, quoted)

    def rows(self) -> Iterator[dict[str, str]]:
        """Yields the rows, each cell as text."""
        records = self._rows()
        for fields in _checked_rows(self.path, records, self.names, self.separator):
            yield dict(zip(self.names, fields, strict=True))

    def lines(self) -> Iterator[int]:
        """Yields the line on which each row begins."""
        yield from (line for line, _ in self._rows())

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        records = _records(self.path, self.encoding, self.separator, quoted=self.quoted)
        return islice(records, int(self.has_header), None)


def _records(
    path: Path, encoding: str, separator: str, *, quoted: bool = True
) -> Generator[tuple[int, list[str]], None, None]:
    """Yields (number of its first line, fields) of each record; raises ValueError for broken quotes or encoding."""
    csv.field_size_limit(LARGEST_CELL)
    with open_text(path, encoding) as stream:
        hint = stream.readline()
        skipped = hint[:4].lower() == "sep=" and len(hint.strip()) == 5  # Excel's own hint
        if not skipped:
            stream.seek(0)
        reader = csv.reader(
            stream, delimiter=separator, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        )
        line = 1 + skipped
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: the quotes do not fit ({error}); a text with quotes in it is written in "
                    'quotes, with each quote inside it twice: "a ""quoted"" word"'
                ) from None
            except UnicodeError as error:
                raise ValueError(f"{path}, line {line}: not {encoding} ({error}); save the file as UTF-8") from None
            if fields is None:
                return
            if fields and (len(fields) > 1 or fields[0].strip()):
                yield line, fields
            line = reader.line_num + 1 + skipped


def _checked_rows(
    path: Path,
    records: Iterator[tuple[int, list[str]]],
    names: Sequence[str],
    separator: str,
    named_by: str = "the header",
) -> Iterator[list[str]]:
    """Yields the fields of each row; raises ValueError for a row with more or fewer fields than there are names."""
    for line, fields in records:
        surplus = fields[len(names) :]
        if len(fields) < len(names) or any(surplus):
            raise ValueError(
                f"{path}, line {line}: the row has {len(fields)} fields, and {named_by} has {len(names)} names "
                f"({', '.join(names)}). A text that holds a {SEPARATORS[separator]} must be in quotes, and an empty "
                f"cell keeps its {SEPARATORS[separator]}: correct the line, or export the table again with quotes"
            )
        yield fields[: len(names)]


def _names(path: Path, line: int, header: list[str]) -> tuple[str, ...]:
    """Returns the names of the columns; unnamed ones at the end are dropped, others get their number as a name."""
    names = [name.strip() for name in header]
    while not names[-1]:
        names.pop()
    names = [name or f"column {place}" for place, name in enumerate(names, start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}, line {line}: two columns are named {twice[0]!r}; rename or delete one of them")
    return tuple(names)


def _separator_of(path: Path, encoding: str, columns: int) -> str:
    """Returns the separator that divides the header, and if several do, the one that divides all rows alike.

    If the number of `columns` is known (not 0), it is the first that divides each row into so many, with quotes or
    without; the rarest in texts is tried first.
    """
    if _is_tsv(path):
        return "\t"
    for mark in "\t|;," if columns > 1 else "":
        if any(set(_field_counts(path, encoding, mark, quoted=q)) == {columns} for q in (True, False)):
            return mark
    counts = {mark: _field_counts(path, encoding, mark, quoted=True) for mark in SEPARATORS}
    dividing = {separator: found for separator, found in counts.items() if found and found[0] > 1}
    alike = {separator: found for separator, found in dividing.items() if len(set(found)) == 1}
    choice = alike or dividing
    if not choice:
        return ","  # a table of one column
    most = max(found[0] for found in choice.values())
    best = [separator for separator, found in choice.items() if found[0] == most]
    if len(best) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in best)
        raise ValueError(f"{path}: the separator may be {names}; export the table again with commas and quotes")
    return best[0]


def _field_counts(path: Path, encoding: str, separator: str, *, quoted: bool) -> list[int]:
    """Returns the number of fields of the first records, nothing if the quotes do not fit the separator."""
    with closing(_records(path, encoding, separator, quoted=quoted)) as records:
        try:
            return [len(fields) for _, fields in islice(records, SAMPLE)]
        except ValueError:
            return []


def _is_tsv(path: Path) -> bool:
    return unpacked_name(path).suffix.lower() == ".tsv"
