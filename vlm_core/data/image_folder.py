"""Finds the images that a table refers to: by path, beside the table, or below the folder by a name that is unique."""

import difflib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_core.home import medpix_home

MISSING = "image file is missing"
AMBIGUOUS = "image name that several files have"
BY_NAME = "by name, not at the path in the table"
BY_STEM = "by name without a suffix"
COMPARED = 20_000  # file names that a misspelt one is compared with
SKIPPED = ("__MACOSX",)


class ImageError(ValueError):
    """An image cannot be found. Rejects are counted by the message; `detail` describes this one."""

    def __init__(self, reason: str, detail: Callable[[], str] = str) -> None:
        super().__init__(reason)
        self._detail = detail

    @property
    def detail(self) -> str:
        """Returns the path that was tried and the file that was probably meant; found when it is asked for."""
        return self._detail()


@dataclass(frozen=True)
class FoundImage:
    """The file that a cell means, and how it was found if its path alone does not say so."""

    path: Path
    how: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a dataset, referred to by path relative to its own directory."""

    root: Path | None
    anywhere: bool  # whether a path may lead out of it: a dataset of somebody else's may not read this machine's files
    beside: tuple[Path, ...] = ()  # the directories of its tables

    def encoded(self, cell: Any) -> bytes:
        """Returns the encoded image of a cell: bytes, a path, both as `datasets` stores them, or a Pillow image.

        Raises ImageError that says why there is none.
        """
        if isinstance(cell, dict):  # {"bytes", "path"}; bytes that are there are the image, whatever the path says
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, Image.Image):
            stream = io.BytesIO()
            cell.save(stream, "png")
            return stream.getvalue()
        if isinstance(cell, int) and not isinstance(cell, bool):
            cell = str(cell)
        if isinstance(cell, str) and cell:
            try:
                return self.locate(cell).read_bytes()
            except OSError as error:  # no permission; or no path at all, but an image as text
                raise ImageError(f"image file cannot be read ({type(error).__name__})") from None
        if not cell:
            raise ImageError("no image")
        if not isinstance(cell, bytes):
            raise ImageError("image that is neither bytes nor a path", lambda: f"found {type(cell).__name__}")
        return cell

    def locate(self, path: str) -> Path:
        """Returns the file that `path` means; raises ImageError for one that is not there or lies outside."""
        return self.find(path).path

    def find(self, path: str) -> FoundImage:
        """Returns the file that `path` means and how it was found; raises ImageError as `locate` does.

        A file at that path comes first. Otherwise the path, or its name without suffix, must be the end of the path of
        exactly one file below the directory: a name alone finds it in any folder; `p2/1.png` never finds `p1/1.png`.
        """
        if "://" in path:
            raise ImageError("image by URL: download it, and give its path")
        if not self.anywhere and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ImageError("image path that leads out of the dataset", lambda: path)
        root = self.root or Path()
        try:
            if (root / path).is_file():  # of an absolute path, the path itself
                return FoundImage(root / path)
        except OSError as error:  # no path, but an image as text
            raise ImageError(f"image file cannot be read ({type(error).__name__})") from None
        spelled = path.strip().replace("\\", "/")
        near = {found.resolve(): found for folder in (root, *self.beside) if (found := folder / spelled).is_file()}
        if len(near) == 1:
            return FoundImage(next(iter(near.values())))
        if len(near) > 1:
            raise self._ambiguous(path, near.values())
        return self._find_below(path, spelled)

    def _find_below(self, path: str, spelled: str) -> FoundImage:
        wanted = [part for part in spelled.split("/") if part not in ("", ".")]
        if self.root is not None and wanted and not Path(spelled).is_absolute() and ".." not in wanted:
            for names, how in ((self._names, BY_NAME), (self._stems, BY_STEM)):
                matches = _ending_in(wanted, names.get(wanted[-1].casefold(), ()))
                if len(matches) == 1:
                    return FoundImage(self.root / matches[0], how)
                if matches:
                    raise self._ambiguous(path, [self.root / file for file in matches])
        raise ImageError(MISSING, lambda: self._nearest(path, spelled))

    def _ambiguous(self, path: str, found: Iterable[Path]) -> ImageError:
        named = sorted(os.path.relpath(file, self.root or Path()) for file in found)
        return ImageError(AMBIGUOUS, lambda: f"{path!r} may be {' or '.join(named[:4])}; write the path in the table")

    def _nearest(self, path: str, spelled: str) -> str:
        """Returns the first path that was tried, and the file with the most similar name."""
        tried = f"{path[:255]!r} was looked for as {(self.root or Path()) / path[:255]}"
        name, meant = spelled.rpartition("/")[2].casefold()[:255], None
        same = self._names.get(name) or self._stems.get(name) or self._stems.get(name.rpartition(".")[0])
        if same:
            meant = same[0]
        elif close := difflib.get_close_matches(name, [*self._names][:COMPARED], n=1, cutoff=0.6):
            meant = self._names[close[0]][0]
        return f"{tried}; did you mean {meant}?" if meant else f"{tried}; no file there has a similar name"

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Returns the files below the directory, as relative paths, by name in small letters."""
        found = defaultdict(list)
        for file in files_below(self.root) if self.root else ():
            found[file.rpartition("/")[2].casefold()].append(file)
        return found

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        """Returns the image files below the directory by name without suffix."""
        found = defaultdict(list)
        known = Image.registered_extensions()
        for name, files in self._names.items():
            stem, dot, suffix = name.rpartition(".")
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


def _ending_in(wanted: list[str], files: Iterable[str]) -> list[str]:
    """Returns the relative paths that end in the `wanted` folders, and if only their case differs, those."""
    folders = [(file, file.split("/")[:-1]) for file in files]
    ends = [(file, above[len(above) - len(wanted) + 1 :]) for file, above in folders if len(above) >= len(wanted) - 1]
    exact = [file for file, above in ends if above == wanted[:-1] and _same_case(file, wanted[-1])]
    return exact or [f for f, above in ends if [a.casefold() for a in above] == [w.casefold() for w in wanted[:-1]]]


def _same_case(file: str, name: str) -> bool:
    found = file.rpartition("/")[2]
    return name in (found, found.rpartition(".")[0])
