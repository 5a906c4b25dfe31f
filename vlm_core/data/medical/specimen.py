"""A specimen of how a window shows an image: for the data report, in which a radiologist judges it."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vlm_core.data.medical.pictures import Shading, upright
from vlm_core.data.medical.volumes import Volume
from vlm_core.data.medical.windows import apply_range

SIDE = 224  # pixels of the longer side of the unwindowed picture
BINS = 64
LARGEST = 1e12  # no scanner stores such values
TAILS = (0.1, 99.9)  # percentiles of the values that the histogram shows; and all that the window shows


def specimen_of(volume: Volume, index: int, shading: Shading) -> dict[str, Any] | None:
    """Returns a slice without its window (a PNG in base64, from the least value to the greatest) and its histogram.

    `edges` and `counts` are those of the stored values; `ranges` has the black and the white value of each window.
    Returns None for values that cannot be counted.
    """
    one = volume.slices[index]
    values = one.read()
    finite = values[np.isfinite(values)]
    if not finite.size or np.abs(finite).max() > LARGEST:
        return None
    low, high = float(finite.min()), float(finite.max())
    whole = Shading("", lambda found, _: apply_range(found, low, high))
    picture = Image.fromarray(np.ascontiguousarray(upright(one, whole)))
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "png")
    ends = [*np.percentile(finite, TAILS), *(end for window in shading.ranges for end in window)]
    counts, edges = np.histogram(finite, BINS, range=(min(ends), max(ends)))
    return {
        "before": base64.b64encode(stream.getvalue()).decode(),
        "counts": counts.tolist(),
        "edges": [round(float(edge), 4) for edge in edges],
        "ranges": [[float(end) for end in window] for window in shading.ranges],
    }
