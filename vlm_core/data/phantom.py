"""Generates the phantom dataset: CT-like and MR-like slices with questions, in the columns of MedPix-VQA.

The drawing determines every answer. The text of a question never gives the answer away.
"""

import argparse
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_core.data.phantom_drawing import draw_picture, draw_stored
from vlm_core.data.phantom_files import write_dicom, write_nifti

PHANTOM_VERSION: Final = 1
"""Part of every phantom's cache key. Increase it if equal arguments must give other images or questions."""
FORMS: Final = ("png", "dicom", "nifti")

CLOSED_QUESTIONS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "presence": ("Is there a lesion in this image?", ("Yes", "No")),
    "modality": ("Is this image a CT or an MR scan?", ("CT", "MR")),
    "plane": ("Is the slice axial, coronal or sagittal?", ("Axial", "Coronal", "Sagittal")),
    "fat": ("Is the layer of fat under the skin thin or thick?", ("Thin", "Thick")),
    "gas": ("Does the middle of the body hold gas or only tissue?", ("Gas", "Tissue")),
    "side": ("Is the finding on the left or on the right side of the image?", ("Left", "Right")),
    "height": ("Is the finding in the upper or in the lower half of the image?", ("Upper", "Lower")),
    "size": ("Is the diameter of the finding small or large?", ("Small", "Large")),
    "number": ("Does the finding consist of one or of two lesions?", ("One", "Two")),
}
"""Kind -> (the question, the possible answers). The last four are asked only if the image shows a lesion."""

_LESION_KINDS: Final = ("side", "height", "size", "number")
_IMAGE_KINDS: Final = ("presence", "modality", "plane", "fat", "gas")
# Two images in three show a lesion. Half of those are asked "presence", so "Yes" is right half the time.
_FIFTH_KINDS: Final = ("presence",) * 4 + _IMAGE_KINDS[1:]
_OPENERS: Final = ("", "Looking closely, ", "For the report, ", "In one sentence, ", "As a radiologist, ")
_WHERE: Final = "{number} {size} {lesions} in the {height} {side} part"
_FRAMES: Final = (  # question, answer with a lesion, answer without (None: not asked)
    (
        "what does this image show?",
        "This {plane} {modality} slice, with {fat} fat and {gas_words}, shows " + _WHERE + ".",
        "This {plane} {modality} slice, with {fat} fat and {gas_words}, shows no lesion in any part.",
    ),
    (
        "how would you summarise the findings?",
        "There {are} " + _WHERE + " of this {plane} {modality} slice, with {fat} fat and {gas_words}.",
        "There is no lesion on this {plane} {modality} slice, with {fat} fat and {gas_words}.",
    ),
    (
        "what should a colleague notice first?",
        "A colleague should notice " + _WHERE + ", then the {fat} fat and {gas_words} on this {plane} slice.",
        "A colleague should notice no lesion, then the {fat} fat and {gas_words} on this {plane} slice.",
    ),
    (
        "which technique was used, and what does it show?",
        "This {modality} scan in {plane} plane shows {number} {size} {lesions}, {fat} fat and {gas_words}.",
        "This {modality} scan in {plane} plane shows no lesion, {fat} fat and {gas_words}.",
    ),
    (
        "what is your impression of the tissue under the skin?",
        "Under {fat} fat and around {gas_words}, the tissue of this {plane} slice contains " + _WHERE + ".",
        "Under {fat} fat and around {gas_words}, the tissue of this {plane} slice contains no lesion.",
    ),
    ("where is the abnormality?", "The abnormality of this {plane} {modality} slice is " + _WHERE + ".", None),
    (
        "how far does the disease extend?",
        "With {fat} fat and {gas_words}, the disease on this {modality} slice is limited to " + _WHERE + ".",
        None,
    ),
)
_SPLITS: Final = ("train", "validation")
_TEXT_COLUMNS: Final = ("mode", "case_id", "question", "answer")
_FEATURES: Final = {"image_id": {"_type": "Image"}} | {
    name: {"dtype": "string", "_type": "Value"} for name in _TEXT_COLUMNS
}
_SCHEMA: Final = pa.schema(
    {"image_id": pa.struct({"bytes": pa.binary(), "path": pa.string()})} | dict.fromkeys(_TEXT_COLUMNS, pa.string()),
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_SCHEMA_OF_FILES: Final = pa.schema(dict.fromkeys(("image_id", *_TEXT_COLUMNS, "modality"), pa.string()))
_OUTERMOST: Final = 0.8  # depth of the first and last slice, see `draw_stored`


@dataclass(frozen=True, slots=True)
class _Slice:
    """The plan of one image: split and case, what it shows (kind -> answer), and the kinds of its questions."""

    index: int
    case_id: str
    split: str
    facts: dict[str, str]
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Writer:
    """What all images of a phantom have in common."""

    directory: Path
    seed: int
    image_size: int
    form: str
    slices: int

    def write(self, path: Path, slices: list[_Slice]) -> None:
        """Write the table of one split; a row group stores each of its 16 images once for 10 questions."""
        schema = _SCHEMA if self.form == "png" else _SCHEMA_OF_FILES
        with pq.ParquetWriter(path, schema, dictionary_pagesize_limit=2**28) as writer:
            for start in range(0, len(slices), 16):
                rows = [row for one in slices[start : start + 16] for row in self._rows(one)]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    def _rows(self, one: _Slice) -> Iterator[dict[str, object]]:
        """Yield the 10 rows of one image, in the columns of MedPix-VQA."""
        rng = np.random.default_rng([self.seed, one.index])
        image = self._picture(one, rng) if self.form == "png" else self._file(one)
        closed = ((CLOSED_QUESTIONS[kind][0], one.facts[kind]) for kind in one.asked)
        for mode, pairs in (("pre_training", closed), ("alignment", _open_pairs(one.facts, rng))):
            for pair in pairs:
                texts = dict(zip(_TEXT_COLUMNS, (mode, one.case_id, *pair), strict=True))
                yield {"image_id": image, **texts, "modality": one.facts["modality"]}

    def _picture(self, one: _Slice, rng: np.random.Generator) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(draw_picture(one.facts, self.image_size, rng)).save(buffer, format="PNG", compress_level=3)
        return {"bytes": buffer.getvalue(), "path": f"{one.case_id}_{one.index}.png"}

    def _file(self, one: _Slice) -> str:
        """Write the volume of an image beside the tables; return its path in the dataset."""
        depths = np.linspace(-_OUTERMOST, _OUTERMOST, self.slices) if self.slices > 1 else [0.0]
        drawn = []
        for number, depth in enumerate(depths):
            same, noise = (np.random.default_rng([self.seed, one.index, *more]) for more in ([], [number]))
            drawn.append(draw_stored(one.facts, self.image_size, float(depth), same, noise))
        volume, path = np.stack(drawn), self.directory / "images" / f"{one.case_id}_{one.index}"
        path.parent.mkdir(exist_ok=True)
        modality, plane = one.facts["modality"], one.facts["plane"]
        if self.form == "nifti":
            written = write_nifti(path, volume, plane)
        else:
            written = write_dicom(path, volume, modality, plane, one.case_id)
        return written.relative_to(self.directory).as_posix()


def write_phantom(
    directory: Path, num_images: int, seed: int, image_size: int, form: str = "png", slices: int = 1
) -> None:
    """Write `data/{train,validation}-00000-of-00001.parquet` under `directory`: 10 rows per image.

    15 % of the images are the validation split; they are drawn without regard to their case. Images are square, with
    `image_size` pixels a side. As `png` they are 8-bit grey and lie in the tables. As `dicom` or `nifti` they have
    `slices` slices in the values `phantom_drawing.STORED`, lie under `images`, and the tables have a column `modality`.
    Equal arguments write byte-identical files.

    Raises:
        ValueError: `num_images` < 2 (a split would be empty), `image_size` < 32 (a lesion would vanish), `slices` < 1,
            or more than one slice in a PNG.
    """
    if num_images < 2 or image_size < 32:
        raise ValueError(f"need num_images >= 2 and image_size >= 32, got {num_images} and {image_size}")
    if form not in FORMS or slices < 1 or (form == "png" and slices > 1):
        raise ValueError(f"need a form of {FORMS} and, unless it is png, slices >= 1; got {form!r} and {slices}")
    (directory / "data").mkdir(parents=True, exist_ok=True)
    writer = _Writer(directory, seed, image_size, form, slices)
    planned = _plan(num_images, np.random.default_rng([seed, num_images]))
    for split in _SPLITS:
        chosen = [one for one in planned if one.split == split]
        writer.write(directory / "data" / f"{split}-00000-of-00001.parquet", chosen)


def _open_pairs(facts: dict[str, str], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield 5 open questions, each worded differently, and their answers of one sentence."""
    lesion = facts["presence"] == "Yes"
    words = {kind: answer if kind == "modality" else answer.lower() for kind, answer in facts.items()}
    words["gas_words"] = "some gas" if facts["gas"] == "Gas" else "no gas"
    words["lesions"], words["are"] = ("lesions", "are") if facts.get("number") == "Two" else ("lesion", "is")
    frames = [frame for frame in _FRAMES if lesion or frame[2]]
    order = zip(rng.permutation(len(frames))[:5], rng.permutation(_OPENERS).tolist(), strict=True)
    for frame, opener in order:
        question, with_lesion, without = frames[frame]
        text = opener + question
        yield text[0].upper() + text[1:], (with_lesion if lesion else without or "").format(**words)


def _plan(num_images: int, rng: np.random.Generator) -> list[_Slice]:
    """Return the plan of every image; the answers are balanced within each split."""
    validation = math.ceil(0.15 * num_images)
    splits = rng.permutation(["validation"] * validation + ["train"] * (num_images - validation)).tolist()
    cases, modalities = _cases(splits, rng)
    slices: dict[int, _Slice] = {}
    for split in _SPLITS:
        members = [index for index in range(num_images) if splits[index] == split]
        shows = _balanced(("Yes", "Yes", "No"), len(members), rng)
        for presence in ("Yes", "No"):
            group = [index for index, shown in zip(members, shows, strict=True) if shown == presence]
            kinds = ("plane", "fat", "gas", *(_LESION_KINDS if presence == "Yes" else ()))
            columns = {kind: _balanced(CLOSED_QUESTIONS[kind][1], len(group), rng) for kind in kinds}
            fifths = _balanced(_FIFTH_KINDS, len(group), rng)
            for row, index in enumerate(group):
                facts = {"presence": presence, "modality": modalities[index]}
                facts |= {kind: column[row] for kind, column in columns.items()}
                asked = (*_LESION_KINDS, fifths[row]) if presence == "Yes" else _IMAGE_KINDS
                slices[index] = _Slice(index, cases[index], split, facts, asked)
    return [slices[index] for index in range(num_images)]


def _balanced(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` values in random order, as evenly distributed as possible."""
    ordered = rng.permutation(values).tolist()
    return rng.permutation([ordered[index % len(ordered)] for index in range(count)]).tolist()


def _cases(splits: list[str], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return each image's case and modality: a case has one modality and 1 to 6 images (3 on average)."""
    cases: list[str] = []
    modalities: list[str] = []
    lead = dict.fromkeys(_SPLITS, 0)  # CT minus MR images so far
    for number in range(len(splits)):
        count = int(rng.choice(6, p=[0.28, 0.20, 0.15, 0.13, 0.12, 0.12])) + 1
        members = splits[len(cases) : len(cases) + count]
        drift = sum(lead[split] / splits.count(split) for split in members)
        modality = ("MR" if drift > 0 else "CT") if drift else str(rng.choice(["CT", "MR"]))
        cases += [f"MPX{1000 + number}"] * len(members)
        modalities += [modality] * len(members)
        for split in members:
            lead[split] += 1 if modality == "CT" else -1
    return cases, modalities


def main() -> None:
    """Write a phantom from the command line and print the files written."""
    parser = argparse.ArgumentParser(prog="python -m vlm_core.data.phantom", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write into")
    parser.add_argument("--images", type=int, default=2050, help="number of images")
    parser.add_argument("--image-size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form", choices=FORMS, default="png", help="file format of the images")
    parser.add_argument("--slices", type=int, default=1, help="slices of each DICOM series or NIfTI volume")
    args = parser.parse_args()
    write_phantom(args.output, args.images, args.seed, args.image_size, args.form, args.slices)
    for path in sorted((args.output / "data").glob("*.parquet")):
        print(f"{path}: {pq.read_metadata(path).num_rows} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
