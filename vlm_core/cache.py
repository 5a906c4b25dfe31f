"""Content-addressed directories: built once, complete or absent, safe under two builders and under kill -9."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlm_core.files import file_sha256, published_directory, read_json, write_json

MANIFEST = "manifest.json"
FILES = "files"  # in it, the sha256 of every file beside it


def cached_directory(root: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, bool]:
    """Returns (`root/key`, whether it was there already).

    A missing directory is built aside by `build(directory)`, whose return value becomes its manifest, and renamed
    into place. Of two builders at once one builds; the other waits and reuses. `key` must name everything that the
    content depends on.
    """
    final = root / key
    if (final / MANIFEST).exists():
        touch(final / MANIFEST)
        return final, True
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{key}.lock"):
        if (final / MANIFEST).exists():
            return final, True
        for rubbish in root.glob(f".{key}.*/"):  # of a builder that was killed: the lock says that none is at work
            shutil.rmtree(rubbish)
        with published_directory(final) as aside:
            manifest = build(aside)
            write_json(aside / MANIFEST, {**manifest, FILES: checksums(aside)})
    return final, False


def touch(path: Path) -> None:
    """Notes that `path` was used now, which prune goes by; one that belongs to somebody else is left as it is."""
    with suppress(OSError):
        os.utime(path)


def checksums(directory: Path) -> dict[str, str]:
    """Returns the sha256 of each file below `directory`, by relative path; the manifest is left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            found[str(path.relative_to(directory))] = file_sha256(path)
    return found


def damaged_files(directory: Path) -> list[str]:
    """Returns the files of a complete cache directory that are missing, or not as they were written."""
    written, there = read_manifest(directory).get(FILES, {}), checksums(directory)
    return sorted(name for name, digest in written.items() if there.get(name) != digest)


def require_unchanged(directory: Path, sha256: dict[str, str]) -> None:
    """Raises ValueError where a file below `directory` is missing or has another sha256; they go by relative path."""
    there = checksums(directory)
    changed = sorted(name for name, digest in sha256.items() if there.get(name) != digest)
    if changed:
        raise ValueError(
            f"{directory} is not as it was registered: {', '.join(changed)} missing or changed; put it back, or "
            "register the model again"
        )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a complete cache directory; raises ValueError for one that is not."""
    if not (directory / MANIFEST).exists():
        raise ValueError(f"{directory} is no complete cache: it has no {MANIFEST}")
    return read_json(directory / MANIFEST)
