"""Opens the images in cells. Only this module turns medical images into pictures.

A cell names or holds a picture, a DICOM or NIfTI file, or a folder or list of files that form a DICOM series. The rest
of the project only gets encoded pictures. Those of medical images have 8 bits and no header that could name a person.
Caches identify a picture by its pixels. So another window gives another image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_core.config import ImagesConfig
from vlm_core.data.deep_images import UnreadableImageError
from vlm_core.data.image_cells import MOST_BYTES, ImageError, image_or_path, open_image_file
from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.images import windowed_png
from vlm_core.data.medical.dicom import series_key
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.reader import HEAD, MedicalReader, is_medical
from vlm_core.data.medical.settings import window_of


class Picture(bytes):
    """An encoded picture made from a medical image, with `facts` for the data report, which name no person."""

    facts: dict[str, Any]

    def __new__(cls, encoded: bytes, facts: dict[str, Any]) -> "Picture":
        picture = super().__new__(cls, encoded)
        picture.facts = facts
        return picture


@dataclass(frozen=True)
class Series:
    """The files of a list that form one DICOM series."""

    files: tuple[bytes, ...]


@dataclass(frozen=True)
class CellImages:
    """Opens the images of a dataset, with the settings in `dataset.images`."""

    folder: ImageFolder
    settings: ImagesConfig

    @cached_property
    def _reader(self) -> MedicalReader:
        return MedicalReader(self.settings)

    def pictures(self, cell: Any, *, modality: str | None = None, slices: Sequence[str] | None = None) -> list[bytes]:
        """Returns the encoded pictures of a cell for the model: one picture, or the chosen slices of a volume.

        `modality` is used if the header has none; `slices` names the slices to show. Raises ImageError with the reason
        if there is no picture, MissingPackageError if the packages for medical images are not installed.
        """
        try:
            files, in_folder = self._files(cell)
            if len(files) == 1 and not is_medical(files[0][:HEAD]):
                return [_windowed(files[0], self.settings)]
            opened = self._reader.open(files, modality=modality, slices=slices, in_folder=in_folder)
        except (MedicalImageError, UnreadableImageError) as error:
            detail = getattr(error, "detail", "")
            raise ImageError(str(error), lambda: detail) from None
        return [Picture(picture, opened.facts_of(index)) for index, picture in enumerate(opened.pictures)]

    def series(self, cells: Sequence[Any]) -> Series | None:
        """Returns the files of several cells if all are slices of the same DICOM series; else None."""
        if len(cells) < 2:
            return None
        try:
            first = self.folder.encoded(cells[0])
            key = series_key(first) if is_medical(first[:HEAD]) else None
            if key is None:
                return None
            files = [first, *(self.folder.encoded(cell) for cell in cells[1:])]
        except ImageError:
            return None
        return Series(tuple(files)) if all(series_key(file) == key for file in files[1:]) else None

    def _files(self, cell: Any) -> tuple[Sequence[bytes], bool]:
        """Returns (the contents of a cell's files, whether it names a folder)."""
        if isinstance(cell, Series):
            return cell.files, False
        found = image_or_path(cell)
        directory = None if isinstance(found, bytes) else self.folder.directory(found)
        if directory is None:
            return [self.folder.content(found)], False
        return _medical_files(directory), True


def pictures_of_file(content: bytes, settings: ImagesConfig) -> list[bytes]:
    """Returns the encoded pictures of one file for the model; raises ImageError as `CellImages.pictures` does."""
    return CellImages(ImageFolder(None, anywhere=False), settings).pictures(content)


def pictures_of_path(path: Path, settings: ImagesConfig) -> list[bytes]:
    """Returns the encoded pictures of a file, or of a folder with a DICOM series, for the model."""
    return CellImages(ImageFolder(path.absolute().parent, anywhere=True), settings).pictures(str(path.absolute()))


def _windowed(encoded: bytes, settings: ImagesConfig) -> bytes:
    """Returns the picture; if it has more than 8 bits, the config's LEVEL/WIDTH window is applied if one is set."""
    window = window_of(settings.window) if "/" in settings.window else None
    if window is None:
        return encoded
    low, high = window.level - window.width / 2, window.level + window.width / 2
    shown = windowed_png(encoded, low, high)
    return encoded if shown is None else Picture(shown, {"window": f"window {window}"})


def _medical_files(directory: Path) -> list[bytes]:
    files, size = [], 0
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")):
        with open_image_file(path) as stream:
            head = stream.read(HEAD)
            if not is_medical(head):
                continue
            files.append(head + stream.read())
        size += len(files[-1])
        if size > MOST_BYTES:
            raise ImageError(f"folder with images of more than {MOST_BYTES:,} bytes")
    if not files:
        raise ImageError("folder without a DICOM file")
    return files
