"""Rows of JSON and JSONL files, each cell with the type that the file gives it.

A file holds one object a row (JSONL), an array of rows, or one object around them: `{"data": [rows]}`,
`{"train": [rows], "validation": [rows]}`, or its columns, as pandas writes them. A file is read from start to end once
to check it. Only a file of columns is ever in memory as a whole.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vlm_core.data.json_stream import JsonStream
from vlm_core.data.table_files import SPLIT_WORDS
from vlm_core.data.text_files import encoding_of, open_text, unpacked_name

ROWS_AT_ONCE = 64
# Objects with these keys are turns of a conversation, not rows.
TURN_KEYS = ({"role", "content"}, {"from", "value"})
FORMS = 'one object a line, an array of objects, {"data": [objects]} or {"column": [values]}'

Row = dict[str, Any]


@dataclass(frozen=True)
class JsonFile:
    """A checked file: how its rows are found in it, the names of its columns, its number of rows."""

    path: Path
    encoding: str
    form: str  # "rows", "array", "object" (the rows are the array `key`) or "columns"
    names: tuple[str, ...]
    length: int
    key: str = ""
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """Yields the rows; a column that a row does not have is missing from it."""
        with open_text(self.path, self.encoding) as text:
            yield from (row for _, row in _rows_of(JsonStream(self.path, text), self.form, self.key))

    def lines(self) -> Iterator[int]:
        """Yields the line on which each row begins."""
        with open_text(self.path, self.encoding) as text:
            yield from (line for line, _ in _rows_of(JsonStream(self.path, text), self.form, self.key))


@dataclass(frozen=True)
class JsonRows:
    """Rows of JSON files, one file after the other."""

    files: tuple[JsonFile, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "JsonRows":
        """Checks all files; raises ValueError with file, line and remedy for what holds no rows."""
        return cls.joined(file for path in paths for file in [_only(path, checked_files(path))])

    @classmethod
    def joined(cls, files: Iterable[JsonFile]) -> "JsonRows":
        """Returns the rows of checked files."""
        files = tuple(files)
        return cls(files, tuple(note for file in files for note in file.notes))

    @property
    def columns(self) -> list[str]:
        return [*dict.fromkeys(name for file in self.files for name in file.names)]

    def columns_by_file(self) -> list[tuple[Path, Sequence[str]]]:
        return [(file.path, file.names) for file in self.files if file.length]

    def __len__(self) -> int:
        return sum(file.length for file in self.files)

    def batches(self, columns: Sequence[str], start: int, stop: int | None) -> Iterator[tuple[int, list[Row]]]:
        with closing(_chained(self.files)) as every:
            rows = islice(every, start, stop)
            while batch := [{name: row.get(name) for name in columns} for row in islice(rows, ROWS_AT_ONCE)]:
                yield start, batch
                start += len(batch)

    def holds_images(self, column: str) -> bool:
        return False


def checked_files(path: Path) -> dict[str, JsonFile]:
    """Returns `{split: file}` of a file that has its splits inside, `{"": file}` of any other; reads it as a whole."""
    encoding, decoded = encoding_of(path)
    notes = tuple(f"{path}: {note}" for note in decoded)
    form, keys = _form_of(path, encoding)
    files = {}
    for split, key in keys.items():
        names, length = _names_and_length(path, encoding, form, key)
        inside = (f"{path}: the rows are the list {key!r} of its object",) if form == "object" else ()
        files[split] = JsonFile(path, encoding, form, names, length, key, (*notes, *inside))
    return files


def _only(path: Path, files: dict[str, JsonFile]) -> JsonFile:
    if len(files) > 1:
        raise ValueError(f"{path} has the splits {', '.join(files)} inside, beside other files: move the others away")
    return next(iter(files.values()))


def _names_and_length(path: Path, encoding: str, form: str, key: str) -> tuple[tuple[str, ...], int]:
    names: dict[str, None] = {}
    length = 0
    with open_text(path, encoding) as text:
        stream = JsonStream(path, text)
        for line, row in _rows_of(stream, form, key):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line}: a row is an object, found {_kind(row)}; understood are {FORMS}")
            names.update(dict.fromkeys(row))
            length += 1
    return tuple(names), length


def _rows_of(stream: JsonStream, form: str, key: str) -> Iterator[tuple[int, Any]]:
    """Yields (line, row)."""
    if form == "rows":
        while stream.peek():
            line = stream.line
            yield line, stream.value()
    elif form == "array":
        yield from stream.items()
        if stream.peek():
            raise stream.error(f"text after the end of the array: {stream.peek()!r}")
    elif form == "object":
        for name in stream.names():
            if name == key:
                yield from stream.items()
            else:
                stream.value()
    else:
        yield from ((1, row) for row in _of_columns(stream.value()))


def _form_of(path: Path, encoding: str) -> tuple[str, dict[str, str]]:
    """Returns (the form of a file, `{split: key of its rows}`)."""
    with open_text(path, encoding) as text:
        stream = JsonStream(path, text)
        if stream.peek() == "[":
            return "array", {"": ""}
        if stream.peek() != "{" or unpacked_name(path).suffix.lower() != ".json":
            return "rows", {"": ""}
        contents = {key: _Content.of(stream) for key in stream.names()}
        if stream.peek():  # More objects follow: the first one was a row.
            return "rows", {"": ""}
    return _form_of_object(path, contents)


@dataclass
class _Content:
    """What an object has under a key: `rows` if it is an array of objects that are not turns of a conversation."""

    kind: str = "value"  # "rows", "list", "object" or "value"
    length: int = 0
    keys: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stream: JsonStream) -> "_Content":
        """Reads the value that comes next."""
        if stream.peek() != "[":
            value = stream.value()
            return cls("object", len(value), [*value]) if isinstance(value, dict) else cls()
        content = cls("rows")
        for _, item in stream.items():
            content.length += 1
            if not isinstance(item, dict) or any(keys <= item.keys() for keys in TURN_KEYS):
                content.kind = "list"
        return content if content.length else cls("list")


def _form_of_object(path: Path, contents: dict[str, _Content]) -> tuple[str, dict[str, str]]:
    kinds, lengths = {c.kind for c in contents.values()}, {c.length for c in contents.values()}
    if len(contents) > 1 and "list" in kinds <= {"list", "rows"} and len(lengths) == 1:
        return "columns", {"": ""}
    lists = [key for key, content in contents.items() if content.kind == "rows"]
    if len(lists) == 1:
        return "object", {"": lists[0]}
    if lists and all(key.lower() in SPLIT_WORDS for key in lists):
        return "object", {SPLIT_WORDS[key.lower()]: key for key in lists}
    if lists:
        raise ValueError(f"{path} holds an object with several lists of rows ({', '.join(lists)}); write one of them")
    if contents and kinds == {"object"}:
        if all(content.keys == [str(i) for i in range(content.length)] for content in contents.values()):
            return "columns", {"": ""}
        first = ", ".join(list(contents)[:3])
        raise ValueError(f"{path} holds an object of objects ({first}), not rows; understood are {FORMS}")
    return "rows", {"": ""}


def _of_columns(columns: dict[str, Any]) -> list[Row]:
    values = [list(column.values()) if isinstance(column, dict) else column for column in columns.values()]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True)]


def _chained(files: Iterable[JsonFile]) -> Generator[Row, None, None]:
    yield from chain.from_iterable(file.rows() for file in files)


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
