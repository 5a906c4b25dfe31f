"""Finds the images that a table refers to: by path, beside the table, or below the folder by a name that is unique."""

import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from vlm_core.data.image_cells import ImageError, image_or_path, open_image_file
from vlm_core.files import stays_inside
from vlm_core.home import medpix_home

MISSING = "image file is missing"
AMBIGUOUS = "image name that several files have"
LEADS_OUT = "image path that leads out of the dataset"
BY_NAME = "by name, not at the path in the table"
BY_STEM = "by name without a suffix"
SHOWN = 120  # characters of a path in a message
COMPARED = 20_000  # file names that a misspelt one is compared with
MEDICAL_SUFFIXES = (".dcm", ".dicom", ".ima", ".nii")
SKIPPED = ("__MACOSX",)


@dataclass(frozen=True)
class FoundImage:
    """The file that a cell means, and how it was found if its path alone does not say so."""

    path: Path
    how: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a dataset, referred to by path relative to its own directory."""

    root: Path | None
    anywhere: bool  # whether paths may lead out of it; those of a downloaded dataset must not
    beside: tuple[Path, ...] = ()  # the directories of its tables
    unpacked: tuple[Path, ...] = ()  # the directories with the content of its archives

    def encoded(self, cell: Any) -> bytes:
        """Returns the encoded image of a cell, which holds it or names its file; see `image_or_path`.

        Raises ImageError that says why there is none.
        """
        return self.content(image_or_path(cell))

    def content(self, found: bytes | str) -> bytes:
        """Returns the encoded image that `image_or_path` found; raises ImageError as `encoded` does."""
        if isinstance(found, bytes):
            return found
        with open_image_file(self.locate(found)) as stream:
            return stream.read()

    def leads_to_image(self, cell: Any) -> bool:
        """Returns whether a cell holds an image or names a file or folder; raises ImageError if it does not."""
        found = image_or_path(cell)
        return (isinstance(found, str) and self.directory(found) is not None) or bool(self.content(found))

    def digests(self, place: Path) -> list[str]:
        """Returns the sha256 of an image file, or the name and the sha256 of each file below a directory.

        Raises ImageError for a file that cannot be read.
        """
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
            return [part for file in files for part in (file.name, *self.digests(file))]
        with open_image_file(place) as stream:
            return [hashlib.file_digest(stream, "sha256").hexdigest()]

    def locate(self, path: str) -> Path:
        """Returns the file that `path` means; raises ImageError for one that is not there or lies outside."""
        return self.find(path).path

    def find(self, path: str) -> FoundImage:
        """Returns the file that `path` means and how it was found; raises ImageError as `locate` does.

        A file at that path comes first. Otherwise the path, or its name without suffix, must be the end of the path of
        exactly one file below the directory: a name alone finds it in any folder; `p2/1.png` never finds `p1/1.png`.
        """
        if path.startswith("file://") and self.anywhere:
            with suppress(ValueError):  # of a malformed address
                path = url2pathname(urlsplit(path).path)
        if "://" in path:
            raise ImageError("image by URL: download it, and give its path")
        if not self.anywhere and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ImageError(LEADS_OUT, lambda: repr(path))
        root = self.root or Path()
        if _is_file(root / path):  # of an absolute path, the path itself
            return self._inside(FoundImage(root / path), path)
        spelled = path.strip().replace("\\", "/")
        folders = (root, *self.beside, *self.unpacked)
        near = {found.resolve(): found for folder in folders if _is_file(found := folder / spelled)}
        if len(near) == 1:
            return self._inside(FoundImage(next(iter(near.values()))), path)
        if len(near) > 1:
            raise self._ambiguous(path, near.values())
        return self._find_below(path, spelled)

    def directory(self, path: str) -> Path | None:
        """Returns the directory that `path` means, such as that of a DICOM series; None if there is none.

        Raises ImageError for a directory outside of a downloaded dataset.
        """
        spelled = path.strip().replace("\\", "/")
        for place in (self.root or Path(), *self.beside, *self.unpacked):
            if _is_directory(found := place / spelled):
                return self._inside(FoundImage(found), path).path
        return None

    def shown(self, path: Path) -> str:
        """Returns the path of a file for people: relative to the dataset, or inside its archive."""
        inside = next((folder for folder in self.unpacked if path.is_relative_to(folder)), self.root)
        return os.path.relpath(path, inside)

    def _find_below(self, path: str, spelled: str) -> FoundImage:
        wanted = [part for part in spelled.split("/") if part not in ("", ".")]
        if self.root is not None and wanted and not Path(spelled).is_absolute() and ".." not in wanted:
            for names, how in ((self._names, BY_NAME), (self._stems, BY_STEM)):
                matches = _ending_in(wanted, names.get(wanted[-1].casefold(), ()))
                if len(matches) == 1:
                    return self._inside(FoundImage(self.root / matches[0], how), path)
                if matches:
                    raise self._ambiguous(path, [self.root / file for file in matches])
        raise ImageError(MISSING, lambda: self._nearest(path, spelled))

    def _inside(self, found: FoundImage, path: str) -> FoundImage:
        """Returns `found`; raises ImageError if a link of a downloaded dataset leads to a file outside of it."""
        allowed = (self.root or Path(), *self.unpacked)
        if not self.anywhere and not any(stays_inside(folder, found.path) for folder in allowed):
            raise ImageError(LEADS_OUT, lambda: repr(path))
        return found

    def _ambiguous(self, path: str, found: Iterable[Path]) -> ImageError:
        named = sorted(map(self.shown, found))
        return ImageError(AMBIGUOUS, lambda: f"{path!r} may be {' or '.join(named[:4])}; write the path in the table")

    def _nearest(self, path: str, spelled: str) -> str:
        """Returns the first path that was tried, and the file with the most similar name."""
        place = str((self.root or Path()) / path[:SHOWN])
        place = place if place.isprintable() else place.encode("unicode_escape").decode()
        tried = f"{path[:SHOWN]!r} was looked for as {place}"
        name, meant = spelled.rpartition("/")[2].casefold(), None
        same = self._names.get(name) or self._stems.get(name) or self._stems.get(name.rpartition(".")[0])
        if same:
            meant = same[0]
        elif close := difflib.get_close_matches(name, [*self._names][:COMPARED], n=1, cutoff=0.6):
            meant = self._names[close[0]][0]
        meant = meant and self.shown((self.root or Path()) / meant)
        if meant:
            return f"{tried}; did you mean {meant}?"
        zips = [file for files in self._names.values() for file in files if file.lower().endswith(".zip")]
        remedy = f"; dataset.archives={zips[0]} unpacks the images in it" if zips and not self.unpacked else ""
        return f"{tried}; no file there has a similar name{remedy}"

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Returns the files by name in small letters: relative to the directory, those of archives absolute."""
        found = defaultdict(list)
        own = files_below(self.root) if self.root else []
        for file in (*own, *(f"{folder}/{file}" for folder in self.unpacked for file in files_below(folder))):
            found[file.rpartition("/")[2].casefold()].append(file)
        return found

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """Returns the image files below the directory by name without suffix."""
        found = defaultdict(list)
        known = {*Image.registered_extensions(), *MEDICAL_SUFFIXES}
        for name, files in self._names.items():
            stem, dot, suffix = name.removesuffix(".gz").rpartition(".")
            if dot + suffix in known:
                found[stem] += files
        return found


def files_below(root: Path) -> list[str]:
    """Returns all files below a directory as relative paths with slashes, sorted.

    Hidden ones and those of the project's home are left out. Links to directories are not followed, so that nothing
    outside the directory is searched.
    """
    home, found = medpix_home(), []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            f for f in folders if not f.startswith(".") and f not in SKIPPED and Path(folder, f).absolute() != home
        ]
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        found += [prefix + file for file in files if not file.startswith(".")]
    return sorted(found)


def _is_file(path: Path) -> bool:
    """Returns whether there is a file; not for a device, a pipe or a text that is too long to be a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _ending_in(wanted: list[str], files: Iterable[str]) -> list[str]:
    """Returns the paths that end in the `wanted` folders, and if only their case differs, those."""
    folders = [(file, file.split("/")[:-1]) for file in files]
    ends = [(file, above[len(above) - len(wanted) + 1 :]) for file, above in folders if len(above) >= len(wanted) - 1]
    exact = [file for file, above in ends if above == wanted[:-1] and _same_case(file, wanted[-1])]
    return exact or [f for f, above in ends if [a.casefold() for a in above] == [w.casefold() for w in wanted[:-1]]]


def _same_case(file: str, name: str) -> bool:
    found = file.rpartition("/")[2]
    return name in (found, found.rpartition(".")[0])
