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

PHANTOM_VERSION: Final = 1
"""Part of every phantom's cache key. Increase it if equal arguments must give other images or questions."""

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
_BODY: Final = {"Axial": (0.88, 0.68), "Coronal": (0.68, 0.93), "Sagittal": (0.56, 0.93)}  # half sizes
_QUADRANT: Final = {"Axial": (0.42, 0.30), "Coronal": (0.34, 0.44), "Sagittal": (0.25, 0.44)}  # its centre
_TISSUES: Final = ("air", "fat", "muscle", "organ", "bone", "marrow", "gas", "lesion")
_GREY: Final = {"CT": (3, 48, 108, 122, 235, 180, 6, 232), "MR": (8, 170, 76, 92, 30, 130, 12, 250)}
_Pair = tuple[float, float]  # across, down
_SPLITS: Final = ("train", "validation")
_TEXT_COLUMNS: Final = ("mode", "case_id", "question", "answer")
_FEATURES: Final = {"image_id": {"_type": "Image"}} | {
    name: {"dtype": "string", "_type": "Value"} for name in _TEXT_COLUMNS
}
_SCHEMA: Final = pa.schema(
    {"image_id": pa.struct({"bytes": pa.binary(), "path": pa.string()})} | dict.fromkeys(_TEXT_COLUMNS, pa.string()),
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True, slots=True)
class _Slice:
    """The plan of one image: split and case, what it shows (kind -> answer), and the kinds of its questions."""

    index: int
    case_id: str
    split: str
    facts: dict[str, str]
    asked: tuple[str, ...]


def write_phantom(directory: Path, num_images: int, seed: int, image_size: int) -> None:
    """Write `data/{train,validation}-00000-of-00001.parquet` under `directory`: 10 rows per image.

    15 % of the images are the validation split; they are drawn without regard to their case. Images are square
    8-bit grey PNGs of `image_size` pixels. Equal arguments write byte-identical files.

    Raises:
        ValueError: `num_images` < 2 (a split would be empty) or `image_size` < 32 (a lesion would vanish).
    """
    if num_images < 2 or image_size < 32:
        raise ValueError(f"need num_images >= 2 and image_size >= 32, got {num_images} and {image_size}")
    (directory / "data").mkdir(parents=True, exist_ok=True)
    slices = _plan(num_images, np.random.default_rng([seed, num_images]))
    for split in _SPLITS:
        chosen = [one for one in slices if one.split == split]
        _write(directory / "data" / f"{split}-00000-of-00001.parquet", chosen, seed, image_size)


def _write(path: Path, slices: list[_Slice], seed: int, image_size: int) -> None:
    """Write the images of one split; a row group stores each of its 16 images once for 10 questions."""
    with pq.ParquetWriter(path, _SCHEMA, dictionary_pagesize_limit=2**28) as writer:
        for start in range(0, len(slices), 16):
            rows = [row for one in slices[start : start + 16] for row in _rows(one, seed, image_size)]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def _rows(one: _Slice, seed: int, image_size: int) -> Iterator[dict[str, object]]:
    """Yield the 10 rows of one image, in the columns of MedPix-VQA."""
    rng = np.random.default_rng([seed, one.index])
    buffer = io.BytesIO()
    Image.fromarray(_draw(one.facts, image_size, rng)).save(buffer, format="PNG", compress_level=3)
    image = {"bytes": buffer.getvalue(), "path": f"{one.case_id}_{one.index}.png"}
    closed = ((CLOSED_QUESTIONS[kind][0], one.facts[kind]) for kind in one.asked)
    for mode, pairs in (("pre_training", closed), ("alignment", _open_pairs(one.facts, rng))):
        for pair in pairs:
            yield {"image_id": image, **dict(zip(_TEXT_COLUMNS, (mode, one.case_id, *pair), strict=True))}


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


class _Canvas:
    """A grey slice being drawn; coordinates run from -1 (left, top) to 1 around the body's centre."""

    def __init__(self, facts: dict[str, str], size: int, rng: np.random.Generator) -> None:
        self.axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        self.centre = rng.uniform(-0.03, 0.03, size=2)
        levels = zip(_TISSUES, _GREY[facts["modality"]], strict=True)
        self.grey = {tissue: level + rng.uniform(-6, 6) for tissue, level in levels}
        self.pixels = np.full((size, size), self.grey["air"], dtype=np.float32)

    def ellipse(self, at: _Pair, radii: _Pair, grey: float, power: float = 2.0) -> None:
        """Fill a (super)ellipse with a grey level; its edge is smoothed over one pixel."""
        boxes, terms = [], []
        for middle, radius in zip(self.centre + at, radii, strict=True):
            distance = np.abs((self.axis - np.float32(middle)) / np.float32(radius))
            inside = np.flatnonzero(distance < 1 + 1 / (len(self.axis) * min(radii)))
            boxes.append(slice(inside[0], inside[-1] + 1))
            terms.append(distance[boxes[-1]] ** np.float32(power))
        radius = (terms[0] + terms[1][:, None]) ** np.float32(1 / power)
        cover = np.clip(0.5 - (radius - 1) * np.float32(min(radii) * len(self.axis) / 2), 0, 1)
        box = self.pixels[boxes[1], boxes[0]]
        box += cover * (np.float32(grey) - box)


def _draw(facts: dict[str, str], size: int, rng: np.random.Generator) -> np.ndarray:
    """Return one slice, uint8 [size, size]."""
    canvas = _Canvas(facts, size, rng)
    _draw_body(canvas, facts, rng)
    _draw_bones(canvas, facts["plane"])
    if facts["gas"] == "Gas":
        canvas.ellipse((rng.uniform(-0.03, 0.03), -0.02), (rng.uniform(0.14, 0.16), 0.13), canvas.grey["gas"])
    if facts["presence"] == "Yes":
        _draw_lesions(canvas, facts, rng)
    pixels = canvas.pixels
    if facts["modality"] == "MR":  # the coil brightens the corner that is nearest to it
        tilt = rng.uniform(-0.1, 0.1, size=2).astype(np.float32)
        pixels = pixels * (1 + tilt[0] * canvas.axis + tilt[1] * canvas.axis[:, None])
    grain = np.float32(4 if facts["modality"] == "CT" else 2)
    pixels = pixels + grain * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_body(canvas: _Canvas, facts: dict[str, str], rng: np.random.Generator) -> None:
    """Draw the table (CT only), the body with its layer of fat, and a pair of organs."""
    grey = canvas.grey
    width, height = (radius * rng.uniform(0.95, 1.03) for radius in _BODY[facts["plane"]])
    if facts["modality"] == "CT" and facts["plane"] == "Axial":
        canvas.ellipse((0, 0.86), (0.8, 0.035), 150, power=4)
    layer = rng.uniform(0.03, 0.04) if facts["fat"] == "Thin" else rng.uniform(0.19, 0.21)
    power = 2.3 if facts["plane"] == "Axial" else 2.9
    canvas.ellipse((0, 0), (width, height), grey["fat"], power)
    canvas.ellipse((0, 0), (width - layer, height - layer), grey["muscle"], power)
    for side in (-1, 1):
        at = (side * width * rng.uniform(0.36, 0.44), height * rng.uniform(-0.2, 0.2))
        radii = (width * rng.uniform(0.26, 0.34), height * rng.uniform(0.3, 0.45))
        canvas.ellipse(at, radii, grey["organ"] + rng.uniform(-6, 6))


def _draw_bones(canvas: _Canvas, plane: str) -> None:
    """Draw the spine: a cross section (axial), or a column in the middle (coronal) or at the back (sagittal)."""
    if plane == "Axial":
        joints = [(0.0, 0.36, 0.13), (0.0, 0.52, 0.06)]
    elif plane == "Coronal":
        joints = [(0.0, 0.2 * step, 0.08) for step in range(-4, 5)]
    else:
        joints = [(0.43 - 0.003 * step * step, 0.2 * step, 0.075) for step in range(-4, 5)]
    for x, y, radius in joints:
        canvas.ellipse((x, y), (radius, radius), canvas.grey["bone"], power=3)
        canvas.ellipse((x, y), (radius * 0.7, radius * 0.7), canvas.grey["marrow"], power=3)


def _draw_lesions(canvas: _Canvas, facts: dict[str, str], rng: np.random.Generator) -> None:
    """Draw one lesion, or two of similar size side by side, well inside one quadrant of the image."""
    column, row = _QUADRANT[facts["plane"]]
    x = rng.uniform(-0.03, 0.03) + (column if facts["side"] == "Right" else -column)
    y = rng.uniform(-0.03, 0.03) + (row if facts["height"] == "Lower" else -row)
    radius = rng.uniform(0.085, 0.095) if facts["size"] == "Small" else rng.uniform(0.18, 0.19)
    apart = 1.1 * radius + 0.03
    angle = (0 if facts["plane"] == "Axial" else math.pi / 2) + rng.uniform(-0.3, 0.3)
    for sign in (0,) if facts["number"] == "One" else (-1, 1):
        at = (x + sign * apart * math.cos(angle), y + sign * apart * math.sin(angle))
        radii = (radius * rng.uniform(0.94, 1.06), radius * rng.uniform(0.94, 1.06))
        canvas.ellipse(at, radii, canvas.grey["lesion"])


def main() -> None:
    """Write a phantom from the command line and print the files written."""
    parser = argparse.ArgumentParser(prog="python -m vlm_core.data.phantom", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write into")
    parser.add_argument("--images", type=int, default=2050, help="number of images")
    parser.add_argument("--image-size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_phantom(args.output, args.images, args.seed, args.image_size)
    for path in sorted((args.output / "data").glob("*.parquet")):
        print(f"{path}: {pq.read_metadata(path).num_rows} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
