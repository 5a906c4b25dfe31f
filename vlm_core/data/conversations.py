"""The Arrow cache of conversations, and the dataset that reads it.

A directory holds `images.arrow` (each distinct image once), `train.arrow` and `validation.arrow` (conversations that
refer to images by index) and `manifest.json` (counts, rejects, closed questions). No model is involved.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from vlm_core.cache import cached_directory, read_manifest
from vlm_core.config import Config
from vlm_core.data.closed import ClosedQuestionCounter
from vlm_core.data.images import decode_image
from vlm_core.data.medpix import RejectedRow, conversation_of
from vlm_core.data.source import COLUMNS, SplitSource, fetch_split
from vlm_core.home import medpix_home
from vlm_core.progress import ProgressBar

logger = logging.getLogger(__name__)

CONVERSATIONS_VERSION = 1  # raise it whenever the same source must give another cache
SPLITS = ("train", "validation")
ROWS_AT_ONCE = 256  # bounds the memory of the build

_CONTENT = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", pa.int32())])
_TURN = pa.struct([("role", pa.string()), ("content", pa.list_(_CONTENT))])
CONVERSATION_SCHEMA = pa.schema(
    [("example_id", pa.string()), ("case_id", pa.string()), ("mode", pa.string()), ("conversation", pa.list_(_TURN))]
)
IMAGE_SCHEMA = pa.schema([("sha256", pa.string()), ("encoded", pa.binary())])


def fetch_splits(config: Config) -> dict[str, SplitSource]:
    """Returns the checked sources of both splits; raises ValueError as `fetch_split` does."""
    return {"train": fetch_split(config.dataset), "validation": fetch_split(config.validation_source)}


def build_conversations(splits: dict[str, SplitSource]) -> tuple[Path, bool]:
    """Returns (the cache directory of `splits`, whether it was there already)."""
    identity = {"version": CONVERSATIONS_VERSION, **{name: split.fingerprint for name, split in splits.items()}}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    root = medpix_home() / "cache" / "conversations"
    return cached_directory(root, key, lambda directory: _Builder(directory, key).build(splits))


class _Builder:
    """One build: what both splits share is the table of images, so that an image in both is stored once."""

    def __init__(self, directory: Path, key: str) -> None:
        self.directory, self.key = directory, key
        self.index_of: dict[str, int] = {}  # sha256 of the encoded image -> row in images.arrow
        self.unreadable: dict[str, str] = {}  # sha256 -> why it does not decode; so each is tried once
        self.cases: set[str] = set()
        self.rows: dict[str, int] = {}
        self.rejects: dict[str, dict[str, Any]] = {}
        self.closed = ClosedQuestionCounter()

    def build(self, splits: dict[str, SplitSource]) -> dict[str, Any]:
        with (
            pa.OSFile(str(self.directory / "images.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, IMAGE_SCHEMA) as images,
        ):
            for name, split in splits.items():
                self._build_split(name, split, images)
        return {
            "fingerprint": self.key,
            "rows": self.rows,
            "images": len(self.index_of),
            "cases": len(self.cases),
            "rejects": self.rejects,
            "closed_questions": self.closed.closed_questions(),
        }

    def _build_split(self, name: str, split: SplitSource, images: pa.ipc.RecordBatchStreamWriter) -> None:
        self.rows[name] = 0
        with (
            pa.OSFile(str(self.directory / f"{name}.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, CONVERSATION_SCHEMA) as writer,
            ProgressBar(split.stop - split.start, f"preprocess {name}", "row") as progress,
        ):
            for first, rows in _read_rows(split):
                new_images: list[dict[str, Any]] = []
                examples = [self._example(name, first + i, row, new_images) for i, row in enumerate(rows)]
                kept = [example for example in examples if example]
                self.rows[name] += len(kept)
                images.write_batch(pa.RecordBatch.from_pylist(new_images, schema=IMAGE_SCHEMA))
                writer.write_batch(pa.RecordBatch.from_pylist(kept, schema=CONVERSATION_SCHEMA))
                progress.update(len(rows))
        if not self.rows[name]:
            raise ValueError(f"dataset {split.name!r} is empty: every row of {name} was rejected: {self.rejects}")

    def _example(
        self, split: str, number: int, row: dict[str, Any], new_images: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        example_id = f"{split}-{number}"
        try:
            image = self._image_index(row["image_id"], new_images)
            conversation = conversation_of(row["question"], row["answer"], image)
        except RejectedRow as reason:
            reject = self.rejects.setdefault(str(reason), {"rows": 0, "examples": []})
            reject["rows"] += 1
            reject["examples"] = [*reject["examples"], example_id][:3]
            return None
        if split == "train":
            self.closed.add(row["question"], row["answer"])
        self.cases.add(str(row["case_id"]))
        return {
            "example_id": example_id,
            "case_id": str(row["case_id"]),
            "mode": str(row["mode"]),
            "conversation": conversation,
        }

    def _image_index(self, image: dict[str, Any] | None, new_images: list[dict[str, Any]]) -> int:
        encoded = (image or {}).get("bytes")
        if not encoded:
            raise RejectedRow("no image")
        digest = hashlib.sha256(encoded).hexdigest()
        if digest in self.unreadable:
            raise RejectedRow(self.unreadable[digest])
        if digest not in self.index_of:
            try:
                decode_image(encoded)
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
                self.unreadable[digest] = f"image does not decode ({type(error).__name__})"
                raise RejectedRow(self.unreadable[digest]) from None
            self.index_of[digest] = len(self.index_of)
            new_images.append({"sha256": digest, "encoded": encoded})
        return self.index_of[digest]


def _read_rows(split: SplitSource) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields (number of the first row within the split, rows as dictionaries), a batch at a time."""
    position = 0
    for path in split.files:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE, columns=list(COLUMNS)):
            start, stop = max(split.start - position, 0), min(split.stop - position, len(batch))
            if start < stop:
                yield position + start, batch.slice(start, stop - start).to_pylist()
            position += len(batch)


class ConversationDataset:
    """A split of a conversation cache, memory-mapped, with its images decoded on access.

    `dataset[i]` returns `{"example_id", "case_id", "mode", "conversation"}`, the conversation in the form of the guide:
    turns of `{"role", "content"}`, where a content part is `{"type": "text", "text"}` or `{"type": "image", "image"}`
    with an 8-bit RGB PIL image. The rows of `dataset.conversations` hold an image's index instead.
    """

    def __init__(self, directory: Path, split: str) -> None:
        assert split in SPLITS
        self.manifest = read_manifest(directory)
        self.conversations = Dataset.from_file(str(directory / f"{split}.arrow"))
        self.images = Dataset.from_file(str(directory / "images.arrow"))

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.with_images(self.conversations[index])

    def with_images(self, example: dict[str, Any]) -> dict[str, Any]:
        """Returns a row of `conversations` with its image indices replaced by decoded images."""

        def part(content: dict[str, Any]) -> dict[str, Any]:
            if content["type"] == "text":
                return {"type": "text", "text": content["text"]}
            return {"type": "image", "image": decode_image(self.images[content["image"]]["encoded"])}

        turns = [
            {"role": turn["role"], "content": [part(content) for content in turn["content"]]}
            for turn in example["conversation"]
        ]
        return {**example, "conversation": turns}

    def shown_images(self) -> set[int]:
        """Returns the indices of all images that the split shows."""
        content: Any = self.conversations.data["conversation"]
        for name in ("content", "image"):
            flat = pc.call_function("list_flatten", [content])
            content = pc.call_function("struct_field", [flat], pc.StructFieldOptions([name]))
        return set(content.drop_null().unique().to_pylist())

    def encoded_image(self, sha256: str) -> bytes:
        """Returns the encoded image with a hash of `image_hashes`."""
        return self.images[self._index_of_image[sha256]]["encoded"]

    @cached_property
    def _index_of_image(self) -> dict[str, int]:
        return {digest: index for index, digest in enumerate(self.images["sha256"])}

    def image_hashes(self, example: dict[str, Any]) -> list[str]:
        """Returns the sha256 of each encoded image of a row of `conversations`."""
        return [self.images[index]["sha256"] for index in image_indices(example)]


def image_indices(example: dict[str, Any]) -> list[int]:
    """Returns the images of a row of the conversation cache, in their order, as indices into its table of images."""
    parts = (part for turn in example["conversation"] for part in turn["content"])
    return [part["image"] for part in parts if part["type"] == "image"]
