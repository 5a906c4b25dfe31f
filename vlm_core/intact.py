"""Finds damaged files of a cache when a run opens it: nobody trains on a flipped byte without a word.

The manifest of a cache has a fast checksum of each file, and of itself. The files are read and compared if one of them
changed since they were last compared, and once a day, because a disk may damage a file without changing its times.
`.KEY.verified` beside a cache has the sizes and times of its files when they were last compared.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from vlm_core.files import file_sha256, read_json, to_json, write_json

MANIFEST = "manifest.json"
FILES = "files"  # key of the manifest: the sha256 of every other file in the directory
FAST = "xxh3"  # key of the manifest: a fast checksum of every file; older caches have none
AT_ONCE = 1 << 20  # bytes
LARGE = 1_000_000_000  # bytes: to read more takes seconds
DAY = 24 * 3600
DIFFERS = "its checksum differs"
Times = dict[str, list[int]]  # by file: size, and the times of its content and of its entry in ns

logger = logging.getLogger(__name__)
_compared: dict[Path, Times] = {}  # by this process


def fast_checksums(manifest: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Returns the fast checksums of a cache directory's files, and of `manifest`, which is not written yet."""
    return {MANIFEST: _checksum_of(manifest)} | {name: _fast_checksum(directory / name) for name in manifest[FILES]}


def damages(directory: Path) -> dict[str, str]:
    """Returns what is wrong with each damaged file of a complete cache directory; {} if it is intact."""
    try:
        manifest = read_json(directory / MANIFEST)
        fast = dict(manifest.get(FAST, {}))
        own = fast.pop(MANIFEST, None)
        written = fast if own else dict(manifest.get(FILES, {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return {MANIFEST: str(error)}
    if own is not None and own != _checksum_of(manifest):
        return {MANIFEST: DIFFERS}
    times = _times(directory, written)
    if _is_known(directory, times):
        return {}
    size = sum(entry[0] for entry in times.values())
    if size > LARGE:
        logger.info("comparing the checksums of %s (%.1f GB)", directory, size / 1e9)
    checksum = _fast_checksum if own else file_sha256
    found = {name: _fault(directory / name, digest, checksum) for name, digest in written.items()}
    damaged = {name: fault for name, fault in found.items() if fault}
    if not damaged:
        _remember(directory, times)
    return damaged


def require_intact(directory: Path) -> None:
    """Raises ValueError that names a damaged file of a cache directory and the remedy.

    A directory that is still being built has no manifest and passes.
    """
    if not (directory / MANIFEST).is_file():
        return
    for name, fault in damages(directory).items():
        raise ValueError(
            f"{directory / name} is damaged ({fault}): delete {directory}, and run again to build it anew; "
            "python -m vlm_core.caches verify finds all damaged caches"
        )


def record_of(directory: Path) -> Path:
    """Returns the file that records when the files of a cache directory were last compared."""
    return directory.with_name(f".{directory.name}.verified")


def _checksum_of(manifest: Mapping[str, Any]) -> str:
    """Returns the checksum of a manifest, except its fast checksums."""
    rest = {key: value for key, value in manifest.items() if key != FAST}
    return xxhash.xxh3_128_hexdigest(to_json(rest).encode())


def _fast_checksum(path: Path) -> str:
    checksum = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(AT_ONCE):
            checksum.update(block)
    return checksum.hexdigest()


def _fault(path: Path, digest: str, checksum: Any) -> str | None:
    try:
        return None if checksum(path) == digest else DIFFERS
    except OSError as error:  # missing, or a part of the disk that cannot be read
        return error.strerror or str(error)


def _times(directory: Path, names: Mapping[str, str]) -> Times:
    """Returns the sizes and times of the files that are there."""
    found = {}
    for name in names:
        with suppress(OSError):
            status = (directory / name).stat()
            found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def _is_known(directory: Path, times: Times) -> bool:
    """Returns whether files with these times were compared by this process, or within a day by any."""
    if _compared.get(directory) == times:
        return True
    record = record_of(directory)
    try:
        return time.time() - record.stat().st_mtime < DAY and read_json(record) == times
    except (OSError, ValueError):
        return False


def _remember(directory: Path, times: Times) -> None:
    _compared[directory] = times
    with suppress(OSError):  # the caches of another user
        write_json(record_of(directory), times)
