"""Writes files atomically: into a temporary path, flushed to disk, then renamed into place.

In JSON files NaN and infinity become null, because JSON does not allow them.
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
# Words in the disk-full errors of safetensors, pyarrow, torch.save, and torch's DCP.
FULL_WORDS = ("no space left", "disk quota", "file write failed", *(f"os error {number}" for number in FULL))
NOTHING = 1_000_000  # a disk with fewer free bytes counts as full


class NoSpaceError(ValueError):
    """A disk is full. The message names the directory and says what to do."""


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) atomically, making missing parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON, with null for NaN and infinity.

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
    """Returns the JSON value stored in `path`; raises ValueError if the file is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, or the directory that it belongs to, and run again"
        ) from None


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends `record` as one line and flushes it, so that a reader sees the complete line at once."""
    append_json_lines(path, [record])


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Appends `records`, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path.parent), path.open("a", encoding="utf-8") as stream:
        stream.writelines(to_json(record) + "\n" for record in records)


def read_json_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the records of a JSON-lines file after byte `offset`, and the offset after the last of them.

    An unfinished last line is left for the next call. A missing file has no records. A damaged line, for example after
    a power cut, is skipped with a warning.
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
        logger.warning("%s has a damaged line, which is skipped: %r", path, line[:60])
        return None
    return record


def _aside(final: Path) -> Path:
    """Returns the temporary path for `final`. It includes the host, because two hosts may use the same pid."""
    host = socket.gethostname().replace(".", "-")  # the suffix after the last dot identifies the writer (host-pid)
    return final.with_name(f".{final.name}.{host}-{os.getpid()}")


@contextmanager
def published_file(final: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the file becomes `final` if the block ends without an error."""
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
    """Yields an empty temporary directory, which becomes `final` if the block ends without an error.

    An existing `final` is replaced. After an error the temporary directory is removed.
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
    """Turns any library's disk-full error in the block into a NoSpaceError that names `directory`."""
    try:
        yield
    except BaseException as error:  # the error of torch's DCP is not an Exception
        # On a full disk, torch.save may only report that its zip file has a wrong position.
        is_full = is_disk_full(error) or (isinstance(error, RuntimeError) and free_bytes(directory) < NOTHING)
        if not is_full:
            raise
        raise NoSpaceError(
            f"no space left in {directory}, which has {free_bytes(directory) / 1e6:.0f} MB free: free some space (a "
            "lower checkpoint.max_recent_checkpoints keeps fewer checkpoints), or set MEDPIX_HOME or "
            "checkpoint.checkpoint_dir to a directory on another disk, and run the same command again"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Returns whether any library's error means that the disk is full; for most, only the message says so."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(words in str(error).lower() for words in FULL_WORDS)


def free_bytes(directory: Path) -> int:
    """Returns the free bytes on the disk of `directory`, which need not exist yet."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def point(pointer: Path, target: Path) -> None:
    """Atomically points the symbolic link `pointer` to `target`, a path in the same directory or below."""
    aside = _aside(pointer)
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(target, pointer.parent))
    if pointer.is_dir() and not pointer.is_symlink():  # a tool without symlink support copied the run directory
        shutil.rmtree(pointer)
    aside.replace(pointer)
    _flush(pointer.parent)


def _flush(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk. Call it before the rename that publishes them."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush directories
            raise
    finally:
        os.close(descriptor)


def stays_inside(directory: Path, path: Path) -> bool:
    """Returns whether a path lies below `directory` after resolving all symbolic links.

    A snapshot in the hub's cache consists of links to the blobs of its repository. These count as inside.
    """
    root, target = directory.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    return target.is_relative_to(root) or target.parent == blobs
