"""Opens medical images: the entry point to this package for the rest of the project."""

import hashlib
import json
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.dicom import dicom_series, dicom_volume, images_among
from vlm_core.data.medical.dicom_file import decoder_errors, is_dicom, is_encrypted, is_headerless
from vlm_core.data.medical.nifti import is_nifti, nifti_volume
from vlm_core.data.medical.pictures import decoded_once, pictures, shading_of
from vlm_core.data.medical.slices import choose, named
from vlm_core.data.medical.specimen import specimen_of
from vlm_core.data.medical.volumes import Volume

HEAD = 4096  # bytes of a file that identify its format
SPECIMENS = 2  # images of each modality and window of which the data report shows the values
KEPT = 8  # opened images to keep: rows about the same image are mostly neighbours


@dataclass(frozen=True)
class Opened:
    """A medical image as a model sees it: PNG files in display order, and facts for the data report."""

    pictures: tuple[bytes, ...]
    facts: dict[str, Any]
    specimen: dict[str, Any] | None = None  # of the middle picture, see `specimen_of`

    def facts_of(self, index: int) -> dict[str, Any]:
        """Returns the facts of a picture, with the specimen if it is of this one."""
        middle = len(self.pictures) // 2
        return self.facts | ({"specimen": self.specimen} if self.specimen and index == middle else {})


def is_medical(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes (4 KB) is DICOM or NIfTI."""
    return is_dicom(head) or is_headerless(head) or is_nifti(head) or is_encrypted(head)


class MedicalReader:
    """Opens medical images with the settings in `dataset.images`, and keeps the last ones in memory."""

    def __init__(self, settings: ImagesConfig) -> None:
        self.settings = settings
        self._kept: OrderedDict[str, Opened] = OrderedDict()
        self._specimens: defaultdict[tuple[str | None, str], set[str]] = defaultdict(set)  # kind -> keys of images

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
                self._kept[key] = self._open(files, modality, slices, in_folder, key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _open(
        self, files: Sequence[bytes], modality: str | None, slices: Sequence[str] | None, in_folder: bool, key: str
    ) -> Opened:
        volume = decoded_once(self._volume(files, in_folder))
        modality = volume.modality or modality
        if slices:
            chosen = named([one.names for one in volume.slices], slices)
        else:
            chosen = choose(len(volume.slices), self.settings.slices)
        shading = shading_of(volume, self.settings.window, modality)
        shown = pictures(volume, chosen, shading)
        facts = {
            **volume.facts,
            "modality": modality,
            "window": shading.words,
            "slices": len(volume.slices),
            "shown": len(shown),
        }
        specimen = None
        if not volume.colour and self._is_specimen((modality, shading.words), key):
            specimen = specimen_of(volume, chosen[len(chosen) // 2], shading)
        return Opened(tuple(shown), {name: value for name, value in facts.items() if value is not None}, specimen)

    def _is_specimen(self, kind: tuple[str | None, str], key: str) -> bool:
        """Returns whether an image is one of the first of its kind, also if it is opened again."""
        if len(self._specimens[kind]) < SPECIMENS:
            self._specimens[kind].add(key)
        return key in self._specimens[kind]

    def _volume(self, files: Sequence[bytes], in_folder: bool) -> Volume:
        files = images_among(files) if in_folder else files
        if len(files) != 1:
            return dicom_series(files, self.settings)
        (content,) = files
        if is_nifti(content[:HEAD]):
            return nifti_volume(content, self.settings)
        return dicom_volume(content, self.settings)
