"""Files that are complete or absent: written aside, flushed to the disk, then renamed into place.

JSON files hold no NaN and no infinity, which are not JSON: they become null.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("no space left", "disk quota", *(f"os error {number}" for number in FULL))  # of safetensors and pyarrow
NOTHING = 1_000_000  # bytes: a disk with less is full


class NoSpaceError(ValueError):
    """A disk is full; the message says which, and what to do."""


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) atomically, making missing parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON, with null for a number that is not finite.

    >>> to_json({"loss": float("nan"), "steps": [1, float("inf")]})
    '{"loss": null, "steps": [1, null]}'
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Returns the JSON value stored in `path`; raises ValueError that names a file that is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or what it belongs to, and run again") from None


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends `record` as one line; closing the file flushes it, so that a follower sees whole lines early."""
    append_json_lines(path, [record])


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends `records`, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path.parent), path.open("a", encoding="utf-8") as stream:
        stream.writelines(to_json(record) + "\n" for record in records)


def read_json_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the records of a JSON-lines file after byte `offset`, and the offset after the last of them.

    A last line that is still being written is left for the next call. A missing file has no records. A damaged line, as
    a power cut leaves it, is left out with a warning.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        complete, newline, _ = stream.read().rpartition(b"\n")
    records = [_record(path, line) for line in complete.split(b"\n") if line]
    return [record for record in records if record is not None], offset + len(complete) + len(newline)


def _record(path: Path, line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        logger.warning("%s has a damaged line, which is left out: %r", path, line[:60])
        return None
    return record


def _aside(final: Path) -> Path:
    """Returns where this process writes what will become `final`: hosts that share a directory may share a pid."""
    host = socket.gethostname().replace(".", "-")  # the suffix after the last dot identifies the writer
    return final.with_name(f".{final.name}.{host}-{os.getpid()}")


@contextmanager
def published_file(final: Path) -> Iterator[Path]:
    """Yields a path beside `final` to write to; the file takes its place when the block ends without an error."""
    aside = _aside(final)
    try:
        with full_disk_named(final.parent):
            yield aside
            _flush(aside)
            aside.replace(final)
            _flush(final.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def published_directory(final: Path) -> Iterator[Path]:
    """Yields an empty directory beside `final` that takes its place when the block ends without an error.

    A `final` that already exists is replaced. After an error nothing is left.
    """
    aside = _aside(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with full_disk_named(final.parent):
            aside.mkdir(parents=True)
            yield aside
            for path in (*aside.rglob("*"), aside):
                _flush(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)
    _flush(final.parent)


@contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Turns an error of the block into NoSpaceError if the disk of `directory` is full, whichever library raised it."""
    try:
        yield
    except Exception as error:
        if not _is_full(error, directory):
            raise
        raise NoSpaceError(
            f"no space left in {directory} ({type(error).__name__}): free some, or set MEDPIX_HOME or "
            "checkpoint.checkpoint_dir to a directory on another disk, and give the same command again"
        ) from error


def _is_full(error: BaseException, directory: Path) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(words in str(error).lower() for words in FULL_WORDS):
        return True
    # torch.save says of a full disk only that its writer failed.
    return isinstance(error, RuntimeError) and free_bytes(directory) < NOTHING


def free_bytes(directory: Path) -> int:
    """Returns the bytes that can be written into a directory, or where it would be made."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def point(pointer: Path, target: Path) -> None:
    """Makes the symbolic link `pointer` refer to `target`, a path in the same directory or below, atomically."""
    aside = _aside(pointer)
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(target, pointer.parent))
    if pointer.is_dir() and not pointer.is_symlink():  # a tool without links has copied the run directory
        shutil.rmtree(pointer)
    aside.replace(pointer)
    _flush(pointer.parent)


def _flush(path: Path) -> None:
    """Has the disk store a file, or a directory's entries, before a name claims that they are complete."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems flush no directory
            raise
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error says that a file could not be written for want of space.

    safetensors and torch raise errors of their own, which say it in words.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left", "Disk quota exceeded", "file write failed"))


def stays_inside(directory: Path, path: Path) -> bool:
    """Returns whether a path lies below `directory` once all links are followed.

    The files of a snapshot in the hub's cache are links to the blobs of their repository: these count as inside.
    """
    root, target = directory.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    return target.is_relative_to(root) or target.parent == blobs
