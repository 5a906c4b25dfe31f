"""DICOM: a file, a file of several frames, or the files of a series as one volume."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm_core.config import ImagesConfig
from vlm_core.data.medical.dicom_file import (
    decoder_errors,
    has_pixels,
    is_secondary_capture,
    read_dicom,
    require_image,
)
from vlm_core.data.medical.dicom_frames import is_colour, position_of, slice_of, stored_range
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.nifti import is_nifti
from vlm_core.data.medical.orientation import order_sign
from vlm_core.data.medical.personal_data import personal_tags, says_burnt_in
from vlm_core.data.medical.volumes import Slice, Volume, require_size

SAME_PLACE = 1e-3  # mm
UNEVEN = 0.1  # of the usual distance between slices
SAME_DIRECTION = 0.999  # cosine


def dicom_volume(content: bytes, settings: ImagesConfig) -> Volume:
    """Returns the frames of a DICOM file, sorted by position if each has one, else in stored order.

    Raises MedicalImageError for a file that is not an image, or is damaged.
    """
    dataset = _image(content, settings)
    with decoder_errors("DICOM file is damaged"):
        frames = int(dataset.get("NumberOfFrames") or 1)
        number = dataset.get("InstanceNumber")
    names = [(str(frame + 1),) for frame in range(frames)] if frames > 1 else [_names(number, dataset)]
    burn_in = settings.overlays == "burn_in"
    slices = [slice_of(dataset, frame, frames, names[frame], burn_in=burn_in) for frame in range(frames)]
    return _volume([dataset], _sorted(slices, required=False))


def dicom_series(contents: Iterable[bytes], settings: ImagesConfig) -> Volume:
    """Returns the files of a series as one volume, sorted by position and never by name.

    Raises MedicalImageError unless all are of one series, have one orientation, and have a different position each.
    """
    datasets = [_image(content, settings) for content in contents]
    if len({str(dataset.get("SeriesInstanceUID")) for dataset in datasets}) > 1:
        raise MedicalImageError("folder or list with several DICOM series", "name the files of one series")
    if len(datasets) > 1 and any(int(dataset.get("NumberOfFrames") or 1) > 1 for dataset in datasets):
        raise MedicalImageError("DICOM series with files of several frames", "name one file")
    require_size(1, 1, len(datasets))
    burn_in = settings.overlays == "burn_in"
    slices = [slice_of(d, 0, 1, _names(d.get("InstanceNumber"), d), burn_in=burn_in) for d in datasets]
    if len({(d.Rows, d.Columns) for d in datasets}) > 1 or len({is_colour(d) for d in datasets}) > 1:
        raise MedicalImageError("DICOM series with slices of different sizes", "move localizers away")
    return _volume(datasets, _sorted(slices, required=len(slices) > 1))


def images_among(contents: Sequence[bytes]) -> Sequence[bytes]:
    """Returns the files that hold an image. If none does, returns all, so that the reader rejects them by name."""
    found = [content for content in contents if is_nifti(content) or has_pixels(read_dicom(content))]
    return found or contents


def series_key(content: bytes) -> str | None:
    """Returns the id of the series of a file; None if the file cannot be a slice of a series."""
    try:
        dataset = read_dicom(content)
        with decoder_errors("DICOM file is damaged"):
            series, place = str(dataset.get("SeriesInstanceUID") or ""), position_of(dataset)
            return series if series and place is not None and int(dataset.get("NumberOfFrames") or 1) == 1 else None
    except MedicalImageError:
        return None


def _image(content: bytes, settings: ImagesConfig) -> Any:
    dataset = read_dicom(content)
    require_image(dataset, secondary_captures=settings.secondary_captures)
    return dataset


def _names(number: Any, dataset: Any) -> tuple[str, ...]:
    found = [] if number is None else [str(number)]
    return (*found, str(dataset.get("SOPInstanceUID") or ""))


def _sorted(slices: Sequence[Slice], *, required: bool) -> tuple[tuple[Slice, ...], bool]:
    """Returns (the slices from right to left, front to back or feet to head, whether they are spaced unevenly)."""
    places = [position_of(one.header) for one in slices]
    known = [place for place in places if place is not None]
    if len(known) < len(slices) or len(slices) == 1:
        if required:
            raise MedicalImageError("DICOM series without the positions of its slices")
        return tuple(slices), False
    normal = known[0][1] / np.linalg.norm(known[0][1])
    if any(np.dot(normal, other / np.linalg.norm(other)) < SAME_DIRECTION for _, other in known):
        if required:
            raise MedicalImageError("DICOM series with slices in different directions", "move localizers away")
        return tuple(slices), False
    along = np.array([np.dot(place, normal) for place, _ in known]) * order_sign(normal)
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    if (gaps < SAME_PLACE).any():
        if required:
            raise MedicalImageError("DICOM series with several slices at one place", "name the files of one pass")
        return tuple(slices), False
    return tuple(slices[i] for i in order), bool((np.abs(gaps - np.median(gaps)) > UNEVEN * np.median(gaps)).any())


def _volume(datasets: Sequence[Any], ordered: tuple[tuple[Slice, ...], bool]) -> Volume:
    first, (slices, uneven) = datasets[0], ordered
    with decoder_errors("DICOM file is damaged"):
        ranges = [stored_range(dataset) for dataset in datasets]
        known = [found for found in ranges if found is not None]
        modality = str(first.get("Modality") or "") or None
        facts = {
            "format": "DICOM",
            "manufacturer": str(first.get("Manufacturer") or "") or None,
            "slice_thickness": _number(slices[0].header.get("SliceThickness")),
            "spacing": list(slices[0].spacing),
            "bits": int(first.get("BitsStored") or first.BitsAllocated),
            "uneven": uneven,
            "personal_tags": sorted({tag for dataset in datasets for tag in personal_tags(dataset)}),
            "burnt_in": any(_may_show_text(dataset) for dataset in datasets),
        }
    full = (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(ranges) else None
    return Volume(slices, modality, facts["bits"], is_colour(first), full, facts)


def _may_show_text(dataset: Any) -> bool:
    return says_burnt_in(dataset, secondary_capture=is_secondary_capture(dataset))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
