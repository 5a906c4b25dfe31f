"""Images in the modes that occur in practice become upright 8-bit RGB."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_core.data.image_folder import ImageFolder
from vlm_core.data.images import ImageFacts, decode_image, inspect_image


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


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("RGB", (2, 1), (200, 10, 10)).convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = decode_image(encode(image, transparency=b"\x80" * 4))
    assert decoded.getpixel((0, 0)) == (200, 10, 10)


def test_of_an_animation_the_first_frame_is_shown() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    encoded = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode_image(encoded).getpixel((0, 0)) == (10, 10, 10)


def test_what_an_image_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert inspect_image(encode(Image.new("L", (6, 2)), "jpeg", exif=exif)) == ImageFacts(2, 6, "L", "JPEG")


def test_why_an_image_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)))
    for broken, reason in ((noise[:500], "truncated"), (b"no image", "no known format"), (b"", "no known format")):
        with pytest.raises(ValueError, match=reason):
            inspect_image(broken)
    for limit in (1000, 3000):  # Pillow refuses twice its limit, and warns of more than once
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"more than {limit} pixels"):
            inspect_image(noise)
        with pytest.raises(ValueError, match="bomb"):
            decode_image(noise)


@pytest.mark.parametrize(
    ("path", "anywhere", "reason"),
    [
        ("https://host/image.png", True, "by URL"),
        ("gone.png", True, "is missing"),
        ("../image.png", False, "leads out"),
        ("/etc/hostname", False, "leads out"),
        (None, True, "no image"),
        ({"bytes": None, "path": None}, True, "no image"),
    ],
)
def test_images_that_are_not_read(tmp_path: Path, path: object, anywhere: bool, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ImageFolder(tmp_path, anywhere=anywhere).encoded(path)


def test_an_image_is_read_however_it_is_given(tmp_path: Path) -> None:
    image = Image.new("L", (3, 3), 77)
    encoded = encode(image)
    (tmp_path / "scan.png").write_bytes(encoded)
    folder = ImageFolder(tmp_path, anywhere=False)
    for cell in ("scan.png", {"bytes": None, "path": "scan.png"}, {"bytes": encoded, "path": "elsewhere"}, encoded):
        assert folder.encoded(cell) == encoded
    assert decode_image(folder.encoded(image)).getpixel((0, 0)) == (77, 77, 77)
