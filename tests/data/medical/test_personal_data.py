"""Personal data in headers is counted by name and kind, and no output contains its values."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.data.medical.test_cells import prepared, write_csv
from tests.dicom_files import dicom_file
from vlm_core.config import ImagesConfig
from vlm_core.data.medical.reader import MedicalReader
from vlm_core.data.medical_statistics import burnt_in_text, medical_findings, medical_statistics
from vlm_core.data.prepare import prepare_conversations
from vlm_core.data.splits import fetch_splits
from vlm_core.data.statistics import STATISTICS
from vlm_core.files import read_json
from vlm_core.pages.data_report import write_data_report
from vlm_core.recipe import load_config

PLANTED = {
    "PatientName": "Zaphod^Beeblebrox", "PatientID": "XQ-884422", "PatientBirthDate": "19420229",
    "InstitutionName": "Magrathea Klinik", "ReferringPhysicianName": "Vogon^Jeltz", "AccessionNumber": "ACC99177",
    "StudyDate": "20251231", "PatientComments": "lives beside Milliways",
}  # fmt: skip


def test_planted_values_are_reported_by_tag_and_stand_in_no_output(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    names = []
    for number in range(6):
        values = np.full((8, 8), 10.0 * number)
        values[0, 0] = 500
        (folder / f"{number}.dcm").write_bytes(dicom_file(values, **PLANTED))
        names.append(f"{number}.dcm")
    broken = dicom_file(np.zeros((8, 8)), **PLANTED)
    (folder / "broken.dcm").write_bytes(broken[: broken.index(b"Milliways") + 20])
    rows = [{"image": n, "question": f"q{i}", "answer": "a"} for i, n in enumerate([*names, "broken.dcm"])]
    write_csv(folder, rows)
    settings = {"dataset.max_reject_share": 1, "dataset.split_by": "image", "dataset.validation_share": 0.4}
    config = load_config("demo", {"dataset.path_or_dataset": str(folder), "validation_dataset.split": None} | settings)
    with caplog.at_level("DEBUG"):
        cache, _ = prepare_conversations(config, fetch_splits(config))
        write_data_report(config, cache, home / "home" / "report.html")
    found = read_json(cache / STATISTICS)
    assert set(PLANTED) <= set(found["medical"]["personal_tags"])
    assert found["medical"]["personal_tags"]["PatientName"] == 6
    assert any("PatientName in 6" in finding for finding in found["findings"])
    outputs = b"".join(path.read_bytes() for path in (home / "home").rglob("*") if path.is_file())
    for value in PLANTED.values():
        for part in value.replace("^", " ").split():
            if len(part) > 5:
                assert part.encode() not in outputs
                assert part not in caplog.text
    assert b"PatientName" in outputs


def test_signs_of_personal_data_stop_a_run_if_the_config_says_so(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.dcm").write_bytes(dicom_file(np.arange(16.0).reshape(4, 4) + number))
    answers = ["seen on 2024-01-02", "by Dr. Smith", *"abcd"]
    write_csv(folder, [{"image": f"{n}.dcm", "question": "q", "answer": a} for n, a in enumerate(answers)])
    prepared(folder)
    prepared(folder, **{"dataset.max_personal_data": 2})
    with pytest.raises(ValueError, match=r"2 signs of personal data \(a date: 1, a name with a title: 1\)"):
        prepared(folder, **{"dataset.max_personal_data": 1})


def test_text_in_the_pixels_is_a_sign_without_a_word_in_the_header(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        values = np.full((128, 128), 40.0 + number)
        if number < 2:
            picture = Image.new("L", (128, 128))
            ImageDraw.Draw(picture).text((4, 4), f"DOE^JANE {number}", fill=255, font=ImageFont.load_default(14))
            values += 4.0 * np.asarray(picture)
        (folder / f"{number}.dcm").write_bytes(dicom_file(values, BurnedInAnnotation="NO"))
    write_csv(folder, [{"image": f"{n}.dcm", "question": f"q{n}", "answer": "a"} for n in range(6)])
    found = read_json(prepared(folder) / STATISTICS)
    assert found["burnt_in_text"] == {"by_header": 0, "by_pixels": 2, "images": 2}
    assert any(text.startswith("2 images may have text burnt in") for text in found["findings"])
    prepared(folder, **{"dataset.max_personal_data": 2})
    with pytest.raises(ValueError, match=r"2 signs of personal data \(text burnt into an image: 2\)"):
        prepared(folder, **{"dataset.max_personal_data": 1})


def test_headers_say_that_text_is_burnt_in() -> None:
    values = np.arange(16.0).reshape(4, 4)
    settings = ImagesConfig(secondary_captures=True)
    for attributes in ({"BurnedInAnnotation": "YES"}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}):
        assert MedicalReader(settings).open([dicom_file(values, **attributes)]).facts["burnt_in"]
    assert not MedicalReader(settings).open([dicom_file(values, BurnedInAnnotation="NO")]).facts["burnt_in"]


def test_findings_name_what_can_hide_a_finding() -> None:
    facts = [
        '{"window": "percentiles, of values like HU", "shown": 2, "slices": 9, "spacing": [0.5, 0.5]}',
        '{"window": "full range of 16 bits, without a window", "uneven": true, "orientation_unknown": true}',
        None,
    ]
    medical = medical_statistics(facts)
    assert (medical["images"], medical["counts"]["spacing"]) == (2, {"0.5 x 0.5": 1})
    burnt_in = burnt_in_text([('{"burnt_in": true}', True), ("{}", True), (None, True), (None, False), (None, False)])
    assert burnt_in == {"by_header": 1, "by_pixels": 3, "images": 3}
    found = {
        "medical": medical,
        "personal_texts": {},
        "burnt_in_text": burnt_in,
        "images": {"modes": {"I;16": 3, "RGB": 2}},
    }
    said = [text for applies, text in medical_findings(found) if applies]
    assert [text.split(" ", 1)[0] for text in said] == ["1", "1", "3", "3", "1", "1", "1"]
