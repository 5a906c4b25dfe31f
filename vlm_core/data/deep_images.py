"""Images of more than 8 bits a channel without a header: all bits are read, and scaled to 8 between percentiles.

A scale from the least to the greatest value would let one pixel of metal hide everything else. `dataset.images.window`
may give a fixed window instead.

Pillow reads deep grey in full, but of deep colour it keeps the high byte only. A picture of 12 bits in a 16-bit colour
file would come out nearly black.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vlm_core.data.medical.windows import apply_range, robust_range

PHOTOMETRIC, PLANES, BITS, SAMPLE_FORMAT = 262, 284, 258, 339  # tags of TIFF
ORIENTATION = ExifTags.Base.Orientation
SWAPPED = {"B": "L", "L": "B", "N": "B"}  # the other byte order, on machines that store the low byte first
# What libtiff decompresses is in this machine's byte order. Pillow 13 forgets that for some big-endian files.
NATIVE = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"}
SIZE_MARKER, DEPTH_OFFSET = b"\xff\x51", 40  # of a JPEG 2000 codestream: bytes from the marker to the first depth


class UnreadableImageError(ValueError):
    """An image cannot be shown to a model; the message is the reason that rejects are counted by."""


def deep_to_eight_bits(image: Any, encoded: bytes, reopen: Callable[[], Any]) -> Image.Image | None:
    """Returns an opened image of more than 8 bits a channel as 8-bit grey or RGB; None for any other image.

    `reopen` opens the same file again. Raises UnreadableImageError if the values cannot be scaled, or not all bits can
    be read.
    """
    if _is_deep_grey(image.mode):
        values = deep_grey(image)
    elif image.mode in ("RGB", "RGBA"):
        values, image = _colour(image, encoded, reopen)
    else:
        return None
    if values is None:
        return None
    eight = Image.fromarray(scale_to_eight_bits(values))
    eight.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return eight


def scale_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Returns values scaled linearly to 0..255 between the percentiles of `robust_range`, as uint8.

    NaN and minus infinity become 0, plus infinity 255. Raises UnreadableImageError if no value is finite, and for one
    value everywhere, which gives no range to scale from: white would become black.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableImageError("image without a finite value")
    low, high = robust_range(values)
    if low == high != 0:
        raise UnreadableImageError("image of more than 8 bits with the same value everywhere")
    return apply_range(values, low, high)


def deep_grey(image: Any) -> np.ndarray | None:
    """Returns the values of an opened image of grey with more than 8 bits; None for any other image."""
    return _grey(image) if _is_deep_grey(image.mode) else None


def _is_deep_grey(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def _grey(image: Any) -> np.ndarray:
    """Returns the values of deep grey; a TIFF may be unsigned, which Pillow ignores, or store white as its minimum."""
    tags = getattr(image, "tag_v2", {})
    bits, kind, white_is_low = tags.get(BITS), tags.get(SAMPLE_FORMAT, (1,)), tags.get(PHOTOMETRIC) == 0
    if image.tile and image.tile[0].codec_name == "libtiff" and (raw := _raw_mode(image.tile[0])) in NATIVE:
        image = _read_as(image, NATIVE[raw])
    values = np.asarray(image)
    if values.dtype == np.int32 and bits == (32,) and kind == (1,):
        values = values.view(np.uint32)
    return -values.astype(np.float64) if white_is_low else values


def _colour(image: Any, encoded: bytes, reopen: Callable[[], Any]) -> tuple[np.ndarray | None, Any]:
    """Returns (the 16-bit values of deep colour, or None; an image of the same file, loaded)."""
    if image.format == "JPEG2000" and _jpeg2000_bits(encoded) > 8:
        raise UnreadableImageError("colour of more than 8 bits in JPEG 2000: save it as PNG or TIFF")
    raw = {_raw_mode(tile) for tile in image.tile}
    planes = getattr(image, "tag_v2", {}).get(PLANES) == 2 and 16 in image.tag_v2.get(BITS, ())
    if planes or (len(raw) > 1 and any(";16" in mode for mode in raw)):
        raise UnreadableImageError("colour of more than 8 bits in separate planes: save it with interleaved channels")
    mode = next(iter(raw), "")
    if ";16" not in mode:
        return None, image
    if mode == "LA;16B":  # read as bytes: grey high, grey low, alpha high, alpha low
        loaded = _read_as(reopen(), "RGBA")
        pixels = np.asarray(loaded).astype(np.uint16)
        return pixels[..., 0] << 8 | pixels[..., 1], loaded
    mode = mode.replace("RGBa", "RGBA")  # alpha is dropped, so nothing needs to be divided by it
    loaded = _read_as(reopen(), mode)
    low = np.asarray(_read_as(reopen(), mode[:-1] + SWAPPED[mode[-1]]))[..., :3]
    return np.asarray(loaded)[..., :3].astype(np.uint16) << 8 | low, loaded


def _raw_mode(tile: Any) -> str:
    """Returns how a tile's bytes are laid out, as Pillow names it."""
    found = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    return found if isinstance(found, str) else ""


def _read_as(image: Any, raw_mode: str) -> Any:
    """Returns an opened image whose bytes will be read in another layout of as many bits a pixel."""
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    return image


def _jpeg2000_bits(encoded: bytes) -> int:
    start = encoded.find(SIZE_MARKER)
    return (encoded[start + DEPTH_OFFSET] & 0x7F) + 1 if 0 <= start < len(encoded) - DEPTH_OFFSET else 8
