"""Files that are complete or absent: written aside, then renamed into place."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) atomically, making missing parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Returns the JSON value stored in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends `record` as one line; closing the file flushes it, so that a follower sees whole lines early."""
    append_json_lines(path, [record])


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends `records`, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_json_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the records of a JSON-lines file behind byte `offset`, and the offset behind the last of them.

    A last line that is still being written is left for the next call. A file that is not there has no records.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        complete, newline, _ = stream.read().rpartition(b"\n")
    records = [json.loads(line) for line in complete.splitlines()]
    return records, offset + len(complete) + len(newline)


def _aside(final: Path) -> Path:
    """Returns where this process writes what will become `final`: hosts that share a directory may share a pid."""
    host = socket.gethostname().replace(".", "-")  # what follows the last dot is the writer
    return final.with_name(f".{final.name}.{host}-{os.getpid()}")


@contextmanager
def published_file(final: Path) -> Iterator[Path]:
    """Yields a path beside `final` to write to; the file takes its place when the block ends without an error."""
    aside = _aside(final)
    try:
        yield aside
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def published_directory(final: Path) -> Iterator[Path]:
    """Yields an empty directory beside `final` that takes its place when the block ends without an error.

    A `final` that already exists is replaced; after an error nothing is left behind.
    """
    aside = _aside(final)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)


def point(pointer: Path, target: Path) -> None:
    """Makes the symbolic link `pointer` refer to `target`, a path in the same directory or below, atomically."""
    aside = _aside(pointer)
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(target, pointer.parent))
    aside.replace(pointer)


def stays_inside(directory: Path, path: Path) -> bool:
    """Returns whether a path lies below `directory` once all links are followed.

    The files of a snapshot in the hub's cache are links to the blobs of their repository: these count as inside.
    """
    root, target = directory.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    return target.is_relative_to(root) or target.parent == blobs
