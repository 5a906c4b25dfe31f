"""Lists, verifies and prunes the caches under MEDPIX_HOME.

    python -m vlm_core.caches list
    python -m vlm_core.caches verify               exits with status 1 if something is damaged
    python -m vlm_core.caches prune --unused-days 30 [--dry-run]

You may delete any cache: the next run that needs it builds it again.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from vlm_core.cache import MANIFEST, damaged_files, locked, read_manifest
from vlm_core.home import medpix_home
from vlm_core.intact import record_of
from vlm_core.program import as_called

# Built by `cached_directory`.
BUILT_DIRECTORIES = ("phantom", "archives", "models", "registered", "conversations", "tokens")
DAY = 24 * 3600


@dataclass(frozen=True)
class Cache:
    """A cache directory, or the leftovers of a builder that was killed."""

    kind: str
    directory: Path

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    @property
    def is_incomplete(self) -> bool:
        """Whether its builder never finished."""
        return self.kind in BUILT_DIRECTORIES and not (self.directory / MANIFEST).is_file()

    @property
    def days_unused(self) -> float:
        """Days since a run last used it, by the modification times of its files."""
        manifest = self.directory / MANIFEST
        paths = [manifest] if manifest.is_file() else [self.directory, *self.directory.rglob("*")]
        return (time.time() - max(path.stat().st_mtime for path in paths)) / DAY

    @property
    def contents(self) -> str:
        """A short description of its contents."""
        if self.is_incomplete:
            return "never completed"
        if self.kind != "conversations":
            return ""
        manifest = read_manifest(self.directory)
        return f"{sum(manifest['rows'].values()):,} rows, {manifest['images']:,} images"

    def damages(self) -> list[str]:
        """Returns the files that are missing or changed."""
        if self.is_incomplete:
            return []
        if self.kind in BUILT_DIRECTORIES:
            return damaged_files(self.directory)
        if self.kind == "vision":
            # Lazy import: this module imports torch, which takes seconds.
            from vlm_core.models.feature_store import damaged_shards

            return damaged_shards(self.directory)
        return []

    @property
    def _lock(self) -> Path:
        """The lock that its builder holds."""
        name = self.directory.name
        if self.kind == "vision":
            return self.directory / ".lock"
        return self.directory.parent / (f"{name.rpartition('.')[0]}.lock" if self.is_incomplete else f".{name}.lock")

    def delete(self) -> bool:
        """Deletes it; returns False if another process is building or deleting it."""
        try:
            with locked(self._lock, timeout=0):
                shutil.rmtree(self.directory)
                record_of(self.directory).unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def find_caches() -> Iterator[Cache]:
    """Yields every cache under the home, by kind and name."""
    root = medpix_home() / "cache"
    for kind in sorted(path for path in root.glob("*") if path.is_dir()):
        for directory in sorted(path for path in kind.iterdir() if path.is_dir()):
            yield Cache(kind.name, directory)


def list_caches() -> None:
    """Prints one line per cache, then the total size."""
    total = 0
    for cache in find_caches():
        total += cache.size
        print(f"{cache.kind:<14}{_megabytes(cache.size)}  {cache.days_unused:5.1f} days  "
              f"{cache.directory.name}  {cache.contents}")  # fmt: skip
    print(f"{'all':<14}{_megabytes(total)}  in {medpix_home() / 'cache'}")


def verify_caches() -> int:
    """Prints the damaged files and returns the number of damaged caches."""
    caches, damaged = list(find_caches()), 0
    for cache in caches:
        files = cache.damages()
        damaged += bool(files)
        for file in files:
            print(f"damaged: {cache.directory / file}; delete {cache.directory}, and the next run builds it again")
    print(f"{len(caches)} caches, {damaged} damaged")
    return damaged


def prune_caches(unused_days: float, *, dry_run: bool) -> None:
    """Deletes the caches that no run has used for `unused_days`, and all incomplete ones."""
    freed = 0
    for cache in find_caches():
        if cache.is_incomplete or cache.days_unused >= unused_days:
            size = cache.size
            gone = dry_run or cache.delete()
            freed += size if gone else 0
            outcome = "would delete" if dry_run else "deleted" if gone else "in use, kept"
            print(f"{outcome}: {cache.directory} ({_megabytes(size).strip()})")
    print(f"{'would free' if dry_run else 'freed'} {_megabytes(freed).strip()}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:10,.1f} MB"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m vlm_core.caches"),
        description=as_called(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list caches with their size and last use")
    commands.add_parser("verify", help="read everything and compare checksums")
    prune = commands.add_parser("prune", help="delete caches that were not used for long")
    prune.add_argument("--unused-days", type=float, default=30.0, help="days since the last use (default 30)")
    prune.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
    options = parser.parse_args()
    if options.command == "list":
        list_caches()
    elif options.command == "verify":
        raise SystemExit(1 if verify_caches() else 0)
    else:
        prune_caches(options.unused_days, dry_run=options.dry_run)


if __name__ == "__main__":
    main()
