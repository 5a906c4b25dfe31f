"""DICOM and NIfTI files with known values, and the real files in the wheels of pydicom and nibabel."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

DICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI_FILES = Path(nibabel.__file__).parent / "tests" / "data"
AXIAL = (1, 0, 0, 0, 1, 0)
SERIES = "1.2.826.0.1.3680043.8.498.1"


def dicom_file(values: np.ndarray, **attributes: Any) -> bytes:
    """Returns an axial CT slice with `values` in HU; `attributes` add to its header, None takes one away."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": SERIES, "Modality": "CT",
        "PatientName": "Doe^Jane", "PatientID": "4711", "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
        "RescaleSlope": 1, "RescaleIntercept": -1024, "Rows": values.shape[-2], "Columns": values.shape[-1],
        "ImageOrientationPatient": list(AXIAL), "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1],
        "InstanceNumber": 1,
    } | attributes  # fmt: skip
    for name, value in header.items():
        if value is not None:
            setattr(dataset, name, value)
    slope, intercept = float(header["RescaleSlope"] or 1), float(header["RescaleIntercept"] or 0)
    stored = np.round((values - intercept) / slope)
    dataset.PixelData = stored.astype("<i2" if header["PixelRepresentation"] else "<u2").tobytes()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def series(positions: Sequence[float], values: Sequence[float], **attributes: Any) -> list[bytes]:
    """Returns axial slices at heights in mm, each filled with its own value in HU, numbered as they are given."""
    return [
        dicom_file(np.full((4, 4), float(value)), ImagePositionPatient=[0, 0, z], InstanceNumber=number, **attributes)
        for number, (z, value) in enumerate(zip(positions, values, strict=True), start=1)
    ]


def nifti_file(values: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    """Returns a NIfTI file of a volume."""
    return nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine).to_bytes()
