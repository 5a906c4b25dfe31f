"""A volume: its slices in display order, whose pixels are read on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.orientation import Display

MOST_PIXELS = 2**25  # of a slice: 270 MB while it is windowed
MOST_SLICES_READ = 10_000
MOST_BYTES = 2**30  # of a decompressed NIfTI or deflated DICOM file


@dataclass(frozen=True)
class Slice:
    """A slice on disk or in memory.

    `read` returns grey values as float64 (rows, columns), NaN where the scanner has none, or uint8 (rows, columns, 3).
    """

    read: Callable[[], np.ndarray]
    names: tuple[str, ...] = ()  # names that the slice column may use
    display: Display | None = None  # None: shown as it is stored
    spacing: tuple[float, float] = (1.0, 1.0)  # of rows and columns, in mm, or only their ratio
    header: Any = None  # the DICOM header of the slice; None for other formats
    overlay: Callable[[], np.ndarray | None] = lambda: None  # a mask (rows, columns) of the overlay planes, or None


@dataclass(frozen=True)
class Volume:
    """The slices of a file or a series, and their common properties. `facts` names no person."""

    slices: tuple[Slice, ...]
    modality: str | None  # as DICOM names it: CT, MR, ...
    bits: int  # of a stored value
    colour: bool
    full_range: tuple[float, float] | None  # of the values that the stored bits can represent; None for floats
    facts: Mapping[str, Any] = field(default_factory=dict)


def require_size(rows: int, columns: int, slices: int = 1) -> None:
    """Raises MedicalImageError if a header states no pixels, or more than a medical image can have."""
    if rows < 1 or columns < 1 or slices < 1:
        raise MedicalImageError("medical image without pixels", f"{slices} slices of {rows} x {columns}")
    if rows * columns > MOST_PIXELS:
        raise MedicalImageError(f"medical image of more than {MOST_PIXELS} pixels", f"{rows} x {columns}")
    if slices > MOST_SLICES_READ:
        raise MedicalImageError(f"volume of more than {MOST_SLICES_READ} slices", f"{slices} slices")
