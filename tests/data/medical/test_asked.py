"""`generate` and a served model prepare a DICOM file as training did."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dicom_files import dicom_file, series
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.settings import save_settings, settings_of
from vlm_core.generate import images_of, read_file

BRAIN = ImagesConfig(window="brain", slices="2 evenly")


def asked(path: Path, settings: ImagesConfig = BRAIN) -> list[np.ndarray]:
    return [np.asarray(image) for image in images_of(str(path), read_file(str(path), False), settings)]


def test_a_file_and_a_folder_are_shown_under_the_settings_of_the_model(tmp_path: Path) -> None:
    save_settings(BRAIN, tmp_path)
    assert settings_of(tmp_path) == BRAIN
    assert settings_of(tmp_path / "older model") == ImagesConfig()
    (tmp_path / "a").write_bytes(dicom_file(np.full((4, 4), 60.0)))
    assert asked(tmp_path / "a")[0][0, 0].tolist() == [194] * 3
    (tmp_path / "study").mkdir()
    for number, file in enumerate(series([3, 1, 2, 0], [60, 20, 40, 0])):
        (tmp_path / "study" / str(number)).write_bytes(file)
    assert [int(image[0, 0, 0]) for image in asked(tmp_path / "study")] == [65, 194]


def test_an_error_says_why_a_file_cannot_be_shown(tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(dicom_file(np.zeros((2, 2)), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    with pytest.raises(ValueError, match=r"cannot read the image .*report.dcm: DICOM report, not an image"):
        asked(tmp_path / "report.dcm")


def test_a_served_model_takes_dicom_as_base64(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tasks.test_serving import Stub, ask, model

    seen: list[Any] = []

    class Looking(Stub):
        def answer(self, batch: list[Any], settings: Any) -> list[Any]:
            seen.extend(part["image"] for conversation in batch for part in conversation[0]["content"][:-1])
            return super().answer(batch, settings)

    served = model(Looking())
    served.images = BRAIN
    file = base64.b64encode(dicom_file(np.full((4, 4), 60.0))).decode()
    assert ask(served, (file, "What is it?")) == ["What is it?"]
    assert seen[0].getpixel((0, 0)) == (194,) * 3
