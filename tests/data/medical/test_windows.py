"""A window decides which tissues can be told apart: by config, by modality, by header, and never from min to max."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.dicom_files import dicom_file, nifti_file
from vlm_core.config import ImagesConfig
from vlm_core.config.data import WINDOW_PRESETS
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.reader import MedicalReader
from vlm_core.data.medical.settings import identity
from vlm_core.data.medical.windows import CT_RGB, PRESETS, Window, apply_window, robust_range

TISSUE, BLEED, METAL = (1, 1), (2, 2), (0, 0)


def head(**attributes: Any) -> bytes:
    """Returns a CT slice of tissue at 40 HU, a bleed at 80 HU, air, and one pixel of metal."""
    values = np.full((32, 32), -1000.0)
    values[1:20, 1:20] = 40
    values[2, 2], values[0, 0] = 80, 30_000
    return dicom_file(values, **attributes)


def opened(content: bytes, modality: str | None = None, **settings: Any) -> tuple[np.ndarray, str]:
    found = MedicalReader(ImagesConfig(**settings)).open([content], modality=modality)
    return np.asarray(Image.open(io.BytesIO(found.pictures[0]))).astype(int), found.facts["window"]


def test_one_pixel_of_metal_does_not_hide_a_bleed() -> None:
    for window in ("brain", "40/80", {"level": 40, "width": 80}):
        picture, _ = opened(head(), window=window)
        assert picture[BLEED] - picture[TISSUE] > 100
    picture, words = opened(head())  # auto: the brain is the blue channel
    assert picture[BLEED][2] - picture[TISSUE][2] > 100
    assert picture[BLEED][1] > picture[TISSUE][1]
    assert words == "CT as red, green, blue: 0/2048, 40/350, 40/80"


def test_the_config_knows_every_preset() -> None:
    assert PRESETS.keys() == set(WINDOW_PRESETS)


def test_three_windows_are_those_of_medgemmas_authors() -> None:
    edges = [(window.level - window.width / 2, window.level + window.width / 2) for window in CT_RGB]
    assert edges == [(-1024, 1024), (-135, 215), (0, 80)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_maps_its_level_to_the_middle_and_its_width_to_all_greys(name: str) -> None:
    window = PRESETS[name]
    low, high = window.level - window.width / 2, window.level + window.width / 2
    greys = apply_window(np.array([[low - 1, low, window.level, high, high + 1]]), window)[0]
    assert greys[:2].tolist() == [0, 0]
    assert greys[3:].tolist() == [255, 255]
    assert int(greys[2]) == pytest.approx(128, abs=4)


def test_the_window_follows_the_modality() -> None:
    ct, mr, xray = (head(Modality=name, WindowCenter=10, WindowWidth=100) for name in ("CT", "MR", "CR"))
    percentiles = "percentiles 0.5 to 99.5 of the volume"
    assert [opened(file)[1][:2] for file in (ct, mr, xray)] == ["CT", "pe", "wi"]
    assert opened(xray)[1] == "window of the header"
    assert [opened(file, window="brain")[1] for file in (ct, mr)] == ["window brain 40/80", percentiles]
    assert opened(mr, window="30/60")[1] == "window 30/60"
    assert opened(head(Modality="CR"))[1] == percentiles
    assert opened(mr, window="header")[1] == "window of the header"
    assert opened(ct, window="none")[1] == "full range of 16 bits, without a window"
    volume = nifti_file(np.arange(8.0).reshape(2, 2, 2))
    assert opened(volume)[1] == percentiles
    assert opened(volume, "ct ")[1].startswith("CT as red")
    assert opened(volume, "MR", window="brain")[1] == percentiles
    assert opened(volume, window="brain")[1] == "window brain 40/80"
    assert opened(ct, "MR")[1].startswith("CT as red")  # the header knows better than the table


def test_a_header_without_a_valid_window_is_shown_by_percentiles() -> None:
    for width in (0, -5, 0.5):
        assert opened(head(Modality="CR", WindowCenter=10, WindowWidth=width))[1].startswith("percentiles")


def test_percentiles_are_those_of_the_volume_and_leave_background_out() -> None:
    volume = np.zeros((20, 20, 10))
    volume[:, :, 1:] = np.random.default_rng(0).uniform(50, 150, (20, 20, 9))
    volume[0, 0, 5] = 1e6
    low, high = robust_range(volume)
    assert (low, high) == pytest.approx((50, 150), abs=2)
    pictures = MedicalReader(ImagesConfig()).open([nifti_file(volume)]).pictures
    assert np.asarray(Image.open(io.BytesIO(pictures[0]))).max() == 0  # an empty slice stays empty
    assert np.asarray(Image.open(io.BytesIO(pictures[5]))).std() > 60


def test_none_of_floats_is_refused_and_of_eight_bits_is_as_stored() -> None:
    with pytest.raises(MedicalImageError, match="not whole numbers"):
        opened(nifti_file(np.arange(8.0).reshape(2, 2, 2)), window="none")
    values = np.arange(16.0).reshape(4, 4) * 17
    eight = dicom_file(values, BitsStored=8, HighBit=7, RescaleIntercept=0, Modality="US")
    np.testing.assert_array_equal(opened(eight)[0], values)


def test_sigmoid_and_exact_windows_of_a_header_are_pydicoms() -> None:
    values = np.array([[-1000.0, 0, 50, 100, 3000]])
    assert apply_window(values, Window(50, 100, "LINEAR_EXACT"))[0].tolist() == [0, 0, 128, 255, 255]
    assert apply_window(values, Window(50, 100, "SIGMOID"))[0].tolist() == [0, 30, 128, 225, 255]


@pytest.mark.parametrize(
    ("written", "stored"),
    [("Soft Tissue", "soft_tissue"), ("soft-tissue", "soft_tissue"), ("40 / 80", "40/80"), ("-600/1500", "-600/1500"),
     ({"level": 40, "width": 80.5}, "40/80.5"), (None, "none"), ("AUTO", "auto")],
)  # fmt: skip
def test_windows_are_written_in_several_ways(written: Any, stored: str) -> None:
    assert ImagesConfig(window=written).window == stored


@pytest.mark.parametrize("written", ["brian", "40", "40/0", "40/-80", {"level": 40}, ["brain"], "min_max", 40])
def test_other_windows_are_refused_with_the_known_ones(written: Any) -> None:
    with pytest.raises(ValidationError, match="LEVEL/WIDTH"):
        ImagesConfig(window=written)


def test_every_setting_changes_the_identity_of_pictures() -> None:
    plain = identity(ImagesConfig())
    for change in ({"window": "brain"}, {"slices": "every 2"}, {"slice_column": "n"}, {"modality_column": "m"},
                   {"time_point": 0}, {"overlays": "burn_in"}, {"secondary_captures": True}):  # fmt: skip
        assert identity(ImagesConfig(**change)) != plain
    assert ImagesConfig.model_fields.keys() == dict(plain[1]).keys()
