"""Draws example answers as a picture: some validation images, with their questions, references and predictions."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlm_core.data.closed_questions import normalize

IMAGES, QUESTIONS = 3, 4  # shown
SIDE, MARGIN, WIDTH, SIZE = 320, 16, 1100, 17  # pixels
WRAP = 78  # characters a line
INK, RIGHT, OTHER = "#1b1b1b", "#146b2e", "#a33a00"


def draw_examples(images: Sequence[Image.Image], answers: Sequence[Sequence[dict[str, Any]]], path: Path) -> None:
    """Writes a PNG with one row per image: the image, and `question`, `reference` and `prediction` of its `answers`.

    A prediction is green if it equals the reference after normalisation; any other answer needs a reader's judgement.
    """
    picture = Image.new("RGB", (WIDTH, len(images) * (SIDE + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for row, (image, records) in enumerate(zip(images, answers, strict=True)):
        top = MARGIN + row * (SIDE + MARGIN)
        picture.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (MARGIN, top))
        spread = records[:: max(1, len(records) // QUESTIONS)][:QUESTIONS]
        _draw_answers(draw, spread, top)
    picture.save(path)


def _draw_answers(draw: ImageDraw.ImageDraw, records: Sequence[dict[str, Any]], top: int) -> None:
    font = ImageFont.load_default(SIZE)
    y = top
    for record in records:
        equal = normalize(record["prediction"]) == normalize(record["reference"])
        for label, text, colour in (
            ("", record["question"], INK),
            ("model: ", record["prediction"], RIGHT if equal else OTHER),
            ("reference: ", record["reference"], "#5a5a5a"),
        ):
            for line in textwrap.wrap(label + text, WRAP) or [label]:
                draw.text((2 * MARGIN + SIDE, y), line, fill=colour, font=font)
                y += SIZE + 3
        y += 6
