"""Turns volumes into the pictures that a model sees: windowed, upright, with square pixels, as 8-bit PNG files."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.settings import window_of
from vlm_core.data.medical.volumes import Slice, Volume, require_size
from vlm_core.data.medical.windows import (
    CT_RGB,
    PERCENTILES,
    WHITE,
    apply_header,
    apply_range,
    apply_window,
    header_window,
    robust_range,
)

SQUARE = 0.01  # spacings whose ratio differs from 1 by less count as equal
MOST_SAMPLES = 2**22  # values of a volume from which percentiles are computed
PERCENTILE_WORDS = f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g} of the volume"
AIR = -900  # HU; no other kind of image has values that low
DEEP = 8  # bits of a picture
COMPRESSION = 3  # zlib's level: 2.5 times as fast as the usual 6, for files that are a tenth larger

Shade = Callable[[np.ndarray, Any], np.ndarray]  # (values, header) -> uint8 (rows, columns[, 3])


@dataclass(frozen=True)
class Shading:
    """How values become grey levels or colours, and how the data report describes that."""

    words: str
    apply: Shade
    ranges: tuple[tuple[float, float], ...] = ()  # the black and the white value of each window, if it has any


def pictures(volume: Volume, chosen: Sequence[int], shading: Shading) -> list[bytes]:
    """Returns the chosen slices as PNG files."""
    return [_png(upright(one, shading)) for one in (volume.slices[index] for index in chosen)]


def decoded_once(volume: Volume) -> Volume:
    """Returns a volume that decodes its only slice once, although percentiles and the picture both read it."""
    if len(volume.slices) != 1:
        return volume
    (only,) = volume.slices
    return replace(volume, slices=(replace(only, read=cache(only.read)),))


def shading_of(volume: Volume, setting: str, modality: str | None) -> Shading:
    """Returns how a volume is windowed under `dataset.images.window`; see docs/medical-images.md."""
    modality = (modality or "").strip().upper() or None
    window = window_of(setting)
    if volume.colour:
        return Shading("colours as stored", lambda values, _: values)
    if setting == "none":
        return _full_range(volume)
    if setting == "header":
        return _by_header(volume)
    if setting == "percentiles":
        return _by_percentiles(volume)
    if window is not None and "/" in setting:
        return Shading(f"window {window}", lambda values, _: apply_window(values, window), (window.ends,))
    if modality == "CT" or (modality is None and setting != "auto"):
        if window is not None:
            return Shading(f"window {setting} {window}", lambda values, _: apply_window(values, window), (window.ends,))
        words = "CT as red, green, blue: " + ", ".join(map(str, CT_RGB))
        return Shading(words, _ct_rgb, tuple(window.ends for window in CT_RGB))
    return _by_percentiles(volume) if modality in ("MR", "PT", "NM", None) else _by_header(volume)


def _ct_rgb(values: np.ndarray, _: Any) -> np.ndarray:
    return np.stack([apply_window(values, window) for window in CT_RGB], axis=-1)


def _by_header(volume: Volume) -> Shading:
    header = volume.slices[0].header
    if header is None or not (header.get("VOILUTSequence") or header_window(header)):
        return _by_percentiles(volume)
    words = "lookup table of the header" if header.get("VOILUTSequence") else "window of the header"

    def shade(values: np.ndarray, own: Any) -> np.ndarray:
        shown = apply_header(values, own)
        shown = apply_header(values, header) if shown is None else shown
        assert shown is not None  # the first slice has a window
        return shown

    window = None if header.get("VOILUTSequence") else header_window(header)
    return Shading(words, shade, (window.ends,) if window else ())


def _by_percentiles(volume: Volume) -> Shading:
    if volume.bits <= DEEP and volume.full_range is not None:
        return _full_range(volume)
    sample = _sample(volume)
    low, high = robust_range(sample)
    if low == high != 0:
        raise MedicalImageError("medical image with the same value everywhere")
    words = PERCENTILE_WORDS
    if volume.modality is None and np.nanmin(sample) <= AIR:
        words += ", of values like HU"
    return Shading(words, lambda values, _: apply_range(values, low, high), ((low, high),))


def _full_range(volume: Volume) -> Shading:
    if volume.full_range is None:
        raise MedicalImageError("window=none for values that are not whole numbers", "set dataset.images.window")
    low, high = volume.full_range
    words = "stored range" if volume.bits <= DEEP else f"full range of {volume.bits} bits, without a window"
    return Shading(words, lambda values, _: apply_range(values, low, high), ((low, high),))


def _sample(volume: Volume) -> np.ndarray:
    """Returns regularly spaced values from all slices, few enough that a volume of any size fits into memory."""
    share = max(1, MOST_SAMPLES // len(volume.slices))
    taken = []
    for one in volume.slices:
        values = one.read().ravel()
        taken.append(values[:: max(1, -(-values.size // share))])
    return np.concatenate(taken)


def upright(one: Slice, shading: Shading) -> np.ndarray:
    """Returns a slice as a picture, uint8 (rows, columns[, 3]): windowed, upright and with square pixels."""
    values = one.read()
    image = shading.apply(values, one.header)
    if one.header is not None and one.header.get("PhotometricInterpretation") == "MONOCHROME1":
        image = WHITE - image
        image[np.isnan(values)] = 0
    if (overlay := one.overlay()) is not None:
        image = image.copy()  # a colour image is the slice's own array
        image[overlay] = WHITE
    rows, columns = one.spacing
    if one.display is not None:
        image = one.display.upright(image)
        rows, columns = one.display.spacing(rows, columns)
    return _square(image, rows, columns)


def _square(image: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Returns an image whose pixels are as high as wide: the side with fewer pixels a millimetre is stretched."""
    if abs(rows / columns - 1) < SQUARE:
        return image
    height, width = image.shape[:2]
    size = (width, round(height * rows / columns)) if rows > columns else (round(width * columns / rows), height)
    require_size(size[1], size[0])
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR))


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "png", compress_level=COMPRESSION)
    return stream.getvalue()
