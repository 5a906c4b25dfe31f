"""From an image as a dataset stores it to what an image processor expects."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")  # grey with more than 8 bits, as Pillow names them


@dataclass(frozen=True)
class ImageFacts:
    """What an encoded image is: width and height in pixels once it stands upright, Pillow's mode and format."""

    width: int
    height: int
    mode: str
    format: str


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the first frame as an upright 8-bit RGB image.

    Grey values of more than 8 bits are scaled linearly from their own range, since Pillow's own conversion clips
    them at 255. Raises ValueError or OSError (Pillow's UnidentifiedImageError is one) for bytes that do not decode,
    and for more pixels than Pillow's limit.
    """
    with _open(encoded) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def inspect_image(encoded: bytes) -> ImageFacts:
    """Returns the facts of an image that `decode_image` decodes; raises ValueError that says why it does not."""
    try:
        with _open(encoded) as image:
            mode, kind = image.mode, image.format or "unknown"
            upright = _to_rgb(ImageOps.exif_transpose(image))
            return ImageFacts(upright.width, upright.height, mode, kind)
    except UnidentifiedImageError:
        raise ValueError("image of no known format") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for broken files
        if "truncated" in str(error):
            raise ValueError("image file is truncated") from None
        if "decompression bomb" in str(error):
            raise ValueError(f"image of more than {Image.MAX_IMAGE_PIXELS} pixels") from None
        raise ValueError(f"image does not decode ({type(error).__name__})") from None


def _open(encoded: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(encoded))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # derive from Exception alone
            raise ValueError(str(error)) from None
    image.load()
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_MODES:
        image = _to_eight_bits(image)
    elif "transparency" in image.info:  # of a palette, which Pillow would warn about
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(scaled.round().astype(np.uint8))
