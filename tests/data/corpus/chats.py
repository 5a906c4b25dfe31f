"""Conversations: in each format, in JSONL, parquet and CSV, with images in the column or in the parts."""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from tests.data.corpus import Case, Row, both, jsonl, png

QUESTION = {"type": "text", "text": "Where?"}
ANSWER = {"role": "assistant", "content": "Left."}
STORED = [[[1, "Where?"], ["Left."]]]
MESSAGES = {"dataset.conversation_column": "messages", "dataset.image_column": None}
WITH_COLUMN = MESSAGES | {"dataset.image_column": "images"}


def user(*parts: Any) -> list[Row]:
    return [{"role": "user", "content": list(parts)}, ANSWER]


def asked(text: str) -> list[Row]:
    return [{"role": "user", "content": text}, ANSWER]


def row(messages: Any, *images: Any) -> Row:
    return {"messages": messages, "images": [*images]}


def as_csv(*items: Row) -> str:
    """Returns rows as CSV, with lists as JSON text."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(items[0])
    writer.writerows([json.dumps(cell) if isinstance(cell, list) else cell for cell in item.values()] for item in items)
    return stream.getvalue()


def parquet(*items: Row) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for split in ("train", "validation"):
            pq.write_table(pa.Table.from_pylist(list(items)), folder / f"{split}.parquet")

    return write


def of_datasets(*items: Row) -> Callable[[Path], None]:
    """Returns what writes rows of mixed types as `datasets` stores them: as JSON text, and says so in the schema."""

    def write(folder: Path) -> None:
        for split in ("train", "validation"):
            Dataset.from_list(list(items), on_mixed_types="use_json").to_parquet(folder / f"{split}.parquet")

    return write


def held(**part: Any) -> list[Row]:
    return user({"type": "image", **part}, QUESTION)


IMAGE = {"type": "image"}
PATH = "images/1.png"
BASE64 = base64.b64encode(png(1)).decode()
SHAREGPT = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "Left."}]
TWO_TURNS = [*asked("<image>Where?"), {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]

CASES = [
    Case(
        "OpenAI, mixed content", both(".jsonl", jsonl([row(user(IMAGE, QUESTION), PATH)])), STORED, settings=WITH_COLUMN
    ),
    Case("OpenAI, parquet of `datasets`", of_datasets(row(user(IMAGE, QUESTION), PATH)), STORED, settings=WITH_COLUMN),
    Case("OpenAI, CSV", both(".csv", as_csv(row(user(IMAGE, QUESTION), PATH))), STORED, settings=WITH_COLUMN),
    Case(
        "OpenAI, image_url",
        both(".jsonl", jsonl([row(user({"type": "image_url", "image_url": {"url": PATH}}, QUESTION))])),
        STORED,
        settings=MESSAGES,
    ),
    Case(
        "OpenAI, image_url as a text",
        both(".jsonl", jsonl([row(user({"type": "image_url", "image_url": PATH}, QUESTION))])),
        STORED,
        settings=MESSAGES,
    ),
    Case("TRL, images in a column", both(".jsonl", jsonl([row(asked("Where?"), PATH)])), STORED, settings=WITH_COLUMN),
    Case(
        "TRL, prompt and completion",
        both(".jsonl", jsonl([{"images": [PATH], "prompt": user(IMAGE, QUESTION)[:1], "completion": [ANSWER]}])),
        STORED,
    ),
    Case("axolotl, path", both(".jsonl", jsonl([row(held(path=PATH))])), STORED, settings=MESSAGES),
    Case("axolotl, url", both(".jsonl", jsonl([row(held(url=PATH))])), STORED, settings=MESSAGES),
    Case("image as an object", both(".jsonl", jsonl([row(held(image={"path": PATH}))])), STORED, settings=MESSAGES),
    Case(
        "parts in parquet",
        parquet(
            {
                "messages": [
                    {"role": "user", "content": [IMAGE | {"text": None, "image": PATH}, QUESTION | {"image": None}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Left.", "image": None}]},
                ]
            }
        ),
        STORED,
        settings=MESSAGES,
    ),
    Case(
        "LLaMA-Factory and ms-swift",
        both(".jsonl", jsonl([row(asked("<image>Where?"), PATH)])),
        STORED,
        settings=WITH_COLUMN,
    ),
    Case(
        "LLaMA-Factory, an array",
        both(".json", json.dumps([row(asked("<image>Where?"), PATH)])),
        STORED,
        settings=WITH_COLUMN,
    ),
    Case(
        "LLaMA-Factory, alpaca",
        both(".jsonl", jsonl([{"instruction": "<image>Where?", "output": "Left.", "images": [PATH]}])),
        STORED,
    ),
    Case(
        "alpaca with an input",
        both(".jsonl", jsonl([{"instruction": "Name it.", "input": "<image>", "output": "Left.", "images": [PATH]}])),
        error="the question may be in the column instruction and continue in input",
    ),
    Case(
        "alpaca with empty inputs",
        both(".jsonl", jsonl([{"instruction": "Where?", "input": "", "output": "Left.", "images": [PATH]}])),
        STORED,
    ),
    Case("ShareGPT", both(".jsonl", jsonl([row(SHAREGPT, PATH)])), STORED, settings=WITH_COLUMN),
    Case(
        "LLaVA",
        both(".json", json.dumps([{"id": "1", "image": PATH, "conversations": SHAREGPT}])),
        STORED,
        settings={"dataset.conversation_column": "conversations"},
    ),
    Case(
        "LLaVA without an image",
        both(
            ".json",
            json.dumps(
                [
                    {"id": 1, "conversations": SHAREGPT, "image": PATH},
                    {"id": 2, "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
                ]
            ),
        ),
        [*STORED, [["Why?"], ["So."]]],
        settings={"dataset.conversation_column": "conversations"},
    ),
    Case("ShareGPT, parquet", parquet(row(SHAREGPT, PATH)), STORED, settings=WITH_COLUMN),
    Case(
        "ShareGPT, JSON text in parquet",
        parquet({"images": [PATH], "messages": json.dumps(SHAREGPT)}),
        STORED,
        settings=WITH_COLUMN,
    ),
    Case(
        "The Cauldron",
        parquet({"images": [{"bytes": png(1), "path": None}], "messages": [{"user": "Where?", "assistant": "Left."}]}),
        STORED,
        settings=WITH_COLUMN,
    ),
    Case(
        "several turns",
        both(".jsonl", jsonl([row(TWO_TURNS, PATH)])),
        [[[1, "Where?"], ["Left."], ["Sure?"], ["Yes."]]],
        settings=WITH_COLUMN,
    ),
    Case(
        "images between texts",
        both(".jsonl", jsonl([row(asked("A <image> and <image>?"), PATH, "images/2.png")])),
        [[["A ", 1, " and ", 2, "?"], ["Left."]]],
        settings=WITH_COLUMN,
    ),
    Case(
        "parts that hold some images",
        both(".jsonl", jsonl([row(user(IMAGE, IMAGE | {"image": "images/2.png"}, QUESTION), PATH)])),
        [[[1, 2, "Where?"], ["Left."]]],
        settings=WITH_COLUMN,
    ),
    Case(
        "rows of several forms",
        both(
            ".jsonl", jsonl([row(asked("<image>Where?"), PATH), row(SHAREGPT, PATH), row(json.dumps(SHAREGPT), PATH)])
        ),
        [*STORED, *STORED, *STORED],
        settings=WITH_COLUMN,
    ),
    Case(
        "an answer that is JSON",
        both(".jsonl", jsonl([row([asked("Where?")[0], {"role": "assistant", "content": '{"side": "left"}'}])])),
        [[["Where?"], ['{"side": "left"}']]],
        settings=MESSAGES,
    ),
    Case(
        "an answer that is a number",
        both(".jsonl", jsonl([row([asked("How many?")[0], {"role": "assistant", "content": 2}])])),
        [[["How many?"], ["2"]]],
        settings=MESSAGES,
    ),
    Case(
        "columns of turns (Arrow)",
        parquet({"messages": {"role": ["user", "assistant"], "content": ["Where?", "Left."]}}),
        [[["Where?"], ["Left."]]],
        settings=MESSAGES,
    ),
    Case(
        "a tag in the question",
        both(".jsonl", jsonl([{"image": PATH, "question": "<image>\nWhere?", "answer": "Left."}])),
        STORED,
    ),
    Case(
        "more tags than images",
        both(".jsonl", jsonl([row(asked("<image><image>Where?"), PATH)])),
        error="more <image> than images.*found 2 places and 1 images",
        settings=WITH_COLUMN,
    ),
    Case(
        "tags of another kind",
        both(".jsonl", jsonl([row(asked("<image 1> Where?"), PATH)])),
        error="an image tag other than <image>.*'<image 1>'",
        settings=WITH_COLUMN,
    ),
    Case(
        "a video",
        both(".jsonl", jsonl([row(user({"type": "video", "video": "a.mp4"}))])),
        error="content that is neither text nor image.*video",
        settings=MESSAGES,
    ),
    Case(
        "Python text",
        both(".csv", "messages\n\"[{'role': 'user'}]\"\n"),
        error="a text that is not JSON",
        settings=MESSAGES,
    ),
    Case(
        "pairs",
        both(".jsonl", jsonl([row([["Where?", "Left."]])])),
        error=r"turn 0: found \['Where\?', 'Left.'\]",
        settings=MESSAGES,
    ),
    Case(
        "an answer that must not be learnt",
        both(".jsonl", jsonl([row([asked("Where?")[0], ANSWER | {"weight": 0}])])),
        error="an answer that is not to be trained on",
        settings=MESSAGES,
    ),
    Case(
        "an image of the web",
        both(".jsonl", jsonl([row(held(url="https://example.org/a.png"))])),
        error="image by URL",
        settings=MESSAGES,
    ),
]
