"""Prepares a folder of DICOM studies: which window shows what the questions ask about, and what the model sees.

Run it in an empty folder: python dicom_folder.py. It needs the extra `medical`. The studies are generated: CT and MR
series with known values, in which a lesion is seen under a window for soft tissue.
"""

import json
import subprocess
import sys
from pathlib import Path


def medpix(*words: str) -> None:
    """Runs a command, as you would type it."""
    print("\n$ medpix", *words, flush=True)
    subprocess.run(["medpix", *words], check=True)


# Instead of this line: a folder with your studies, and one table whose image column names a file or a series' folder.
studies = ["-m", "vlm_core.data.phantom", "--output", "studies", "--form", "dicom"]
subprocess.run([sys.executable, *studies, "--images", "24", "--slices", "3", "--image-size", "56"], check=True)

# The report counts modalities, windows and signs of personal data, and shows images before and after the window.
medpix("init", "studies", "soft-tissue.yaml", "--dataset.images.window", "soft_tissue", "--output", "report")
print(Path("soft-tissue.yaml").read_text(encoding="utf-8"))

# One row, from its file to the tokens and pictures that the model gets.
medpix("prepare", "--config", "soft-tissue.yaml", "--explain", "3", "--output", "row-3")
print("\n".join(str(path) for path in Path("row-3").glob("*.png")))

# Another window is another dataset: its cache, features and answers are kept apart.
medpix("prepare", "--config", "soft-tissue.yaml", "--dataset.images.window", "ct_rgb", "--output", "report-rgb")
for manifest in Path(".medpix/cache/conversations").glob("*/statistics.json"):
    found = json.loads(manifest.read_text(encoding="utf-8"))
    print(found["medical"]["counts"]["window"])
