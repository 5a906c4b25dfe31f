"""Reads the values of a JSON file one after the other, so that a file larger than the memory can be read.

The values keep the types that the file gives them: `2` is a number, `"2"` is a text.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 2**20  # characters
LARGEST_VALUE = 2**28  # characters of one row: a broken file does not fill the memory
SPACE = re.compile(r"[ \t\r\n]*")
NEAR_END = 64  # characters: an error this near to the end of the buffer may only mean that more must be read
UNFINISHED = "Unterminated string"  # Its position is where the text begins.
DIGITS = 4000  # Python reads no longer integers.


class JsonStream:
    """The text of a JSON file, read in chunks; `line` is that of the next character."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path, self.line = path, 1
        self._stream, self._buffer, self._at, self._ended = stream, "", 0, False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)

    def peek(self) -> str:
        """Returns the next character that is not white space, "" at the end of the file."""
        while True:
            match = SPACE.match(self._buffer, self._at)
            assert match
            self._move_to(match.end())
            if self._at < len(self._buffer) or not self._read():
                return self._buffer[self._at : self._at + 1]

    def take(self, expected: str) -> None:
        """Moves past one of the `expected` characters; raises ValueError if another one comes next."""
        found = self.peek()
        if not found or found not in expected:
            wanted = " or ".join(map(repr, expected))
            raise self.error(f"{wanted} expected, found {found!r}" if found else "the file ends before its JSON does")
        self._move_to(self._at + 1)

    def value(self) -> Any:
        """Returns the next value; raises ValueError with file and line for what is not JSON."""
        self.peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                early = error.pos < len(self._buffer) - NEAR_END and not error.msg.startswith(UNFINISHED)
                after = error.pos - self._at  # Reading on moves the buffer.
                if early or not self._read(wanted):
                    raise self._broken(error.msg, self._at + after) from None
            except RecursionError:
                raise self.error("the JSON is nested too deeply") from None
            else:
                # A number at the end of the buffer may continue in the next chunk.
                if end < len(self._buffer) or not self._read():
                    self._move_to(end)
                    return value
            wanted = len(self._buffer) - self._at  # Doubles what is read: the work stays linear.
            if wanted > LARGEST_VALUE:
                raise self.error(f"a value of more than {LARGEST_VALUE:,} characters; write one object a line (JSONL)")

    def items(self) -> Iterator[tuple[int, Any]]:
        """Yields (line, value) of the array that comes next."""
        self.take("[")
        if self.peek() != "]":
            while True:
                self.peek()
                line = self.line
                yield line, self.value()
                if self.peek() != ",":
                    break
                self.take(",")
        self.take("]")

    def names(self) -> Iterator[str]:
        """Yields the names in the object that comes next; the caller takes each value before the next name."""
        self.take("{")
        names: set[str] = set()
        if self.peek() != "}":
            while True:
                if self.peek() != '"':
                    raise self.error(f"a name in double quotes expected, found {self.peek()!r}")
                key = self.value()
                if key in names:
                    raise self._twice(key)
                names.add(key)
                self.take(":")
                yield key
                if self.peek() != ",":
                    break
                self.take(",")
        self.take("}")

    def error(self, what: str) -> ValueError:
        """Returns an error with file and line."""
        return ValueError(f"{self.path}, line {self.line}: {what}")

    def _broken(self, message: str, position: int) -> ValueError:
        line = self.line + self._buffer.count("\n", self._at, position)
        place = f"{self.path}, line {line}"
        if not self._buffer[position:].strip() or message.startswith(UNFINISHED):
            return ValueError(f"{place}: the JSON ends before it is complete ({message}): export or copy it again")
        near = self._buffer[position : position + 20]
        return ValueError(f"{place}: not JSON ({message}, at {near!r}): write each row with json.dumps")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise self._twice(next(name for name in names if names.count(name) > 1))
        return found

    def _twice(self, name: str) -> ValueError:
        return self.error(f"an object has two values named {name!r}; rename or delete one of them")

    def _integer(self, digits: str) -> int:
        if len(digits) > DIGITS:
            raise self.error(f"a number of {len(digits):,} digits")
        return int(digits)

    def _move_to(self, position: int) -> None:
        self.line += self._buffer.count("\n", self._at, position)
        self._at = position

    def _read(self, characters: int = CHUNK) -> bool:
        """Appends the next chunk to what is left of the buffer; returns whether there was more."""
        chunk = self._stream.read(characters) if not self._ended else ""
        self._ended = not chunk
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)
