"""Rows that are conversations already, and what became of them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import small_config
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.prepare import prepare_conversations


def write_images(directory: Path) -> None:
    (directory / "images").mkdir(parents=True)
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(directory / "images" / f"{i}.png")


def conversations_of(home: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Returns the cache of `rows`, written as JSONL, and what its training split holds."""
    write_images(home / "data-set")
    (home / "data-set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "data-set" / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    columns = {
        "dataset.path_or_dataset": str(home / "data-set"),
        "dataset.conversation_column": "messages",
        "dataset.image_column": "images",
        "dataset.case_column": None,
        "dataset.mode_column": None,
        "dataset.max_reject_share": 1.0,
    }
    cache, _ = prepare_conversations(small_config(**columns | settings))
    return cache, list(ConversationDataset(cache, "train"))


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def shape(example: dict[str, Any]) -> list[list[str]]:
    return [[part.get("text", "IMAGE") for part in turn["content"]] for turn in example["conversation"]]
