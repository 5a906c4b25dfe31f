"""Finds text that is burnt into an image, such as a name or a date in a corner. It does not read the letters.

Letters are small areas that are brighter (or darker) than what is around them, with thin strokes and one tone. Text is
a row of them: similar in height, on one line, close to each other. docs/medical-images.md has the measured recall.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

LETTERS = 5  # in a row: anatomy rarely has so many alike
COARSE, LETTERS_IN_COARSE = 0.08, 12  # a share of bright spots as in speckle and noise, where chance makes long rows
STROKE = 9  # pixels: wider strokes are found at half the size
CONTRAST = 40  # grey levels between a letter and what is around it
BELOW_BRIGHTEST = 2  # times less contrast than the brightest pixel near by: separates letters that blur together
LOWEST, HIGHEST = 4, 30  # pixels of a letter
WIDEST = 1.6  # times the height
SPARSEST, FULLEST = 0.15, 0.95  # share of its box that a letter fills; a narrow one such as `l` may fill all
ALIGNED = 0.12  # of the height: how far the tops or feet of neighbours may differ
GAP = 1.5  # times the height, between neighbours: a space is narrower
TALLER = 1.7  # times: a capital beside a small letter
TONE = 16  # grey levels between neighbours
NEIGHBOURS = 8  # candidates for the next letter
SMALL = 96  # pixels: images of a shorter side are not searched at half their size
LARGE = 1536  # pixels: images of a longer side are reduced


def shows_text(image: Image.Image) -> bool:
    """Returns whether an 8-bit image seems to show a line of text; digits and capital letters count too."""
    grey = image.convert("L").reduce(-(-max(image.size) // LARGE))
    sizes = [grey] if min(grey.size) < SMALL else [grey, grey.reduce(2)]
    return any(_has_row(values) for one in map(np.asarray, sizes) for values in (one, 255 - one))


@dataclass(frozen=True)
class _Letters:
    """Areas that may be letters, as arrays with one entry each; `bottom` and `right` are exclusive."""

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray
    tone: np.ndarray

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top


def _has_row(grey: np.ndarray) -> bool:
    """Returns whether bright letters form a row that is longer than chance makes it."""
    bright = _bright_spots(grey)
    least = LETTERS if bright.mean() < COARSE else LETTERS_IN_COARSE
    letters = _letters(grey, bright)
    count = len(letters.top)
    if count < least:
        return False
    here, following = _neighbours(letters)
    chains = coo_array((np.ones(len(here)), (here, following)), shape=(count, count))
    return bool(np.bincount(connected_components(chains, directed=False)[1]).max() >= least)


def _bright_spots(grey: np.ndarray) -> np.ndarray:
    """Returns a mask of what is thin and brighter than its surroundings."""
    contrast = grey - _extreme(_extreme(grey, STROKE, np.minimum), STROKE, np.maximum)
    brightest = _extreme(contrast, 2 * STROKE + 1, np.maximum)
    return contrast > np.maximum(CONTRAST, brightest // BELOW_BRIGHTEST)


def _letters(grey: np.ndarray, bright: np.ndarray) -> _Letters:
    """Returns the connected bright spots that are shaped like a letter."""
    labels, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    pixels = np.bincount(labels[bright], minlength=1)[1:]
    large = np.flatnonzero(pixels >= LOWEST)  # most spots are specks
    found = ndimage.find_objects(labels)
    boxes = [found[index] for index in large]
    top, bottom, left, right = np.array([(y.start, y.stop, x.start, x.stop) for y, x in boxes]).reshape(-1, 4).T
    height, width = bottom - top, right - left
    filled = pixels[large] / (height * width)
    shaped = (height >= LOWEST) & (height <= HIGHEST) & (width <= WIDEST * height)
    shaped &= (filled >= SPARSEST) & ((filled <= FULLEST) | (2 * width <= height))
    kept = np.flatnonzero(shaped)
    tone = np.array([grey[boxes[index]].max() for index in kept], dtype=int)
    return _Letters(top[kept], bottom[kept], left[kept], right[kept], tone)


def _neighbours(letters: _Letters) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs (a letter, the nearest one that continues its row to the right) as indices."""
    middle, count = letters.top + letters.bottom, min(NEIGHBOURS, len(letters.top))  # twice the height of the middle
    tree = KDTree(np.stack([letters.left, middle], axis=1))
    ends = np.stack([letters.right, middle], axis=1)
    distance, index = tree.query(ends, k=count, distance_upper_bound=GAP * HIGHEST)
    found = np.isfinite(distance)
    here, following = np.nonzero(found)[0], index[found]
    gap = letters.left[following] - letters.right[here]
    heights = np.sort(np.stack([letters.height[here], letters.height[following]]), axis=0)
    tolerance = np.maximum(1, ALIGNED * heights[1])

    def differ(values: np.ndarray) -> np.ndarray:
        return abs(values[here] - values[following])

    continues = (gap >= 0) & (gap <= GAP * heights[1]) & (heights[1] <= TALLER * heights[0])
    continues &= (differ(letters.bottom) <= tolerance) | (differ(letters.top) <= tolerance)
    continues &= differ(letters.tone) <= TONE
    here, following, gap = here[continues], following[continues], gap[continues]
    order = np.lexsort((gap, here))
    _, nearest = np.unique(here[order], return_index=True)
    return here[order][nearest], following[order][nearest]


def _extreme(values: np.ndarray, width: int, pick: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns the minimum or maximum (`pick`) of the square of `width` pixels around each pixel."""
    values = np.pad(values, width // 2, mode="edge")
    for _ in range(2):
        span = 1
        while span < width:
            step = min(span, width - span)
            values = pick(values[:-step], values[step:])
            span += step
        values = values.T
    return values
