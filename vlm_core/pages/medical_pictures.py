"""Pictures of the data report from which a person judges windows, and finds text that is burnt into images."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core.data.arrow_cache import read_batches
from vlm_core.data.conversation_dataset import ConversationDataset, image_indices
from vlm_core.data.images import decode_image
from vlm_core.data.splits import SPLITS
from vlm_core.pages.plots import windows
from vlm_core.pages.thumbnails import data_uri

SIDE = 224  # pixels
MOST_WINDOWED, OF_A_KIND = 16, 2  # a kind is a modality with a window
MOST_WITH_TEXT = 12
CHANNELS = ("red", "green", "blue")
CT_RGB = "red, green, blue"  # in the words for three windows


def medical_pictures(conversations: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns `windowed`, images before and after their window, and `with_text`, images that may have text burnt in."""
    windowed: list[dict[str, Any]] = []
    suspects: dict[int, str] = {}  # index of an image -> why it may have text
    kinds, index = Counter[tuple[Any, Any]](), 0
    for batch in read_batches(conversations / "images.arrow"):
        columns = (batch[name].to_pylist() for name in ("medical", "shows_text"))
        for row, (medical, shows_text) in enumerate(zip(*columns, strict=True)):
            facts = json.loads(medical) if medical else {}
            kind = (facts.get("modality"), facts.get("window"))
            if "specimen" in facts and len(windowed) < MOST_WINDOWED and kinds[kind] < OF_A_KIND:
                kinds[kind] += 1
                windowed.append(_windowed(batch["encoded"][row].as_py(), facts))
            if shows_text or facts.get("burnt_in"):
                suspects[index] = "by its pixels" if shows_text else "by its header"
            index += 1
    windowed.sort(key=lambda entry: entry["title"])
    return {"windowed": windowed, "with_text": _with_text(conversations, suspects)}


def _windowed(encoded: bytes, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of an image: its histogram, the image before its window, and as the model sees it."""
    specimen, image = facts["specimen"], decode_image(encoded)
    names = [name.strip() for name in facts["window"].partition(":")[2].split(",")] if CT_RGB in facts["window"] else []
    return {
        "title": f"{facts.get('modality') or 'no modality'}: {facts['window']}",
        "histogram": windows(specimen["edges"], specimen["counts"], specimen["ranges"]),
        "before": f"data:image/png;base64,{specimen['before']}",
        "seen": data_uri(image, SIDE),
        "channels": [
            (f"{colour}: {name}", data_uri(channel.convert("RGB"), SIDE))
            for colour, name, channel in zip(CHANNELS, names, image.split(), strict=bool(names))
        ],
    }


def _with_text(conversations: Path, suspects: Mapping[int, str]) -> list[dict[str, Any]]:
    """Returns the first image in `suspects` of each row that shows one, with the name of the row."""
    rows: dict[int, str] = {}
    datasets = [ConversationDataset(conversations, split) for split in SPLITS] if suspects else []
    for dataset in datasets:
        for number in range(len(dataset)):
            if len(rows) == MOST_WITH_TEXT:
                break
            row: dict[str, Any] = dataset.conversations[number]
            first = next((image for image in image_indices(row) if image in suspects), None)
            if first is not None:
                rows.setdefault(first, row["example_id"])
    return [
        {
            "image": data_uri(decode_image(datasets[0].images[index]["encoded"]), SIDE),
            "row": name,
            "why": suspects[index],
        }
        for index, name in rows.items()
    ]
