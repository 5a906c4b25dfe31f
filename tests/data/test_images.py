"""Images in the forms that occur in practice become upright 8-bit RGB, or are refused by name."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import encode, png, tiff
from vlm_core.data.images import FORMATS, UnreadableImageError, decode_image, inspect_image

COLOURS = np.random.default_rng(0).integers(0, 4096, (5, 7, 3)).astype(np.uint16)  # 12 bits in 16
COLOURS[0, 0, :2] = 0, 4095
GREY = COLOURS[..., 1].copy()
GREY[0, 1] = 0
OPAQUE = np.full((5, 7, 1), 65535, np.uint16)


def scaled(values: np.ndarray) -> np.ndarray:
    """Returns values scaled to 0..255 between two percentiles of those that are not zero, (height, width, 3)."""
    values = values.astype(np.float64)
    low, high = np.percentile(values[values != 0], (0.5, 99.5))
    eight = np.round((values - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    return eight if eight.ndim == 3 else np.repeat(eight[..., None], 3, 2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(mode: str) -> None:
    decoded = decode_image(encode(Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 3))
    assert decoded.getpixel((2, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_supported_format_is_read(kind: str) -> None:
    shown = inspect_image(encode(Image.new("RGB", (16, 16), (200, 100, 50)), kind))
    assert (shown.width, shown.height, shown.format) == (16, 16, kind)


def test_cmyk_becomes_rgb() -> None:
    assert decode_image(encode(Image.new("CMYK", (4, 4)), "jpeg")).getpixel((0, 0)) == (255, 255, 255)


def test_deep_grey_keeps_its_range() -> None:
    # Pillow's own conversion would clip all of these to 255.
    values = np.array([[1000, 3000], [5000, 9000]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))[:, :, 0]
    assert decoded.tolist() == [[0, 64], [128, 255]]


@pytest.mark.parametrize(
    ("encoded", "values"),
    [
        (png(COLOURS), COLOURS),
        (png(np.dstack([COLOURS, OPAQUE])), COLOURS),
        (png(np.dstack([GREY, OPAQUE])), GREY),
        (png(GREY), GREY),
        *((tiff(COLOURS, order, packed), COLOURS) for order in "<>" for packed in (False, True)),
        (tiff(np.dstack([COLOURS, OPAQUE]), "<", True), COLOURS),
        *((tiff(GREY, order, packed), GREY) for order in "<>" for packed in (False, True)),
        (tiff(GREY, white_is_zero=True), -GREY.astype(np.int32)),
        *(
            (tiff(GREY.astype(np.int16) - 2000, order, packed), GREY.astype(int) - 2000)
            for order in "<>"
            for packed in (False, True)
        ),
        *((tiff(GREY.astype(np.float32), order, packed), GREY) for order in "<>" for packed in (False, True)),
        (tiff(GREY.astype(np.uint32) * 1_000_000), GREY),
        (encode(Image.fromarray(GREY), "JPEG2000"), GREY),
        (tiff(COLOURS, turned=True), np.rot90(COLOURS, -1)),
        (tiff(GREY, packed=True, turned=True), np.rot90(GREY, -1)),
    ],
)
def test_deep_images_keep_all_their_bits(encoded: bytes, values: np.ndarray) -> None:
    assert np.array_equal(np.asarray(decode_image(encoded)), scaled(values))


@pytest.mark.parametrize(("missing", "shown"), [(np.nan, 0), (np.inf, 255), (-np.inf, 0)])
def test_values_that_are_not_finite_leave_the_others_as_they_are(missing: float, shown: int) -> None:
    values = GREY.astype(np.float32)
    values[2:] = missing
    decoded = np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))
    assert np.array_equal(decoded[:2], scaled(GREY[:2]))
    assert (decoded[2:] == shown).all()


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "without a finite value"),
        (png(OPAQUE[..., 0]), "same value everywhere"),
        (tiff(COLOURS, planes=True), "separate planes"),
        (tiff(GREY.astype(np.float64)), "TIFF of 64 bits"),
        (encode(Image.new("LAB", (2, 2)), "TIFF"), "LAB"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "no supported format"),
        (b"%PDF-1.7 ", "no supported format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no supported format"),
        (encode(Image.new("RGB", (4, 4)), "TGA"), "no supported format"),
        (b"", "no supported format"),
        (encode(Image.effect_noise((64, 64), 90))[:500], "truncated"),
        (encode(Image.effect_noise((64, 64), 90), "jpeg")[:900], "truncated"),
        (png(GREY)[:60], "truncated|damaged"),
    ],
)
def test_images_that_are_refused_by_name(encoded: bytes, reason: str) -> None:
    for read in (decode_image, inspect_image):
        with pytest.raises(UnreadableImageError, match=reason):
            read(encoded)


def test_ghostscript_is_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, called = tmp_path / "gs", tmp_path / "called"
    program.write_text(f"#!/bin/sh\ntouch {called}\necho 10.0.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    dos = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + (80).to_bytes(4, "little") + bytes(18)
    for start in (b"", dos):
        with pytest.raises(UnreadableImageError):
            decode_image(start + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n")
    assert not called.exists()


def test_any_damage_is_a_refusal(capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(0)
    sound = [encode(Image.effect_noise((12, 12), 50).convert("RGB"), kind) for kind in FORMATS]
    sound += [png(COLOURS), tiff(COLOURS), tiff(GREY, packed=True)]
    refused = 0
    for _ in range(400):
        damaged = bytearray(generator.choice(sound))
        for _ in range(3):
            damaged[generator.randrange(min(len(damaged), 200))] = generator.randrange(256)
        try:
            decode_image(bytes(damaged[: generator.choice([len(damaged), len(damaged) // 2])]))
        except UnreadableImageError:
            refused += 1
    assert 100 < refused < 400
    capfd.readouterr()  # libtiff writes to standard error


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    assert decode_image(encode(Image.new("RGB", (6, 2)), "jpeg", exif=exif)).size == (2, 6)
    facts = inspect_image(encode(Image.new("L", (6, 2)), "jpeg", exif=exif))
    assert (facts.width, facts.height, facts.mode, facts.format) == (2, 6, "L", "JPEG")
    assert decode_image(encode(Image.fromarray(GREY), exif=exif)).size == (5, 7)


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("RGB", (2, 1), (200, 10, 10)).convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = decode_image(encode(image, transparency=b"\x80" * 4))
    assert decoded.getpixel((0, 0)) == (200, 10, 10)


@pytest.mark.parametrize(("line", "ground"), [(0, 255), (255, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_drawing_on_a_transparent_ground_is_seen(line: int, ground: int, mode: str) -> None:
    drawing = np.zeros((4, 4, 4), np.uint8)
    drawing[..., :3], drawing[1, :, 3] = line, 255  # the same colour everywhere: only transparency shows the line
    decoded = np.asarray(decode_image(encode(Image.fromarray(drawing).convert(mode))))
    assert decoded[:, 0, 0].tolist() == [ground, line, ground, ground]


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_the_first_of_several_frames_is_shown_and_the_others_are_known(kind: str) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode_image(encoded).getpixel((0, 0)) == (10, 10, 10)
    assert inspect_image(encoded).several_frames
    assert not inspect_image(encode(frames[0], kind)).several_frames


def test_equal_pixels_have_one_hash_in_every_format() -> None:
    grey = Image.effect_noise((9, 5), 80)
    forms = [encode(grey.convert(mode), kind) for mode in ("L", "RGB") for kind in ("png", "bmp", "tiff", "ppm")]
    assert len({inspect_image(encoded).sha256 for encoded in forms}) == 1
    others = [encode(grey.rotate(180)), encode(grey.resize((5, 9))), encode(Image.new("L", (9, 5)))]
    assert len({inspect_image(encoded).sha256 for encoded in (forms[0], *others)}) == 4


def test_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = encode(Image.effect_noise((64, 64), 50))
    for limit in (1000, 3000):  # Pillow refuses twice its limit, and warns of more than once
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for read in (decode_image, inspect_image):
            with pytest.raises(UnreadableImageError, match=f"more than {limit} pixels"):
                read(noise)


def test_a_reason_never_holds_bytes_of_the_image() -> None:
    stream = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(stream, "png")
    marked = stream.getvalue().replace(b"IDAT", b"SECRETPATIENT")
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(marked)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__
