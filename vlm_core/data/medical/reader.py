"""Opens medical images: the entry point to this package for the rest of the project."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.dicom import dicom_series, dicom_volume, images_among
from vlm_core.data.medical.dicom_file import decoder_errors, is_dicom, is_encrypted, is_headerless
from vlm_core.data.medical.nifti import is_nifti, nifti_volume
from vlm_core.data.medical.pictures import pictures
from vlm_core.data.medical.slices import choose, named
from vlm_core.data.medical.volumes import Volume

HEAD = 4096  # bytes of a file that identify its format
KEPT = 8  # opened images to keep: rows about the same image are mostly neighbours


@dataclass(frozen=True)
class Opened:
    """A medical image as a model sees it: PNG files in display order, and facts for the data report."""

    pictures: tuple[bytes, ...]
    facts: dict[str, Any]


def is_medical(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes (4 KB) is DICOM or NIfTI."""
    return is_dicom(head) or is_headerless(head) or is_nifti(head) or is_encrypted(head)


class MedicalReader:
    """Opens medical images with the settings in `dataset.images`, and keeps the last ones in memory."""

    def __init__(self, settings: ImagesConfig) -> None:
        self.settings = settings
        self._kept: OrderedDict[str, Opened] = OrderedDict()

    def open(
        self,
        files: Sequence[bytes],
        *,
        modality: str | None = None,
        slices: Sequence[str] | None = None,
        in_folder: bool = False,
    ) -> Opened:
        """Returns one file, or the files of a DICOM series, as a model sees them.

        `modality` is used if the header has none. `slices` are the names of the slices to show. With `in_folder`,
        reports and other objects that are not images are left out. Raises MedicalImageError for an image that cannot be
        shown, MissingPackageError if the packages are not installed.
        """
        digests = [hashlib.sha256(file).hexdigest() for file in files]
        key = json.dumps([sorted(digests), modality, slices, in_folder])
        if key not in self._kept:
            with decoder_errors("medical image is damaged"):
                self._kept[key] = self._open(files, modality, slices, in_folder)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _open(
        self, files: Sequence[bytes], modality: str | None, slices: Sequence[str] | None, in_folder: bool
    ) -> Opened:
        volume = self._volume(files, in_folder)
        if slices:
            chosen = named([one.names for one in volume.slices], slices)
        else:
            chosen = choose(len(volume.slices), self.settings.slices)
        shown, words = pictures(volume, chosen, self.settings, modality)
        facts = {
            **volume.facts,
            "modality": volume.modality or modality,
            "window": words,
            "slices": len(volume.slices),
            "shown": len(shown),
        }
        return Opened(tuple(shown), {key: value for key, value in facts.items() if value is not None})

    def _volume(self, files: Sequence[bytes], in_folder: bool) -> Volume:
        files = images_among(files) if in_folder else files
        if len(files) != 1:
            return dicom_series(files, self.settings)
        (content,) = files
        if is_nifti(content[:HEAD]):
            return nifti_volume(content, self.settings)
        return dicom_volume(content, self.settings)
