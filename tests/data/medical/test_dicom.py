"""DICOM images are read upright, with the values of pydicom's own functions; other objects are rejected by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import SecondaryCaptureImageStorage

from tests.dicom_files import DICOM_FILES, NIFTI_FILES, SERIES, dicom_file, series
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.dicom import dicom_series, dicom_volume
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.pictures import shading_of
from vlm_core.data.medical.reader import MedicalReader, is_medical

ALL = ImagesConfig(secondary_captures=True)
DAMAGED = "pixels of the DICOM file are damaged"
REJECTED = {
    "JPEG-lossy.dcm": DAMAGED,
    "MR_truncated.dcm": DAMAGED,
    "JPEG2000-embedded-sequence-delimiter.dcm": "medical image of more than 33554432 pixels",
    "decimal_rescale.dcm": "medical image with the same value everywhere",
    "badVR.dcm": "DICOM file is damaged",
    "meta_missing_tsyntax.dcm": "medical image without pixels",
    "nested_priv_SQ.dcm": "medical image without pixels",
    "test-SR.dcm": "DICOM report, not an image",
    "reportsi.dcm": "DICOM report, not an image",
    "reportsi_with_empty_number_tags.dcm": "DICOM report, not an image",
    "liver_1frame.dcm": "DICOM segmentation, not an image",
    "liver_expb_1frame.dcm": "DICOM segmentation, not an image",
    "DICOMDIR-empty.dcm": "DICOMDIR: an index, not an image",
} | dict.fromkeys(
    ("ExplVR_LitEndNoMeta.dcm", "UN_sequence.dcm", "empty_charset_LEI.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm",
     "rtplan.dcm", "rtplan_truncated.dcm", "rtstruct.dcm", "waveform_ecg.dcm", "csa_slice_norm.dcm"),
    "DICOM object without an image",
)  # fmt: skip
FILES = sorted(
    path
    for folder in (DICOM_FILES, NIFTI_FILES)
    for path in folder.rglob("*")
    if path.is_file() and is_medical(path.read_bytes()[:4096]) and ".nii" not in path.name
    and not path.name.startswith(("DICOMDIR", "IM0000", "nifti"))
)  # fmt: skip


def shown(content: bytes, **settings: Any) -> list[np.ndarray]:
    opened = MedicalReader(ImagesConfig(**settings)).open([content])
    return [np.asarray(Image.open(io.BytesIO(picture))) for picture in opened.pictures]


def refused(*contents: bytes, **settings: Any) -> str:
    with pytest.raises(MedicalImageError) as error:
        MedicalReader(ImagesConfig(**settings)).open(contents)
    return str(error.value)


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in REJECTED], ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")
def test_values_are_those_of_pydicoms_own_functions(path: Path) -> None:
    volume, dataset = dicom_volume(path.read_bytes(), ALL), pydicom.dcmread(path)
    frames = dataset.pixel_array if dataset.get("NumberOfFrames", 1) > 1 else dataset.pixel_array[np.newaxis]
    assert len(volume.slices) == len(frames)
    for one, stored in list(zip(volume.slices, frames, strict=True))[:3]:
        values = one.read()
        if volume.colour:
            colours = (
                apply_color_lut(stored, dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else stored
            )
            np.testing.assert_array_equal(values, colours >> (8 * colours.dtype.itemsize - 8))
            continue
        expected = apply_modality_lut(stored, dataset)
        known = ~np.isnan(values)
        np.testing.assert_array_equal(values[known], expected[known])
        if "WindowWidth" in dataset:
            low, high = sorted(volume.full_range or ())
            viewed = np.clip((apply_voi_lut(expected, dataset) - low) / (high - low) * 255, 0, 255)
            pixels = shading_of(volume, "header", None).apply(values, one.header)
            assert np.abs(pixels[known] - viewed[known]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("path", [path for path in FILES if path.name in REJECTED], ids=lambda path: path.name)
def test_what_is_not_an_image_is_rejected_by_name(path: Path) -> None:
    assert refused(path.read_bytes(), secondary_captures=True) == REJECTED[path.name]


def test_a_series_of_the_wheel_is_sorted_by_position() -> None:
    files = [path.read_bytes() for path in sorted((DICOM_FILES / "dicomdirtests" / "98892001" / "CT5N").iterdir())]
    heights = [one.header.ImagePositionPatient[2] for one in dicom_series(reversed(files), ALL).slices]
    assert len(heights) == 5
    assert heights == sorted(heights)


def test_a_series_is_sorted_by_position_and_not_by_number_or_name() -> None:
    volume = dicom_series(series([5, -5, 0, 10], [5, -5, 0, 10]), ALL)
    assert [one.read()[0, 0] for one in volume.slices] == [-5, 0, 5, 10]
    assert [one.names[0] for one in volume.slices] == ["2", "3", "1", "4"]
    assert not volume.facts["uneven"]
    assert dicom_series(series([0, 5, 20], [0, 5, 20]), ALL).facts["uneven"]


def test_coronal_slices_go_from_front_to_back_and_sagittal_ones_from_right_to_left() -> None:
    for orientation, axis in (((1, 0, 0, 0, 0, -1), 1), ((0, 1, 0, 0, 0, -1), 0), ((-1, 0, 0, 0, 0, -1), 1)):
        files = []
        for number, place in enumerate((7, -3, 2)):
            position = [0, 0, 0]
            position[axis] = place
            files.append(
                dicom_file(np.full((2, 2), place), ImageOrientationPatient=list(orientation),
                           ImagePositionPatient=position, InstanceNumber=number)
            )  # fmt: skip
        assert [one.read()[0, 0] for one in dicom_series(files, ALL).slices] == [
            -3,
            2,
            7,
        ]  # DICOM leads to left and back


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ((1, 0, 0, 0, 1, 0), lambda a: a),  # supine
        ((-1, 0, 0, 0, -1, 0), lambda a: a[::-1, ::-1]),  # prone, stored as the scanner saw it
        ((-1, 0, 0, 0, 1, 0), lambda a: a[:, ::-1]),  # mirrored
        ((0, 1, 0, 1, 0, 0), lambda a: a.T),
        ((1, 0, 0, 0, 0, -1), lambda a: a),  # coronal
        ((1, 0, 0, 0, 0, 1), lambda a: a[::-1]),  # coronal with the feet up
        ((0, 1, 0, 0, 0, -1), lambda a: a),  # sagittal
        ((0, -1, 0, 0, 0, -1), lambda a: a[:, ::-1]),  # sagittal with the back on the left
        ((0.97, 0.24, 0, -0.24, 0.97, 0), lambda a: a),  # a tilted head
    ],
)
def test_slices_are_upright_and_not_mirrored(orientation: tuple[float, ...], turned: Any) -> None:
    values = np.arange(6.0).reshape(2, 3) * 10
    (picture,) = shown(dicom_file(values, ImageOrientationPatient=list(orientation)), window="25/60")
    (plain,) = shown(dicom_file(values), window="25/60")
    np.testing.assert_array_equal(picture, turned(plain))


def test_a_radiograph_is_turned_as_its_header_says_where_left_and_feet_are() -> None:
    values = np.arange(6.0).reshape(2, 3) * 10
    place = {"ImageOrientationPatient": None, "ImagePositionPatient": None, "RescaleIntercept": 0}
    xray = {name: shown(dicom_file(values, Modality="DX", PatientOrientation=name.split(), **place), window="25/60")[0]
            for name in ("L F", "R F", "L H", "A F")}  # fmt: skip
    np.testing.assert_array_equal(xray["R F"], xray["L F"][:, ::-1])
    np.testing.assert_array_equal(xray["L H"], xray["L F"][::-1])
    mammogram = shown(dicom_file(values, Modality="MG", PatientOrientation=["R", "F"], **place), window="25/60")[0]
    np.testing.assert_array_equal(mammogram, xray["L F"])  # which are hung by other rules


def test_pixels_become_square() -> None:
    values = np.repeat(np.arange(4.0)[:, np.newaxis] * 20, 4, axis=1)
    assert shown(dicom_file(values, PixelSpacing=[3, 1]), window="30/60")[0].shape == (12, 4)
    assert shown(dicom_file(values, PixelSpacing=[1, 2]), window="30/60")[0].shape == (4, 8)
    assert shown(dicom_file(values, PixelSpacing=[1, 1.001]), window="30/60")[0].shape == (4, 4)
    turned = dicom_file(values, PixelSpacing=[3, 1], ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    assert shown(turned, window="30/60")[0].shape == (4, 12)


def test_monochrome1_is_inverted() -> None:
    values = np.arange(0, 80, 5.0).reshape(4, 4)
    plain, inverted = (
        shown(dicom_file(values, PhotometricInterpretation=f"MONOCHROME{n}"), window="brain")[0] for n in (2, 1)
    )
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_padding_is_black_and_has_no_part_in_percentiles() -> None:
    values = np.arange(0, 160, 10.0).reshape(4, 4) + 100
    padded = values.copy()
    padded[0, 0] = -1024
    for colours in ("MONOCHROME1", "MONOCHROME2"):
        (picture,) = shown(dicom_file(padded, PixelPaddingValue=0, Modality="MR", PhotometricInterpretation=colours))
        assert picture[0, 0] == 0
        assert np.ptp(picture[1:].astype(int)) > 150


def test_a_range_of_padding_is_black_and_does_not_move_the_rest() -> None:
    values = np.arange(0, 160, 10.0).reshape(4, 4) + 100
    padded = values.copy()
    padded[0, :2] = (-1024, -1000)  # stored as 0 and 24
    for ends in ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 30},
                 {"PixelPaddingValue": 30, "PixelPaddingRangeLimit": 0}):  # fmt: skip
        (picture,) = shown(dicom_file(padded, Modality="MR", PhotometricInterpretation="MONOCHROME1", **ends))
        assert picture[0, :2].tolist() == [0, 0]
        assert np.ptp(picture[1:].astype(int)) > 150


def test_monochrome1_inverts_each_colour_of_a_ct_slice() -> None:
    values = np.array([[-1000.0, 40], [80, 1000]])
    (plain,) = shown(dicom_file(values))
    (inverted,) = shown(dicom_file(values, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_a_single_slice_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *args, **kw: decoded.append(1) or pixel_array(*args, **kw))
    shown(dicom_file(np.arange(16.0).reshape(4, 4), Modality="MR"))
    assert len(decoded) == 1


def test_a_lookup_table_in_the_header_is_applied() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 8], np.array([0, 10, 200, 255], "<u2").tobytes()
    values = np.array([[50, 100], [101, 102], [103, 500]])
    (picture,) = shown(dicom_file(values, VOILUTSequence=[table], RescaleIntercept=0), window="header")
    np.testing.assert_array_equal(picture, [[0, 0], [10, 200], [255, 255]])


def test_overlays_are_ignored_or_burnt_in() -> None:
    content = (DICOM_FILES / "examples_overlay.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content))
    mask = dataset.overlay_array(0x6000) != 0
    (plain,), (burnt,) = shown(content), shown(content, overlays="burn_in")
    assert mask.any()
    assert (burnt[mask] == 255).all()
    np.testing.assert_array_equal(burnt[~mask], plain[~mask])


def test_frames_of_an_enhanced_object_have_their_own_headers() -> None:
    def frame(z: float, slope: float) -> pydicom.Dataset:
        item, place, values, private = (pydicom.Dataset() for _ in range(4))
        place.ImagePositionPatient = [0, 0, z]
        values.RescaleSlope, values.RescaleIntercept = slope, 0
        private.RescaleSlope, private.ImagePositionPatient = 100, [0, 0, 0]  # Philips repeats old headers in one
        item.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [private])
        item.PlanePositionSequence, item.PixelValueTransformationSequence = [place], [values]
        return item

    shared, direction = pydicom.Dataset(), pydicom.Dataset()
    direction.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [direction]
    stored = np.stack([np.full((2, 2), 10.0), np.full((2, 2), 20.0)])
    content = dicom_file(
        stored, NumberOfFrames=2, ImageOrientationPatient=None, ImagePositionPatient=None, RescaleSlope=None,
        RescaleIntercept=None, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame(5, 2), frame(-5, 3)],
    )  # fmt: skip
    volume = dicom_volume(content, ALL)
    assert [one.read()[0, 0] for one in volume.slices] == [60, 20]
    assert [one.names for one in volume.slices] == [("2",), ("1",)]


def test_files_that_are_not_a_series_are_rejected_by_name() -> None:
    one, two = series([0, 5], [0, 5])
    (other,) = series([10], [10], SeriesInstanceUID=f"{SERIES}.2")
    (coronal,) = series([10], [10], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    (unplaced,) = series([10], [10], ImageOrientationPatient=None)
    large = dicom_file(np.zeros((8, 8)), ImagePositionPatient=[0, 0, 9])
    assert refused(one, two, other) == "folder or list with several DICOM series"
    assert refused(one, two, coronal) == "DICOM series with slices in different directions"
    assert refused(one, two, unplaced) == "DICOM series without the positions of its slices"
    assert refused(one, two, large) == "DICOM series with slices of different sizes"
    assert refused(one, two, two) == "DICOM series with several slices at one place"
    assert refused(one, two, b"text") == "file that is not DICOM"


def test_objects_that_are_not_images_are_rejected_by_name() -> None:
    values, hidden = np.zeros((4, 4)), pydicom.Dataset()
    capture = dicom_file(values, SOPClassUID=SecondaryCaptureImageStorage)
    assert refused(capture) == "DICOM secondary capture"
    assert len(shown(capture, secondary_captures=True, window="brain")) == 1
    encrypted = pydicom.dcmread(io.BytesIO(dicom_file(values)))
    encrypted.EncryptedAttributesSequence = [hidden]
    del encrypted.PixelData
    stream = io.BytesIO()
    encrypted.save_as(stream)
    assert refused(stream.getvalue()) == "encrypted DICOM object"
    assert refused(bytes.fromhex("3082abcd06092a864886f70d010703") + bytes(200)) == "encrypted DICOM file"
    assert refused(dicom_file(values, PhotometricInterpretation="HSV")) == "DICOM image in colours that are not read"
    assert refused(dicom_file(values, Rows=60_000, Columns=60_000)).startswith("medical image of more than")
    assert refused(dicom_file(values, Rows=4000)) == DAMAGED


def test_no_message_contains_personal_data_of_the_file(caplog: pytest.LogCaptureFixture) -> None:
    content = dicom_file(np.zeros((4, 4)), PatientBirthDate="19700101")
    for cut in range(140, len(content), 37):
        with pytest.raises(MedicalImageError) as error:
            MedicalReader(ImagesConfig(window="brain")).open([content[:cut]])
        assert "Doe" not in f"{error.value} {error.value.detail}"
        assert error.value.__context__ is None or error.value.__suppress_context__
    assert caplog.text == ""
