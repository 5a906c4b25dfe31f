"""The one place that opens images: from an encoded image to the upright 8-bit RGB that an image processor expects.

Images come from datasets, from the web and from callers of a served model. Pillow tries only the formats in `FORMATS`:
others start programs (EPS runs Ghostscript) or are seldom tested. Every error of a decoder becomes an
UnreadableImageError.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_core.data.deep_images import ORIENTATION, UnreadableImageError, deep_grey, deep_to_eight_bits
from vlm_core.data.medical.windows import apply_range

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF", "PPM")  # as Pillow names them
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
# How a file of these formats begins; JPEG 2000 is a box or a bare codestream, and AVIF has its name after a length.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8", b"RIFF",
              b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # fmt: skip


@dataclass(frozen=True)
class ImageFacts:
    """What an encoded image is: size in pixels once it stands upright, Pillow's mode and format, what it shows.

    `sha256` is a hash of the decoded image: equal for equal pictures, whatever file format they are stored in.
    """

    width: int
    height: int
    mode: str
    format: str
    several_frames: bool
    sha256: str
    shows_text: bool  # whether text seems to be burnt in


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the first frame as an upright 8-bit RGB image.

    Values of more than 8 bits are scaled linearly between two percentiles, see `deep_images`. Raises
    UnreadableImageError, which is a ValueError.
    """
    return _decoded(encoded)[0]


def inspect_image(encoded: bytes) -> ImageFacts:
    """Returns the facts of an image; raises UnreadableImageError as `decode_image` does."""
    from vlm_core.data.burnt_in_text import shows_text  # lazy: importing scipy takes half a second

    image, mode, kind, several = _decoded(encoded)
    return ImageFacts(image.width, image.height, mode, kind, several, pixel_hash(image), shows_text(image))


def windowed_png(encoded: bytes, low: float, high: float) -> bytes | None:
    """Returns grey of more than 8 bits as a PNG file in which `low` is black and `high` white; None for another image.

    Raises UnreadableImageError as `decode_image` does.
    """
    stream = io.BytesIO()
    with _named_errors(encoded), _open(encoded) as image:
        values = deep_grey(image)
        if values is None:
            return None
        shown = Image.fromarray(apply_range(values, low, high))
        shown.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(shown).save(stream, "png")
    return stream.getvalue()


def pixel_hash(image: Image.Image) -> str:
    """Returns a hash of the size and the pixels of an 8-bit RGB image."""
    return hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).hexdigest()


def looks_like_image(head: bytes) -> bool:
    """Returns whether bytes begin as a file of a supported format does."""
    return head.startswith(SIGNATURES) or head[4:8] == b"ftyp"


def pixel_count(encoded: bytes) -> int:
    """Returns width times height by the header alone; raises UnreadableImageError as `decode_image` does."""
    with _named_errors(encoded), _open(encoded) as image:
        return image.width * image.height


def _decoded(encoded: bytes) -> tuple[Image.Image, str, str, bool]:
    """Returns (the upright RGB image, its stored mode, its format, whether the file has several frames)."""
    with _named_errors(encoded), _open(encoded) as image:
        several = bool(getattr(image, "is_animated", False))
        mode, kind = image.mode, image.format or "unknown"
        return _to_rgb(_load(image, encoded)), mode, kind, several


@contextmanager
def _named_errors(encoded: bytes) -> Iterator[None]:
    """Turns whatever Pillow raises into UnreadableImageError, and hides its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of many pixels, which `_open` refuses
            yield
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise any error for broken files: struct.error, SyntaxError, ...
        raise UnreadableImageError(_reason(error, encoded)) from None


def _open(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise Image.DecompressionBombError
    return image


def _load(image: Any, encoded: bytes) -> Image.Image:
    """Returns the pixels of an opened image, upright, 8 bits a channel."""
    eight = deep_to_eight_bits(image, encoded, lambda: Image.open(io.BytesIO(encoded), formats=FORMATS))
    if eight is None:
        image.load()
    return ImageOps.exif_transpose(image if eight is None else eight)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        raise UnreadableImageError("image in LAB colours: save it as RGB")
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")  # which Pillow wants of a palette with transparency
    rgb = image.convert("RGB")
    return _on_contrast(image) if _only_alpha_varies(image) else rgb


def _only_alpha_varies(image: Image.Image) -> bool:
    """Returns whether a drawing lies in the transparency alone, as black lines on a transparent ground do."""
    extremes: Any = image.getextrema()
    *colours, (low, high) = extremes
    return low < high and all(least == most for least, most in colours)


def _on_contrast(image: Image.Image) -> Image.Image:
    """Returns an image of one colour on white, or on black if it is bright itself."""
    ground = 0 if np.asarray(image.convert("L"))[0, 0] > 127 else 255
    return Image.alpha_composite(Image.new("RGBA", image.size, (ground, ground, ground, 255)), image).convert("RGB")


def _reason(error: Exception, encoded: bytes) -> str:
    """Returns the reason of a decoder's error in few different words, without anything of the image."""
    said = str(error)
    if isinstance(error, UnidentifiedImageError):
        if looks_like_image(encoded):
            return "image is damaged, or of a rare kind (such as TIFF of 64 bits) that is not read: save it as PNG"
        return f"image of no supported format ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"image of more than {Image.MAX_IMAGE_PIXELS} pixels"
    if "truncated" in said.lower() or isinstance(error, EOFError | struct.error):
        return "image file is truncated"
    if isinstance(error, OSError):
        return "image file is damaged"
    return f"image does not decode ({type(error).__name__})"
