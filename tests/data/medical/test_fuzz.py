"""Damaged DICOM and NIfTI bytes give named rejects: no other error, no hang, no memory beyond that of an image."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given

from tests.dicom_files import DICOM_FILES, NIFTI_FILES, dicom_file
from tests.fuzz import damaged, fuzz, peak_memory
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.reader import MedicalReader

NAMES = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
         "SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm", "image_dfl.dcm", "test-SR.dcm", "rtdose_rle.dcm")  # fmt: skip
FILES = [
    *((DICOM_FILES / name).read_bytes() for name in NAMES),
    dicom_file(np.zeros((8, 8))),
    (NIFTI_FILES / "standard.nii.gz").read_bytes(),
    (NIFTI_FILES / "resampled_anat_moved.nii").read_bytes(),
]
MOST_MEMORY = 1_000_000  # kB that reading all files may add
READER = ImagesConfig(secondary_captures=True, slices="2 evenly", time_point=0)


@pytest.fixture(scope="module")
def peak_before() -> int:
    """Returns the peak that other tests in this process left."""
    return peak_memory()


@fuzz(60)
@given(content=damaged(FILES))
def test_damaged_files_are_named_rejects(peak_before: int, content: bytes) -> None:
    with suppress(MedicalImageError):
        assert 1 <= len(MedicalReader(READER).open([content]).pictures) <= 2
    assert peak_memory() - peak_before < MOST_MEMORY
