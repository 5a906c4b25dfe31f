"""Real DICOM files with planted personal data, and the search for it in all that a run left."""

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pydicom

from tests.dicom_files import DICOM_FILES

FILES = ("CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm", "MR_small.dcm", "examples_overlay.dcm",
         "examples_palette.dcm", "examples_rgb_color.dcm", "examples_jpeg2k.dcm")  # fmt: skip
HELD_OUT = ("MR_small.dcm", "examples_palette.dcm")
QUESTIONS = ("What is the modality?", "How many columns does it have?", "How many rows does it have?",
             "Which vendor made the device?", "Is it a CT image?")  # fmt: skip
IN_HEADERS = {
    "PatientName": "Beeblebrox^Zaphod", "PatientID": "XQ-884422", "PatientBirthDate": "19420229",
    "InstitutionName": "Magrathea Klinik", "ReferringPhysicianName": "Slartibartfast^Vogon",
    "AccessionNumber": "ACC9917755", "OperatorsName": "Trillian^Astra", "PatientComments": "lives beside Milliways",
}  # fmt: skip
IN_A_QUESTION = ("Zarniwoop", "00774411")  # a name and a record number
PIECES = ["Beeblebrox", "Zaphod", "XQ-884422", "19420229", "Magrathea", "Slartibartfast", "ACC9917755", "Trillian",
          "Milliways"]  # fmt: skip


def write_planted_dataset(directory: Path) -> None:
    """Writes eight DICOM files of pydicom's wheel and 40 questions about them; one in training holds personal data."""
    directory.mkdir()
    rows: dict[str, list[str]] = {"train": [], "validation": []}
    for number, name in enumerate(FILES):
        header = pydicom.dcmread(DICOM_FILES / name)
        for tag, value in IN_HEADERS.items():
            setattr(header, tag, value)
        header.save_as(directory / f"{number}.dcm")
        kind, answers = (
            str(header.Modality),
            [str(header.Columns), str(header.Rows), str(header.get("Manufacturer") or "unknown")],
        )
        for question, answer in zip(QUESTIONS, [kind, *answers, "Yes" if kind == "CT" else "No"], strict=True):
            row = {"image": f"{number}.dcm", "question": question, "answer": answer, "patient": f"p{number}"}
            rows["validation" if name in HELD_OUT else "train"].append(json.dumps(row))
    name, record = IN_A_QUESTION
    rows["train"][7] = rows["train"][7].replace("How many", f"Dr. {name} asks about MRN: {record}. How many")
    for split, lines in rows.items():
        (directory / f"{split}.jsonl").write_text("\n".join(lines))


def places_of(home: Path, values: list[str]) -> dict[str, set[str]]:
    """Returns `{value: files below `home` that hold it}`: as text, in base64, or in compressed files and tables."""
    forms = {value: [value.encode(), value.encode("utf-16-le"), *_in_base64(value.encode())] for value in values}
    found: dict[str, set[str]] = {value: set() for value in values}
    for path in (path for path in home.rglob("*") if path.is_file()):
        for content in _contents(path):
            for value, written in forms.items():
                if any(form in content for form in written):
                    found[value].add(path.relative_to(home).as_posix())
    return found


def _in_base64(value: bytes) -> Iterator[bytes]:
    """Yields what base64 makes of a value wherever it starts, without the ends that its neighbours decide."""
    for start in range(3):
        written = base64.b64encode(b"\0" * start + value + b"\0" * 3)
        yield written[-(-8 * start // 6) : 8 * (start + len(value)) // 6]


def _contents(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if path.suffix == ".parquet":
        yield json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
