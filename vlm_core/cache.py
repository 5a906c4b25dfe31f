"""Content-addressed directories: built once, complete or absent, safe under builders on many hosts and kill -9."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlm_core.files import file_sha256, published_directory, read_json, write_json

MANIFEST = "manifest.json"
FILES = "files"  # in it, the sha256 of every file beside it
NO_LOCKS = (
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
)  # of file systems without them


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
    with locked(root / f".{key}.lock"):
        # Listed, and not asked for by name: a client of NFS remembers for a minute that a name was not there.
        if final in root.iterdir() and (final / MANIFEST).exists():
            return final, True
        for rubbish in root.glob(f".{key}.*/"):  # of a builder that was killed: the lock says that none is at work
            shutil.rmtree(rubbish)
        with published_directory(final) as aside:
            manifest = build(aside)
            write_json(aside / MANIFEST, {**manifest, FILES: checksums(aside)})
    return final, False


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Holds the lock file `path` for the block, after waiting for `timeout` seconds at most; -1 is without end.

    The kernel holds it (flock) and gives it back when the holder dies, so that no lock is ever stale; where the file
    system asks a server, other hosts wait too. Raises filelock.Timeout, and ValueError where there are no locks.
    """
    lock = FileLock(path, timeout=timeout, fallback_to_soft=False)  # a soft lock would outlive a killed holder
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{path.parent} is on a file system without flock ({error.strerror}), so that two builders would not see "
            "each other; mount it with locks, or set MEDPIX_HOME and checkpoint.checkpoint_dir to another one"
        ) from None
    try:
        yield
    finally:
        lock.release()


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


def require_unchanged(directory: Path, sha256: Mapping[str, str]) -> None:
    """Raises ValueError unless `directory` holds exactly the files of `sha256`, which maps relative paths to checksums.

    A link is refused, whatever it leads to.
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
            f"{directory} is not as it was registered: {'; '.join(found)}. Put it back, or register the model again"
        )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a complete cache directory; raises ValueError for one that is not."""
    if not (directory / MANIFEST).exists():
        raise ValueError(f"{directory} is no complete cache: it has no {MANIFEST}")
    return read_json(directory / MANIFEST)
