"""Text burnt into images is found, and anatomy is not taken for text; docs/medical-images.md has the figures."""

import io
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tests.dicom_files import DICOM_FILES
from vlm_core.config import ImagesConfig
from vlm_core.data.burnt_in_text import shows_text
from vlm_core.data.images import decode_image
from vlm_core.data.medical.errors import MedicalImageError
from vlm_core.data.medical.reader import MedicalReader
from vlm_core.data.medical.windows import CT_RGB, PRESETS, apply_window
from vlm_core.data.phantom_drawing import draw_picture, draw_stored

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif")
TEXTS = ("DOE^JANE 1942-02-28", "MRN 00412233", "St. Mary Hospital", "Beeblebrox, Zaphod", "12/05/2023 14:33")
COLOURS = ((255, 255, 255), (170, 170, 170), (255, 220, 0))
FACTS = {"fat": "Thick", "gas": "Gas", "presence": "Yes", "side": "Left", "height": "Lower", "size": "Small"}
WITH_TEXT = {"GDCMJ2K_TextGBR.dcm", "examples_jpeg2k.dcm", "examples_palette.dcm", "examples_rgb_color.dcm",
             "examples_ybr_color.dcm"}  # fmt: skip


def slices(size: int, count: int = 4) -> list[Image.Image]:
    """Returns slices of the phantom in every plane: MR, CT as a picture, CT in three windows, and CT in a preset."""
    found = []
    for number in range(count):
        for plane in ("Axial", "Coronal", "Sagittal"):
            facts = FACTS | {"plane": plane, "number": ("One", "Two")[number % 2]}
            rng, same, noise = (np.random.default_rng([number, seed]) for seed in range(3))
            values = draw_stored(facts | {"modality": "CT"}, size, 0.0, same, noise).astype(float)
            window = [*PRESETS.values()][number % len(PRESETS)]
            found += [
                draw_picture(facts | {"modality": "MR"}, size, rng),
                draw_picture(facts | {"modality": "CT"}, size, rng),
                np.stack([apply_window(values, window) for window in CT_RGB], axis=-1),
                apply_window(values, window),
            ]
    return [Image.fromarray(image) for image in found]


def written_on(image: Image.Image, height: int, choice: random.Random) -> Image.Image:
    """Returns the image with a line of text at its upper or lower edge, sometimes outlined or compressed as JPEG."""
    image, text = image.convert("RGB"), choice.choice(TEXTS)[: int(image.width / (0.7 * height))]
    font = ImageFont.truetype(FONTS / f"{choice.choice(FAMILIES)}.ttf", height)
    top, outline = choice.choice((2, image.height - 2 * height)), choice.choice((0, 0, 1))
    draw = ImageDraw.Draw(image)
    draw.text((4, top), text, choice.choice(COLOURS), font, stroke_width=outline, stroke_fill=(0, 0, 0))
    if choice.random() < 0.3:
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=75)
        image = Image.open(io.BytesIO(stream.getvalue()))
    return image


@pytest.mark.parametrize(("heights", "size", "least"), [((12, 14, 16, 20), 256, 0.9), ((24, 32), 512, 0.9)])
def test_nearly_every_overlay_is_found(heights: tuple[int, ...], size: int, least: float) -> None:
    choice, images = random.Random(0), slices(size, 1 + (size == 256))
    found = [shows_text(written_on(image, heights[i % len(heights)], choice)) for i, image in enumerate(images)]
    assert np.mean(found) >= least, f"{sum(found)} of {len(found)}"


def test_slices_of_the_phantom_show_no_text() -> None:
    assert not any(map(shows_text, [*slices(64, 2), *slices(256, 3)]))


def test_real_images_with_and_without_text() -> None:
    reader, found = MedicalReader(ImagesConfig(secondary_captures=True, slices="1 evenly")), {}
    for path in sorted(DICOM_FILES.glob("*.dcm")):
        try:
            (picture,) = reader.open([path.read_bytes()]).pictures
        except MedicalImageError:
            continue
        found[path.name] = shows_text(decode_image(picture))
    assert {name for name, text in found.items() if text} == WITH_TEXT
    assert len(found) > 30


def test_speckle_and_noise_are_no_text() -> None:
    rng = np.random.default_rng(0)
    for sigma in (0, 1, 2, 3):
        speckle = np.abs(ndimage.gaussian_filter(rng.standard_normal((256, 256)), sigma))
        grey = np.clip(200 * speckle / np.percentile(speckle, 97), 0, 255).astype(np.uint8)
        assert not shows_text(Image.fromarray(grey))


def test_a_page_of_text_and_tiny_images() -> None:
    page = Image.new("L", (300, 300), 255)
    for line in range(0, 300, 16):
        ImageDraw.Draw(page).text((4, line), "Reported on 12/05/2023 by Dr. Vogon Jeltz", 0, ImageFont.load_default(12))
    assert shows_text(page)
    for size in ((1, 1), (3, 300), (9, 9)):
        assert not shows_text(Image.new("RGB", size, (255, 0, 0)))
