"""Turns slices to the orientation that radiologists are used to.

Axial: the front of the patient is up and the right side is on the left. Coronal: the head is up and the right side is
on the left. Sagittal: the head is up and the front is on the left. An oblique slice is turned by quarters to the
nearest of these: it is never interpolated.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_core.data.medical.errors import package

# Axis along which the slices are stacked: the directions in which rows and columns lead.
DISPLAY = {"R": ("I", "P"), "A": ("I", "L"), "S": ("P", "L")}
OPPOSITE = {"L": "R", "P": "A", "I": "S"}


@dataclass(frozen=True)
class Display:
    """What turns a stored slice upright: nibabel's orientation transform of (rows, columns, stack)."""

    transform: Any  # array (3, 2): the new place of each axis, and 1 or -1

    def upright(self, image: np.ndarray) -> np.ndarray:
        """Returns an image (rows, columns[, channels]) upright and unmirrored."""
        orientations = package("nibabel.orientations")
        return orientations.apply_orientation(image[:, :, np.newaxis], self.transform)[:, :, 0]

    def spacing(self, rows: float, columns: float) -> tuple[float, float]:
        """Returns the spacing of rows and columns after turning."""
        return (columns, rows) if self.transform[0][0] == 1 else (rows, columns)


def display_of(directions: np.ndarray) -> Display | None:
    """Returns how to turn slices whose rows, columns and stack lead along the columns of a 3x3 matrix (R, A, S axes).

    Returns None if the directions do not span the three dimensions.
    """
    orientations = package("nibabel.orientations")
    if not np.isfinite(directions).all():
        return None
    affine = np.eye(4)
    affine[:3, :3] = directions
    start = orientations.io_orientation(affine)
    if np.isnan(start).any():
        return None
    stack = orientations.ornt2axcodes(start)[2]
    target = orientations.axcodes2ornt((*DISPLAY[OPPOSITE.get(stack, stack)], stack))
    return Display(orientations.ornt_transform(start, target))


def order_sign(direction: np.ndarray) -> int:
    """Returns 1 if slices along `direction` (R, A, S) are in display order, -1 if that order is the reverse.

    Slices are shown from right to left, from front to back, or from feet to head.
    """
    main = int(np.argmax(np.abs(direction)))
    towards = np.array([-1.0, -1.0, 1.0])[main]
    return 1 if direction[main] * towards >= 0 else -1
