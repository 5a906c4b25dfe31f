"""The Arrow cache of token ids: a second run with another learning rate tokenizes nothing.

A directory holds `train.arrow` and `validation.arrow`, row for row those of the conversation cache that it was made of.
Its key covers that cache and everything in the processor that token ids depend on, but not the model's weights.
"""

import hashlib
import json
import logging
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import TemplateError

from vlm_core.cache import cached_directory, read_manifest
from vlm_core.data.arrow_cache import open_rows
from vlm_core.data.chat_model import ChatModel, ImageGrid
from vlm_core.data.chat_template import TokenizedConversation
from vlm_core.data.conversation_cache import SPLITS
from vlm_core.data.conversation_dataset import image_indices, image_sizes
from vlm_core.data.examples import RejectedRow
from vlm_core.data.rejects import Rejects, describe_rejects
from vlm_core.home import medpix_home
from vlm_core.progress import ProgressBar

logger = logging.getLogger(__name__)

TOKENS_VERSION = 4  # raise it whenever the same conversations must give other ids
REJECTS = "rejects"  # in the manifest, by split and reason
UNASKED = "unasked"  # in the manifest, by split: rows with answers that no generation prompt leads to
ROWS_AT_ONCE = 256  # bounds the memory of the build

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("images", pa.list_(pa.int32())),
        ("prefix", pa.int32()),
        ("group", pa.int32()),
        ("grids", pa.list_(pa.list_(pa.int32(), 2))),
    ]
)


@dataclass(frozen=True)
class TokenizedExample(TokenizedConversation):
    """A conversation's tokens, its images as indices into the table of images, and `ChatModel.image_grids` of these."""

    images: list[int]
    grids: list[ImageGrid] = field(default_factory=list)


def build_tokens(conversations: Path, chat: ChatModel) -> Path:
    """Returns the directory of the token ids of both splits of `conversations`, built if it is missing."""
    identity = [TOKENS_VERSION, read_manifest(conversations)["fingerprint"], chat.fingerprint()]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def build(directory: Path) -> dict[str, Any]:
        built = {split: _build_split(conversations, directory, split, chat) for split in SPLITS}
        return {
            REJECTS: {split: rejects.by_reason for split, (rejects, _) in built.items()},
            UNASKED: {split: unasked for split, (_, unasked) in built.items()},
        }

    directory, reused = cached_directory(medpix_home() / "cache" / "tokens", key, build)
    logger.info("token ids %s: %s", "reused" if reused else "built", directory)
    return directory


def shared_prefix(tokenized: TokenizedConversation, chat: ChatModel) -> int:
    """Returns how many leading tokens examples of one image may share: up to and including the last image token.

    They share nothing (0) without images, with an image after the first target, or if the chat model packs nothing.
    """
    if not chat.packs:
        return 0
    image_token = chat.image_token
    images = [i for i, token in enumerate(tokenized.input_ids) if token == image_token]
    end = images[-1] + 1 if images else 0
    # A branch begins with a token that is not a target: the last token of a shared prefix predicts nothing.
    return end if end < first_target(tokenized.supervised) else 0


def group_key(images: list[int], input_ids: list[int], prefix: int, index: int) -> Hashable:
    """Returns what the examples of a group have in common: images and prefix, else an example's own index."""
    return (tuple(images), tuple(input_ids[:prefix])) if prefix else index


def first_target(supervised: list[bool]) -> int:
    """Returns the position of the first target, or the length if there is none."""
    return supervised.index(True) if True in supervised else len(supervised)


def last_answer(supervised: list[bool]) -> int:
    """Returns the position of the first target of the last answer."""
    end = len(supervised)
    while end and not supervised[end - 1]:
        end -= 1
    while end and supervised[end - 1]:
        end -= 1
    assert end, "an example has an answer"
    return end


def last_answer_of(example: TokenizedExample) -> TokenizedExample:
    """Returns the example with only its last answer supervised."""
    end = last_answer(example.supervised)
    return replace(example, supervised=[False] * end + example.supervised[end:])


def _build_split(conversations: Path, directory: Path, split: str, chat: ChatModel) -> tuple[Rejects, int]:
    """Writes the token ids of a split.

    Returns the rows that the model cannot be shown, whose ids are empty, and the number of rows with unasked answers.
    """
    rows: Any = open_rows(conversations / f"{split}.arrow")
    sizes = image_sizes(conversations)
    group_of: dict[Any, int] = {}
    rejects, unasked = Rejects(), 0

    def record(number: int, example: dict[str, Any]) -> dict[str, Any]:
        nonlocal unasked
        images = image_indices(example)
        try:
            grids = chat.image_grids([sizes[image] for image in images])
            tokenized = chat.tokenize(example["conversation"], grids)
        except (ValueError, ArithmeticError, RuntimeError, TemplateError) as error:
            rejects.add(example["example_id"], _cannot_be_shown(error))
            return {"input_ids": [], "supervised": [], "images": images, "prefix": 0, "group": -1, "grids": []}
        unasked += bool(tokenized.unasked)
        prefix = shared_prefix(tokenized, chat)
        key = group_key(images, tokenized.input_ids, prefix, number)
        return {
            "input_ids": tokenized.input_ids,
            "supervised": tokenized.supervised,
            "images": images,
            "prefix": prefix,
            "group": group_of.setdefault(key, len(group_of)),
            "grids": grids,
        }

    with (
        pa.OSFile(str(directory / f"{split}.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, SCHEMA) as writer,
        ProgressBar(len(rows), f"tokenize {split}", "row") as progress,
    ):
        for first in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows.select(range(first, min(first + ROWS_AT_ONCE, len(rows)))).to_list()
            records = [record(number, example) for number, example in enumerate(batch, start=first)]
            writer.write_batch(pa.RecordBatch.from_pylist(records, schema=SCHEMA))
            progress.update(len(batch))
    return rejects, unasked


def _cannot_be_shown(error: Exception) -> RejectedRow:
    """Returns the reject of a row that a processor refuses; what differs between rows stays out of the reason."""
    rule, value = str(error).partition(", got")[:2]
    found = str(error)
    return RejectedRow(f"this model cannot take it ({rule or type(error).__name__})", lambda: found if value else "")


class TokenDataset:
    """A split of a token cache, memory-mapped; without examples of more than `max_length` tokens or that were rejected.

    `lengths`, `prefixes` and `groups` are int arrays with one entry per example: its number of tokens; how many of them
    it may share with the examples of its group; and that group, which has the same images and the same prefix.
    `too_long` has the rows of the cache that were left out for their length, `refused` those that the model cannot be
    shown, and `rejects` the reasons. With `last_answer_only`, the earlier answers of a conversation are not supervised.
    `unasked` is the number of rows with an answer that no generation prompt leads to. Arguments may be arrays with one
    entry per row of the cache; rows that are not `used` are left out.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        max_length: int | np.ndarray | None = None,
        *,
        last_answer_only: bool | np.ndarray = False,
        used: bool | np.ndarray = True,
    ) -> None:
        manifest = read_manifest(directory)
        self.rejects: dict[str, dict[str, Any]] = manifest[REJECTS][split]
        self.unasked: int = manifest[UNASKED][split]
        self.rows = open_rows(directory / f"{split}.arrow")
        table = self.rows.data
        lengths: np.ndarray = pc.call_function("list_value_length", [table["input_ids"]]).to_numpy()
        self.last_answer_only = np.broadcast_to(last_answer_only, lengths.shape)
        fits = lengths <= (np.iinfo(lengths.dtype).max if max_length is None else max_length)
        kept = fits & (lengths > 0) & used
        self.too_long, self.refused = np.flatnonzero(~fits & used), np.flatnonzero((lengths == 0) & used)
        self._rows: np.ndarray = np.flatnonzero(kept)
        self.lengths = lengths[kept]
        self.prefixes: np.ndarray = table["prefix"].to_numpy()[kept]
        self.groups: np.ndarray = table["group"].to_numpy()[kept]

    def __len__(self) -> int:
        return len(self.lengths)

    def row_of(self, index: int) -> int:
        """Returns the row of the conversation cache that an example comes from."""
        return int(self._rows[index])

    def shown_rows(self) -> set[int]:
        """Returns the rows of the conversation cache that examples were made of."""
        return set(self._rows.tolist())

    def of_row(self, row: int) -> TokenizedExample:
        """Returns the example of a row of the conversation cache; raises ValueError if it was left out."""
        index = int(np.searchsorted(self._rows, row))
        if index == len(self._rows) or self._rows[index] != row:
            raise ValueError(f"row {row} of the data cannot be shown to this model: {describe_rejects(self.rejects)}")
        return self[index]

    def __getitem__(self, index: int) -> TokenizedExample:
        number = self.row_of(index)
        row = self.rows[number]
        grids = [(down, across) for down, across in row["grids"]]
        example = TokenizedExample(row["input_ids"], row["supervised"], row["images"], grids)
        return last_answer_of(example) if self.last_answer_only[number] else example
