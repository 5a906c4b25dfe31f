"""Opens the medical image in a cell: the one place that the rest of the project asks."""

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

HEAD = 4096  # bytes of a file that show what it is
KEPT = 8  # opened cells that are kept, since rows about an image mostly follow each other


@dataclass(frozen=True)
class Opened:
    """What a model sees of a medical image: PNG files in their order, and facts for the data report."""

    pictures: tuple[bytes, ...]
    facts: dict[str, Any]


def is_medical(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes (4 KB) is DICOM or NIfTI."""
    return is_dicom(head) or is_headerless(head) or is_nifti(head) or is_encrypted(head)


class MedicalReader:
    """Opens medical images under the settings of `dataset.images`; the last ones stay at hand."""

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
        """Returns what a model sees of one file, or of the files of a DICOM series.

        Of files found in a folder, reports and other objects that are not images are left out.

        `modality` counts where no header says one; `slices` names those to show. Raises MedicalImageError for an image
        that cannot be shown, MissingPackageError if the packages are not installed.
        """
        digests = [hashlib.sha256(file).hexdigest() for file in files]
        key = json.dumps([sorted(digests), modality, slices])
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
