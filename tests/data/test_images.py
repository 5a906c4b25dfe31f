"""Images in the modes that occur in practice become upright 8-bit RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from vlm_core.data.images import decode_image


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(mode: str) -> None:
    decoded = decode_image(encode(Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 3))
    assert decoded.getpixel((2, 1)) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    assert decode_image(encode(Image.new("CMYK", (4, 4)), "jpeg")).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    # Pillow's own conversion would clip all of these to 255.
    values = np.array([[1000, 3000], [5000, 9000]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))[:, :, 0]
    assert decoded.tolist() == [[0, 64], [128, 255]]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    assert decode_image(encode(Image.new("RGB", (6, 2)), "jpeg", exif=exif)).size == (2, 6)


def test_truncated_and_foreign_bytes_raise() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    for broken in (encode(Image.fromarray(noise))[:500], b"no image"):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            decode_image(broken)
