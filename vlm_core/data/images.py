"""From an encoded image file to what an image processor expects."""

import io

import numpy as np
from PIL import Image, ImageOps

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")  # grey with more than 8 bits, as Pillow names them


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the first frame as an upright 8-bit RGB image.

    Grey values of more than 8 bits are scaled linearly from their own range, since Pillow's own conversion clips
    them at 255. Raises ValueError or OSError (Pillow's UnidentifiedImageError is one) for bytes that do not decode.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:  # derives from Exception alone
        raise ValueError(str(error)) from None
    with image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return (_to_eight_bits(upright) if upright.mode in DEEP_MODES else upright).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(scaled.round().astype(np.uint8))
