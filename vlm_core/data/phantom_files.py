"""Writes volumes of the phantom as DICOM or NIfTI files, whose stored values are known (HU for CT)."""

import gzip
import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from vlm_core.data.medical.errors import package

FIELD: Final = 400.0  # mm from edge to edge of a slice
HU_OFFSET: Final = -1024  # so that stored values are positive
# Directions of rows, of columns and of the stack, along L, P and S: how radiologists see each plane.
DIRECTIONS: Final = {
    "Axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "Coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "Sagittal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
}


def write_dicom(path: Path, volume: np.ndarray, modality: str, plane: str, case: str) -> Path:
    """Writes int16 (slices, rows, columns) as one file, or as a folder with a file per slice; returns its path.

    The names of the files count from the last slice to the first: only the headers say the order.
    """
    if len(volume) == 1:
        path = path.with_suffix(".dcm")
        path.write_bytes(_dicom_file(volume, 0, modality, plane, case, path.stem))
        return path
    path.mkdir()
    for number in range(len(volume)):
        content = _dicom_file(volume, number, modality, plane, case, path.name)
        (path / f"IM{len(volume) - number:04}").write_bytes(content)
    return path


def write_nifti(path: Path, volume: np.ndarray, plane: str) -> Path:
    """Writes int16 (slices, rows, columns) as a compressed NIfTI file, which says no modality; returns its path."""
    rows, columns, stack = (np.array(direction) * (-1, -1, 1) for direction in DIRECTIONS[plane])
    spacing = _spacing(volume)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([rows * spacing, columns * spacing, stack * _thickness(spacing)], axis=1)
    image = package("nibabel").Nifti1Image(volume.transpose(2, 1, 0), affine)
    path = path.with_name(f"{path.name}.nii.gz")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
    return path


def _dicom_file(volume: np.ndarray, number: int, modality: str, plane: str, case: str, name: str) -> bytes:
    pydicom = package("pydicom")
    uid, stream = package("pydicom.uid"), io.BytesIO()
    offset, spacing = (HU_OFFSET if modality == "CT" else 0), _spacing(volume)
    rows, columns, stack = DIRECTIONS[plane]
    kind = uid.CTImageStorage if modality == "CT" else uid.MRImageStorage
    header: dict[str, Any] = {
        "SOPClassUID": kind, "SOPInstanceUID": uid.generate_uid(entropy_srcs=[name, str(number)]),
        "SeriesInstanceUID": uid.generate_uid(entropy_srcs=[name]), "Modality": modality,
        "Manufacturer": "phantom", "PatientID": case, "InstanceNumber": number + 1, "BurnedInAnnotation": "NO",
        "SliceThickness": _thickness(spacing), "PixelSpacing": [spacing, spacing],
        "ImageOrientationPatient": [*rows, *columns],
        "ImagePositionPatient": [_thickness(spacing) * number * step for step in stack],
        "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 12,
        "HighBit": 11, "PixelRepresentation": 0, "Rows": volume.shape[1], "Columns": volume.shape[2],
        "RescaleSlope": 1, "RescaleIntercept": offset,
    }  # fmt: skip
    dataset = pydicom.Dataset()
    dataset.file_meta = package("pydicom.dataset").FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    for tag, value in header.items():
        setattr(dataset, tag, value)
    dataset.PixelData = (volume[number] - offset).astype("<u2").tobytes()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _spacing(volume: np.ndarray) -> float:
    return FIELD / volume.shape[1]


def _thickness(spacing: float) -> float:
    return 2 * spacing  # voxels are longest across the plane, so that a NIfTI file is read in it
