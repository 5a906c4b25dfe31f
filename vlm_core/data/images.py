"""From an image as a dataset stores it to what an image processor expects."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class ImageFolder:
    """Finds images that a dataset refers to by path, relative to its own directory."""

    root: Path | None
    anywhere: bool  # whether a path may lead out of it: a dataset of somebody else's may not read this machine's files

    def encoded(self, cell: Any) -> bytes:
        """Returns the encoded image of a cell: bytes, a path, both as `datasets` stores them, or a Pillow image.

        Raises ValueError that says why there is none.
        """
        if isinstance(cell, dict):  # {"bytes", "path"}; bytes that are there are the image, whatever the path says
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, Image.Image):
            stream = io.BytesIO()
            cell.save(stream, "png")
            return stream.getvalue()
        if isinstance(cell, str) and cell:
            try:
                return self.locate(cell).read_bytes()
            except OSError as error:  # no permission; or no path at all, but an image as text
                raise ValueError(f"image file cannot be read ({type(error).__name__})") from None
        if not cell:
            raise ValueError("no image")
        return cell

    def locate(self, path: str) -> Path:
        """Returns the file that `path` means; raises ValueError for one that is not there or lies outside."""
        if "://" in path:
            raise ValueError("image by URL: download it, and give its path")
        root = self.root or Path()
        found = Path(path) if Path(path).is_absolute() else root / path
        if not self.anywhere and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError("image path that leads out of the dataset")
        if not found.is_file():
            raise ValueError("image file is missing")
        return found


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
