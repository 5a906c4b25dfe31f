"""Rows of JSON and JSONL files, each cell with the type that the file gives it.

A file holds one object a row (JSONL), an array of rows, or one object around them: `{"data": [rows]}`,
`{"train": [rows], "validation": [rows]}`, or its columns, as pandas writes them. A file is read from start to end once
to check it. Only a file of columns is ever in memory as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_core.data.json_stream import JsonStream
from vlm_core.data.table_files import SPLIT_WORDS
from vlm_core.data.text_files import encoding_of, open_text, unpacked_name
from vlm_core.data.text_rows import Row

# Objects with these keys are turns of a conversation, not rows.
TURN_KEYS = ({"role", "content"}, {"from", "value"})
FORMS = 'one object a line, an array of objects, {"data": [objects]} or {"column": [values]}'


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

    @property
    def has_lines(self) -> bool:
        """Whether each row begins on a line of its own: not in a file of columns."""
        return self.form != "columns"

    def rows(self) -> Iterator[Row]:
        """Yields the rows; a column that a row does not have is missing from it."""
        with open_text(self.path, self.encoding) as text:
            yield from (row for _, row in _rows_of(JsonStream(self.path, text), self.form, self.key))

    def lines(self) -> Iterator[int]:
        """Yields the line on which each row begins."""
        with open_text(self.path, self.encoding) as text:
            yield from (line for line, _ in _rows_of(JsonStream(self.path, text), self.form, self.key))


def checked_file(path: Path) -> JsonFile:
    """Returns a file that is one table; raises ValueError with file, line and remedy for any other."""
    files = checked_files(path)
    if len(files) > 1:
        raise ValueError(f"{path} has the splits {', '.join(files)} inside, beside other files: move the others away")
    return next(iter(files.values()))


def checked_files(path: Path) -> dict[str, JsonFile]:
    """Returns `{split: file}` of a file that has its splits inside, `{"": file}` of any other; reads all of it.

    Raises ValueError with file, line and remedy for a file without rows.
    """
    encoding, decoded = encoding_of(path)
    notes = tuple(f"{path}: {note}" for note in decoded)
    form, keys, contents = _form_of(path, encoding)
    if form != "object":
        names, length = _names_and_length(path, encoding, form)
        return {"": JsonFile(path, encoding, form, names, length, notes=notes)}
    return {
        split: JsonFile(
            path,
            encoding,
            form,
            tuple(contents[key].keys),
            contents[key].length,
            key,
            (*notes, f"{path}: the rows are the list {key!r} of its object"),
        )
        for split, key in keys.items()
    }


def _names_and_length(path: Path, encoding: str, form: str) -> tuple[tuple[str, ...], int]:
    names: dict[str, None] = {}
    length = 0
    with open_text(path, encoding) as text:
        stream = JsonStream(path, text)
        for line, row in _rows_of(stream, form):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line}: a row is an object, found {_kind(row)}; understood are {FORMS}")
            names.update(dict.fromkeys(row))
            length += 1
    return tuple(names), length


def _rows_of(stream: JsonStream, form: str, key: str = "") -> Iterator[tuple[int, Any]]:
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


def _form_of(path: Path, encoding: str) -> tuple[str, dict[str, str], dict[str, "_Content"]]:
    """Returns (the form of a file, `{split: key of its rows}`, what its object has under each key)."""
    with open_text(path, encoding) as text:
        stream = JsonStream(path, text)
        if stream.peek() == "[":
            return "array", {}, {}
        if stream.peek() != "{" or unpacked_name(path).suffix.lower() != ".json":
            return "rows", {}, {}
        contents = {key: _Content.of(stream) for key in stream.names()}
        if stream.peek():  # More objects follow: the first one was a row.
            return "rows", {}, {}
    return *_form_of_object(path, contents), contents


@dataclass
class _Content:
    """What an object has under a key: `rows` if it is an array of objects that are not turns of a conversation."""

    kind: str = "value"  # "rows", "list", "object" or "value"
    length: int = 0
    keys: dict[str, None] = field(default_factory=dict)  # of the object, or of all rows: their columns

    @classmethod
    def of(cls, stream: JsonStream) -> "_Content":
        """Reads the value that comes next."""
        if stream.peek() != "[":
            value = stream.value()
            return cls("object", len(value), dict.fromkeys(value)) if isinstance(value, dict) else cls()
        content = cls("rows")
        for _, item in stream.items():
            content.length += 1
            if not isinstance(item, dict) or any(keys <= item.keys() for keys in TURN_KEYS):
                content.kind = "list"
            else:
                content.keys.update(dict.fromkeys(item))
        return content if content.length else cls("list")


def _form_of_object(path: Path, contents: dict[str, _Content]) -> tuple[str, dict[str, str]]:
    kinds, lengths = {c.kind for c in contents.values()}, {c.length for c in contents.values()}
    if len(contents) > 1 and "list" in kinds <= {"list", "rows"} and len(lengths) == 1:
        return "columns", {}
    lists = [key for key, content in contents.items() if content.kind == "rows"]
    if len(lists) == 1:
        return "object", {"": lists[0]}
    splits = {SPLIT_WORDS.get(key.lower(), ""): key for key in lists}
    if len(splits) == len(lists) > 0 and "" not in splits:
        return "object", splits
    if lists:
        raise ValueError(f"{path} holds an object with several lists of rows ({', '.join(lists)}); write one of them")
    if contents and kinds == {"object"}:
        if all([*content.keys] == [str(i) for i in range(content.length)] for content in contents.values()):
            return "columns", {}
        first = ", ".join(list(contents)[:3])
        raise ValueError(f"{path} holds an object of objects ({first}), not rows; understood are {FORMS}")
    return "rows", {}


def _of_columns(columns: dict[str, Any]) -> list[Row]:
    values = [list(column.values()) if isinstance(column, dict) else column for column in columns.values()]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True)]


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
