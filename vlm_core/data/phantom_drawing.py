"""Draws the slices of the phantom."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

_BODY: Final = {"Axial": (0.88, 0.68), "Coronal": (0.68, 0.93), "Sagittal": (0.56, 0.93)}  # half sizes
_QUADRANT: Final = {"Axial": (0.42, 0.30), "Coronal": (0.34, 0.44), "Sagittal": (0.25, 0.44)}  # its centre
TISSUES: Final = ("air", "fat", "muscle", "organ", "bone", "marrow", "gas", "lesion")
GREY: Final = {"CT": (3, 48, 108, 122, 235, 180, 6, 232), "MR": (8, 170, 76, 92, 30, 130, 12, 250)}
"""Grey levels of the tissues in a picture."""
STORED: Final = {
    "CT": (-1000, -100, 50, 40, 1000, 250, -1000, 85),
    "MR": (32, 680, 304, 368, 120, 520, 48, 1000),
}
"""Values of the tissues in a medical file: HU for CT. Each slice differs from them by at most `DRIFT`, and has noise.

A lesion is nearly as bright as muscle: it is seen in a window for soft tissue and not in the full range.
"""
DRIFT: Final = 6
NOISE: Final = {"CT": 4, "MR": 2}  # its standard deviation
Values = Mapping[str, Sequence[int]]
_Pair = tuple[float, float]  # across, down


class _Canvas:
    """A grey slice being drawn; coordinates run from -1 (left, top) to 1 around the body's centre."""

    def __init__(self, facts: dict[str, str], size: int, values: Values, rng: np.random.Generator) -> None:
        self.axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        self.centre = rng.uniform(-0.03, 0.03, size=2)
        levels = zip(TISSUES, values[facts["modality"]], strict=True)
        self.grey = {tissue: level + rng.uniform(-DRIFT, DRIFT) for tissue, level in levels}
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


def draw_picture(facts: dict[str, str], size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a slice in grey levels, uint8 [size, size]."""
    return np.clip(_draw(facts, size, GREY, 0.0, rng, rng), 0, 255).astype(np.uint8)


def draw_stored(
    facts: dict[str, str], size: int, depth: float, rng: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """Returns a slice in the values of its modality, int16 [size, size]: HU for CT, positive numbers for MR.

    `depth` from -1 to 1 is the place in the volume: lesions are round, and largest at 0. Slices of one volume have an
    `rng` in the same state, and each its own `noise`.
    """
    drawn = _draw(facts, size, STORED, depth, rng, noise)
    lowest = -1024 if facts["modality"] == "CT" else 0
    return np.clip(drawn.round(), lowest, None).astype(np.int16)


def _draw(
    facts: dict[str, str],
    size: int,
    values: Values,
    depth: float,
    rng: np.random.Generator,
    noise: np.random.Generator,
) -> np.ndarray:
    canvas = _Canvas(facts, size, values, rng)
    _draw_body(canvas, facts, rng)
    _draw_bones(canvas, facts["plane"])
    if facts["gas"] == "Gas":
        canvas.ellipse((rng.uniform(-0.03, 0.03), -0.02), (rng.uniform(0.14, 0.16), 0.13), canvas.grey["gas"])
    if facts["presence"] == "Yes":
        _draw_lesions(canvas, facts, math.sqrt(1 - depth**2), rng)
    pixels = canvas.pixels
    if facts["modality"] == "MR":  # the coil brightens the corner that is nearest to it
        tilt = rng.uniform(-0.1, 0.1, size=2).astype(np.float32)
        pixels = pixels * (1 + tilt[0] * canvas.axis + tilt[1] * canvas.axis[:, None])
    grain = np.float32(NOISE[facts["modality"]])
    return pixels + grain * noise.standard_normal(pixels.shape, dtype=np.float32)


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


def _draw_lesions(canvas: _Canvas, facts: dict[str, str], scale: float, rng: np.random.Generator) -> None:
    """Draw one lesion, or two of similar size side by side, well inside one quadrant of the image."""
    column, row = _QUADRANT[facts["plane"]]
    x = rng.uniform(-0.03, 0.03) + (column if facts["side"] == "Right" else -column)
    y = rng.uniform(-0.03, 0.03) + (row if facts["height"] == "Lower" else -row)
    radius = rng.uniform(0.085, 0.095) if facts["size"] == "Small" else rng.uniform(0.18, 0.19)
    apart = 1.1 * radius + 0.03
    angle = (0 if facts["plane"] == "Axial" else math.pi / 2) + rng.uniform(-0.3, 0.3)
    for sign in (0,) if facts["number"] == "One" else (-1, 1):
        at = (x + sign * apart * math.cos(angle), y + sign * apart * math.sin(angle))
        radii = (radius * scale * rng.uniform(0.94, 1.06), radius * scale * rng.uniform(0.94, 1.06))
        canvas.ellipse(at, radii, canvas.grey["lesion"])
