"""NIfTI volumes are shown slice by slice, in the orientation that nibabel calls canonical."""

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.dicom_files import NIFTI_FILES, nifti_file
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.nifti import nifti_volume
from vlm_core.data.medical.reader import MedicalReader, is_medical

# With the canonical axis that the slices are stacked along.
FILES = {"anatomical.nii": 2, "reoriented_anat_moved.nii": 2, "resampled_anat_moved.nii": 2, "standard.nii.gz": 1,
         "example4d.nii.gz": 2, "example_nifti2.nii.gz": 2, "functional.nii": 2}  # fmt: skip


def shown(content: bytes, **settings: Any) -> list[np.ndarray]:
    opened = MedicalReader(ImagesConfig(**settings)).open([content])
    return [np.asarray(Image.open(io.BytesIO(picture))) for picture in opened.pictures]


def refused(content: bytes, **settings: Any) -> str:
    with pytest.raises(MedicalImageError) as error:
        shown(content, **settings)
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_slices_are_those_of_nibabels_canonical_orientation(name: str) -> None:
    path = NIFTI_FILES / name
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    canonical = canonical[..., 1] if canonical.ndim == 4 else canonical
    volume = nifti_volume(path.read_bytes(), ImagesConfig(time_point=1))
    assert len(volume.slices) == canonical.shape[FILES[name]]
    for index, one in enumerate(volume.slices):  # from feet to head, or from front to back
        assert one.display is not None
        # Canonical axes lead to the right, to the front and up. Rows of an axial slice lead to the back, those of a
        # coronal one down; columns lead to the left of the patient.
        expected = canonical[::-1, ::-1, index].T if FILES[name] == 2 else canonical[::-1, -1 - index, ::-1].T
        np.testing.assert_array_equal(one.display.upright(one.read()), expected)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sagittal", "coronal", "axial"])
def test_a_volume_is_shown_in_the_plane_of_its_slices(axis: int) -> None:
    values, affine = np.arange(24.0).reshape(2, 3, 4), np.eye(4)
    affine[axis, axis] = 5  # mm between slices, and 1 mm between the pixels of one
    volume = nifti_volume(nifti_file(values, affine), ImagesConfig())
    assert len(volume.slices) == values.shape[axis]
    first = volume.slices[0]
    assert first.display is not None
    # The first slice of each: the right side of the patient, the front, the feet.
    expected = {0: values[1, ::-1, ::-1].T, 1: values[::-1, 2, ::-1].T, 2: values[::-1, ::-1, 0].T}[axis]
    np.testing.assert_array_equal(first.display.upright(first.read()), expected)


def test_scaling_of_the_header_is_applied_and_wrong_orientations_are_turned() -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(2, -100)
    loaded = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    volume = nifti_volume(image.to_bytes(), ImagesConfig())
    np.testing.assert_array_equal(volume.slices[1].read(), np.asarray(loaded.dataobj)[..., 1])
    assert volume.slices[0].display is not None
    np.testing.assert_array_equal(
        volume.slices[0].display.upright(volume.slices[0].read()), np.asarray(loaded.dataobj)[..., 0].T
    )


def test_nan_and_infinity_are_black_and_white_and_do_not_move_the_rest() -> None:
    values = np.tile(np.linspace(1, 100, 64).reshape(8, 8, 1), (1, 1, 2))
    (plain, _), odd = shown(nifti_file(values)), values.copy()
    odd[0, 0], odd[7, 7] = np.nan, np.inf
    (picture, _) = shown(nifti_file(odd))
    assert np.abs(picture.astype(int) - plain).max() <= 4  # of its 64 values, two had a part in the percentiles
    assert (picture.max(), picture[7, 7], picture[0, 0]) == (255, 0, 255)  # turned by half
    assert refused(nifti_file(np.full((2, 2, 2), np.nan))) == "image without a finite value"
    assert refused(nifti_file(np.full((2, 2, 2), 3.0))) == "medical image with the same value everywhere"


def test_broken_and_other_files_are_rejected_by_name(tmp_path: Path) -> None:
    plain = nifti_file(np.arange(8.0).reshape(2, 2, 2))
    assert is_medical(plain[:4096])
    assert is_medical(gzip.compress(plain)[:4096])
    assert not is_medical(gzip.compress(b"question,answer"))
    assert refused(plain[:-1]) == "NIfTI file is truncated"
    assert refused(gzip.compress(plain)[:-9]) == "NIfTI file is truncated"
    assert refused((NIFTI_FILES / "nifti1.hdr").read_bytes()).startswith("NIfTI header without its pixels")
    four = (NIFTI_FILES / "functional.nii").read_bytes()
    assert refused(four) == refused(four, time_point=20) == "NIfTI file of several volumes"
    assert len(shown(four, time_point=19)) == 3
    complex_ = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.complex64), np.eye(4)).to_bytes()
    assert refused(complex_) == "NIfTI file of numbers that are not shown"


def test_a_compressed_file_that_grows_without_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.data.medical.nifti.MOST_BYTES", 2000)
    assert refused(gzip.compress(nifti_file(np.zeros((20, 20, 20))))) == "medical image file of more than 2000 bytes"


def test_colours_are_shown_as_they_are() -> None:
    colours = np.zeros((2, 2, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["B"] = 200, 7
    (picture,) = shown(nibabel.Nifti1Image(colours, np.eye(4)).to_bytes())
    assert picture[0, 0].tolist() == [200, 0, 7]
