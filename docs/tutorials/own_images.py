"""Trains on images of your own that a CSV file describes, and asks the model a question.

Run it in an empty folder: python own_images.py. Then replace `write_images` by your images and table.
"""

import csv
import random
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw

QUESTION = "Is the bright disc on the left or on the right?"


def write_images(folder: Path) -> None:
    """Writes 80 images of 40 patients, and a table with a question about each."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(80):
        side = random.Random(number).choice(["left", "right"])
        image = Image.new("L", (56, 56), 30)
        left = 8 if side == "left" else 32
        ImageDraw.Draw(image).ellipse((left, 20, left + 16, 36), fill=220)
        image.save(folder / "images" / f"scan_{number:02}.png")
        rows.append([f"scan_{number:02}.png", QUESTION, side, f"P{number // 2:02}"])
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file", "question", "answer", "patient_id"], *rows])


def medpix(*words: str) -> None:
    """Runs a command, as you would type it."""
    print("\n$ medpix", *words, flush=True)
    subprocess.run(["medpix", *words], check=True)


write_images(Path("our-scans"))
medpix("init", "our-scans")  # look at data-report/report.html and at our-scans.yaml before you go on
medpix("train", "--recipe", "our-scans.yaml", "--step_scheduler.max_steps", "40")
model = "models:/medpix-our-scans@challenger"
medpix("ask", "--checkpoint-path", model, "--prompt", QUESTION, "--image", "our-scans/images/scan_00.png")
medpix("registry", "list")
