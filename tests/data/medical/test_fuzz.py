"""Damaged DICOM and NIfTI bytes give named rejects: no other error, no hang, no memory beyond that of an image."""

import resource
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dicom_files import DICOM_FILES, NIFTI_FILES, dicom_file
from tests.kills import KILLS
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


def peak_memory() -> int:
    """Returns the largest resident memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def peak_before() -> int:
    """Returns the peak that other tests in this process left."""
    return peak_memory()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Returns a real file that is cut, with bytes changed, or with a length or a dimension replaced by a huge one."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 8))):
        near = min(len(content) - 1, draw(st.sampled_from([400, 2000, len(content)])))
        content[draw(st.integers(0, near))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content) - 4))
        content[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"]))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))])


@settings(
    max_examples=1000 if KILLS >= 20 else 60,  # all with `make stress`
    suppress_health_check=[HealthCheck.too_slow],
)
@given(content=damaged())
def test_damaged_files_are_named_rejects(peak_before: int, content: bytes) -> None:
    with suppress(MedicalImageError):
        assert 1 <= len(MedicalReader(READER).open([content]).pictures) <= 2
    assert peak_memory() - peak_before < MOST_MEMORY
