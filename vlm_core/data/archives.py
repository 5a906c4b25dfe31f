"""Unpacks the zip files that hold a dataset's images (`dataset.archives`), once, into the cache."""

import logging
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_core.cache import cached_directory
from vlm_core.data.dataset_card import leads_out
from vlm_core.files import file_sha256, is_disk_full
from vlm_core.home import medpix_home
from vlm_core.progress import ProgressBar

logger = logging.getLogger(__name__)

MOST_TIMES = 100  # an archive may hold this many times its own size
ALWAYS_ALLOWED = 10**9  # bytes
SKIPPED = ("__MACOSX",)


def unpacked(directory: Path, names: Sequence[str], dataset: str, commit: str | None) -> tuple[Path, ...]:
    """Returns the directories that hold the content of a dataset's archives; warns of an archive that is missing.

    A hub dataset is identified by its `commit`, a local archive by its content. Raises ValueError for a file that
    is not a zip file, is damaged or encrypted, or would unpack to far more than its size.
    """
    return tuple(_unpack(path, dataset, commit) for path in _found(directory, names, dataset))


def _found(directory: Path, names: Sequence[str], dataset: str) -> Iterator[Path]:
    for name in names:
        if leads_out(name):
            raise ValueError(f"dataset.archives={name} must name a file of the dataset {dataset!r}")
        if (path := directory / name).is_file():
            yield path
        else:
            logger.warning(
                "dataset %r has no archive %s: its images are searched for among the dataset's other files",
                dataset,
                name,
            )


def _unpack(path: Path, dataset: str, commit: str | None) -> Path:
    key = f"{commit}-{path.name}" if commit else f"{file_sha256(path)[:32]}-{path.name}"

    def build(aside: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                members = _members(archive, path)
                with ProgressBar(len(members), f"unpack {path.name}", "file") as progress:
                    for member in members:
                        _extract(archive, member, aside)
                        progress.update(1)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
            if is_disk_full(error):
                raise
            raise ValueError(
                f"dataset {dataset!r}: {path.name} cannot be unpacked ({error}); download it again, or unpack it "
                "yourself and leave dataset.archives out"
            ) from None
        return {"archive": path.name}

    directory, reused = cached_directory(medpix_home() / "cache" / "archives", key, build)
    logger.info("%s of %s: %s", path.name, dataset, "unpacked before" if reused else "unpacked")
    return directory


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Returns the files to unpack; raises BadZipFile if they are encrypted or too large for the archive's size."""
    members = [m for m in archive.infolist() if not m.is_dir() and SKIPPED[0] not in Path(_name(m)).parts]
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if size > max(ALWAYS_ALLOWED, MOST_TIMES * packed):
        raise zipfile.BadZipFile(f"its {packed:,} bytes would become {size:,} bytes")
    for member in members:
        if member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{member.filename} is encrypted")
        if leads_out(_name(member)):
            raise zipfile.BadZipFile(f"{member.filename} leads out of it")
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path) -> None:
    target = directory / _name(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as file:  # no more bytes than the member says
        shutil.copyfileobj(packed, file)


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.replace("\\", "/")
