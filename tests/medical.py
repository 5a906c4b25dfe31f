"""Writes a dataset in MedPix-VQA's published layout from the real CT, MR and ultrasound files in pydicom's wheel."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
from datasets import Features, Image, Value
from PIL import Image as PillowImage

# 16-bit grey, palette, colour, YBR colour with 30 frames, and the same with other compressions.
FILES = (
    "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small.dcm", "examples_jpeg2k.dcm",
    "examples_overlay.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm",
)  # fmt: skip
FRAMES = 4  # frames that are taken from a multi-frame file
QUESTIONS = ("What is the modality?", "How many columns does the image have?", "Which vendor made the device?")
FEATURES = Features(
    {"image_id": Image(), **{name: Value("string") for name in ("mode", "case_id", "question", "answer")}}
)


def write_medical_dataset(directory: Path) -> None:
    """Writes `data/train-*.parquet` and `data/validation-*.parquet`: three questions per image, one third held out."""
    rows: dict[str, list[dict[str, object]]] = {"train": [], "validation": []}
    for number, (case, dataset, encoded) in enumerate(_images()):
        answers = (
            f"The modality is {dataset.Modality}.",
            str(dataset.Columns),
            str(dataset.get("Manufacturer") or "unknown"),
        )
        for question, answer in zip(QUESTIONS, answers, strict=True):
            image = {"bytes": encoded, "path": f"{case}-{number}.png"}
            row = {"image_id": image, "mode": "alignment", "case_id": case, "question": question, "answer": answer}
            rows["validation" if number % 3 == 2 else "train"].append(row)
    (directory / "data").mkdir(parents=True)
    for split, split_rows in rows.items():
        table = pa.Table.from_pylist(split_rows, schema=FEATURES.arrow_schema)
        pq.write_table(table, directory / "data" / f"{split}-00000-of-00001.parquet")


def _images() -> Iterator[tuple[str, pydicom.Dataset, bytes]]:
    """Yields (case, header, encoded image): the DICOM file itself, or the first frames of one of many as PNG."""
    for name in FILES:
        path = Path(pydicom.__file__).parent / "data" / "test_files" / name
        dataset = pydicom.dcmread(path)
        if dataset.get("NumberOfFrames", 1) == 1:
            yield name.removesuffix(".dcm"), dataset, path.read_bytes()
            continue
        for pixels in dataset.pixel_array[:FRAMES]:  # pydicom 3 has turned YBR into RGB already
            stream = io.BytesIO()
            PillowImage.fromarray(pixels).save(stream, "png")
            yield name.removesuffix(".dcm"), dataset, stream.getvalue()
