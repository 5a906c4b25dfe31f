"""The data report shows what a window makes of the first images of each kind, beside the histogram of their values."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.conftest import small_config
from tests.dicom_files import DICOM_FILES, dicom_file, series
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.reader import SPECIMENS, MedicalReader
from vlm_core.data.prepare import prepare_conversations
from vlm_core.pages.data_report import write_data_report
from vlm_core.pages.plots import windows


def specimens(reader: MedicalReader, *files: list[bytes]) -> list[Any]:
    return [reader.open(content).specimen for content in files]


def test_the_first_images_of_a_kind_are_specimens_also_when_they_are_opened_again() -> None:
    reader = MedicalReader(ImagesConfig(window="brain"))
    scans = [[dicom_file(np.arange(16.0).reshape(4, 4) + n)] for n in range(20)]
    mr = [dicom_file(np.arange(16.0).reshape(4, 4), Modality="MR")]
    for _ in range(2):  # the reader keeps fewer images than these
        found = specimens(reader, *scans, mr)
        assert [one is not None for one in found] == [True] * SPECIMENS + [False] * (20 - SPECIMENS) + [True]


def test_a_specimen_has_the_values_the_window_and_the_picture_without_it() -> None:
    values = np.full((40, 40), 40.0)
    values[0, 0], values[1, 1] = 30_000, -1000
    (found,) = specimens(MedicalReader(ImagesConfig(window="brain")), [dicom_file(values)])
    assert found["ranges"] == [[0.0, 80.0]]
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert sum(found["counts"]) >= 1598  # all but the tails
    before = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["before"]))))
    assert (before[0, 0], before[1, 1], before[2, 2]) == (255, 0, 9)  # metal hides the rest
    (three,) = specimens(MedicalReader(ImagesConfig()), [dicom_file(values)])
    assert three["ranges"] == [[-1024.0, 1024.0], [-135.0, 215.0], [0.0, 80.0]]


def test_the_middle_slice_of_a_volume_carries_the_specimen() -> None:
    opened = MedicalReader(ImagesConfig()).open(series([0, 5, 10, 15], [0, 20, 40, 60]))
    assert ["specimen" in opened.facts_of(index) for index in range(4)] == [False, False, True, False]


def test_a_lookup_table_has_no_window_and_colours_no_specimen() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 8], np.array([0, 10, 200, 255], "<u2").tobytes()
    looked_up = dicom_file(np.array([[50.0, 100], [101, 103]]), VOILUTSequence=[table], RescaleIntercept=0)
    colour = (DICOM_FILES / "examples_palette.dcm").read_bytes()
    with_table, coloured = specimens(MedicalReader(ImagesConfig(window="header")), [looked_up], [colour])
    assert with_table["ranges"] == []
    assert windows(with_table["edges"], with_table["counts"], []).startswith("<svg")
    assert coloured is None


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_values_that_cannot_be_counted_give_no_specimen(value: float) -> None:
    from tests.dicom_files import nifti_file

    volume = np.full((4, 4, 3), 40.0)
    volume[..., 1] = value
    assert MedicalReader(ImagesConfig(window="brain")).open([nifti_file(volume)]).specimen is None


def test_the_page_shows_them_unless_images_must_stay_out(home: Path, tmp_path: Path) -> None:
    config = small_config(**{"dataset.path_or_dataset": "builtin:phantom?images=8&image_size=32&form=dicom"})
    cache, _ = prepare_conversations(config)
    write_data_report(config, cache, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    titles = re.findall(r'<article class="windowed">\s*<h3>(.*?)</h3>', page)
    assert (
        titles
        == ["CT: CT as red, green, blue: 0/2048, 40/350, 40/80"] * 2 + ["MR: percentiles 0.5 to 99.5 of the volume"] * 2
    )
    assert [page.count(f"{colour}: ") for colour in ("red", "green")] >= [2, 2]
    assert json.dumps(page).count("As the model sees it") == 4
    hidden = small_config(**{"dataset.path_or_dataset": config.dataset.path_or_dataset, "report.images": False})
    write_data_report(hidden, cache, tmp_path / "hidden.html")
    assert "What the window shows" not in (tmp_path / "hidden.html").read_text()
