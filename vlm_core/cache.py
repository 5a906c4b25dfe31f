"""Content-addressed cache directories. Each is built once and is complete or absent, even with builders on many hosts.

A builder that is killed leaves no incomplete directory in place.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlm_core.files import file_sha256, published_directory, read_json, write_json
from vlm_core.intact import FAST, FILES, MANIFEST, damages, fast_checksums

logger = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of file systems without locks


def cached_directory(root: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, bool]:
    """Returns the directory `root/key`, built if it is missing, and whether it existed already.

    `build(directory)` fills a temporary directory, which is then renamed into place. Its return value becomes the
    manifest; if it has checksums under FILES, they are not computed again. If two processes need the directory at once,
    one builds it and the other waits. `key` must cover everything that the content depends on. A damaged directory is
    built again.
    """
    final = root / key
    if (final / MANIFEST).exists() and not damages(final):
        touch(final / MANIFEST)
        return final, True
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{key}.lock"):
        # List the directory instead of testing the name: NFS caches negative lookups for up to a minute.
        if final in root.iterdir() and (final / MANIFEST).exists():
            damaged = damages(final)
            if not damaged:
                return final, True
            faults = ", ".join(f"{name}: {fault}" for name, fault in damaged.items())
            logger.warning("%s is damaged (%s): it is built again", final, faults)
        for leftover in root.glob(f".{key}.*/"):  # from a killed builder: no other can be active while we hold the lock
            shutil.rmtree(leftover)
        with published_directory(final) as aside:
            manifest = build(aside)
            complete = {**manifest, FILES: manifest[FILES] if FILES in manifest else checksums(aside)}
            write_json(aside / MANIFEST, {**complete, FAST: fast_checksums(complete, aside)})
    return final, False


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Holds a lock on the file `path` for the block. Waits at most `timeout` seconds for it; -1 waits forever.

    The lock is a flock: the kernel releases it when the holder dies, so it is never stale. On network file systems with
    lock support it also excludes other hosts. Raises filelock.Timeout, or ValueError if the file system has no locks.
    """
    lock = FileLock(path, timeout=timeout, fallback_to_soft=False)  # a soft lock would outlive a killed holder
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{path.parent} is on a file system without flock ({error.strerror}), so two builders could write there at "
            "once; mount it with locks, or set MEDPIX_HOME and checkpoint.checkpoint_dir to another file system"
        ) from None
    try:
        yield
    finally:
        lock.release()


def touch(path: Path) -> None:
    """Sets the modification time of `path` to now, which prune reads as its last use. Ignores files of other users."""
    with suppress(OSError):
        os.utime(path)


def checksums(directory: Path) -> dict[str, str]:
    """Returns the sha256 of each file below `directory`, except the manifest, by relative path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            found[str(path.relative_to(directory))] = file_sha256(path)
    return found


def damaged_files(directory: Path) -> list[str]:
    """Returns the files of a complete cache directory that are missing or changed."""
    written, there = read_manifest(directory).get(FILES, {}), checksums(directory)
    return sorted(name for name, digest in written.items() if there.get(name) != digest)


def require_unchanged(directory: Path, sha256: Mapping[str, str]) -> None:
    """Raises ValueError unless `directory` holds exactly the files of `sha256`, which maps relative paths to checksums.

    A symbolic link is always an error.
    """
    if not sha256:
        raise ValueError(f"{directory} was registered without checksums: register the model again")
    there = checksums(directory)
    links = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_symlink()}
    added = sorted((there.keys() - sha256.keys()) | links)
    changed = sorted(name for name, digest in sha256.items() if there.get(name) != digest)
    found = [
        f"{', '.join(names)} {what}" for names, what in ((changed, "missing or changed"), (added, "added")) if names
    ]
    if found:
        raise ValueError(
            f"{directory} is not as it was registered: {'; '.join(found)}. Restore it, or register the model again"
        )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a cache directory; raises ValueError if the directory is not complete."""
    if not (directory / MANIFEST).exists():
        raise ValueError(f"{directory} is not a complete cache: it has no {MANIFEST}")
    return read_json(directory / MANIFEST)
