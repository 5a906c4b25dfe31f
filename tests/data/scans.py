"""A table of eight questions about eight images, as texts of a CSV file, and what became of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations
from vlm_core.recipe import load_config

NAMES = [f"scan_{i}.png" for i in range(8)]
ANSWERS = ["läsion, left", "None", "N/A", "007", 'a "large" mass', "two\nlines", "0", "No."]
HEADER = ["image_path", "question", "answer", "patient"]
ROWS = [[NAMES[i], f"What is {i}; and why?", ANSWERS[i], f"00{i // 2}"] for i in range(8)]


def write_images(directory: Path, names: Sequence[str] = NAMES) -> None:
    """Writes images that differ in the grey of their first pixel, 20 times their number."""
    for number, name in enumerate(names):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(directory / name)


def csv_text(rows: Sequence[Sequence[str]], separator: str = ",", header: Sequence[str] = HEADER) -> str:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(s in cell for s in (*',;|\t"\n',)) else cell

    return "\r\n".join(separator.join(map(quoted, row)) for row in [header, *rows]) + "\r\n"


def as_dicts(header: Sequence[str] = HEADER) -> list[dict[str, Any]]:
    return [dict(zip(header, row, strict=True)) for row in ROWS]


def stored(folder: Path, **settings: Any) -> list[tuple[Any, ...]]:
    """Returns (question, answer, case, number of the image) of every stored row, in the order of the table."""
    config = load_config("demo", {"dataset.path_or_dataset": str(folder)} | settings)
    cache, _ = prepare_conversations(config)
    rows = [row for split in ("train", "validation") for row in ConversationDataset(cache, split)]
    found = []
    for row in sorted(rows, key=lambda row: int(row["example_id"].rpartition("-")[2])):
        (picture, question), (answer,) = (turn["content"] for turn in row["conversation"])
        found.append((question["text"], answer["text"], row["case_id"], picture["image"].getpixel((0, 0))[0] // 20))
    return found
