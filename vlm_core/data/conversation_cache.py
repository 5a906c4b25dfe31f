"""The Arrow cache of conversations, and the dataset that reads it.

A directory holds `images.arrow` (each distinct image once, with what it is), `train.arrow` and `validation.arrow`
(conversations that refer to images by index), `statistics.json` (what the data report shows) and `manifest.json`
(counts, rejects, closed questions, checksums). No model is involved.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vlm_core.cache import cached_directory
from vlm_core.data.arrow_cache import read_batches
from vlm_core.data.case_ids import case_key
from vlm_core.data.closed_questions import ClosedQuestionCounter
from vlm_core.data.conversation import arrow_type, last_question, map_images, turn_text
from vlm_core.data.division import Division
from vlm_core.data.examples import Example, RejectedRow, example_of
from vlm_core.data.image_table import ImageTable
from vlm_core.data.image_workers import ImageWorkers
from vlm_core.data.personal_texts import names_case
from vlm_core.data.rejects import Rejects, describe_rejects
from vlm_core.data.row_places import places_of
from vlm_core.data.source import SplitSource
from vlm_core.data.splits import IMAGE, PUBLISHED, SPLITS, TRAIN, Splits
from vlm_core.data.statistics import STATISTICS, describe
from vlm_core.files import write_json
from vlm_core.home import medpix_home
from vlm_core.progress import ProgressBar

logger = logging.getLogger(__name__)

CONVERSATIONS_VERSION = 7  # raise it whenever the same source must give another cache

CONVERSATION_SCHEMA = pa.schema(
    [("example_id", pa.string()), ("case_id", pa.string()), ("mode", pa.string()), ("conversation", arrow_type())]
)
DATASET = pa.field("dataset", pa.string())  # the last column, if the run has several datasets
AHEAD = 2  # batches that are read while their images are decoded
DECIDING = ("published", "image", "case_key")  # columns that decide the side of a row; they are not stored
IMAGE_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),  # of the decoded pixels
        ("encoded", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("several_frames", pa.bool_()),
        ("shows_text", pa.bool_()),
        ("medical", pa.string()),  # JSON of what a DICOM or NIfTI header says of the image, and its window
    ]
)


def build_conversations(splits: Splits) -> tuple[Path, bool]:
    """Returns (the cache directory of `splits`, whether it was there already).

    Raises ValueError if no row is left to train or to validate on.
    """
    key = hashlib.sha256(json.dumps([CONVERSATIONS_VERSION, splits.fingerprint]).encode()).hexdigest()[:32]
    root = medpix_home() / "cache" / "conversations"
    return cached_directory(root, key, lambda directory: _build(directory, key, splits))


def _build(directory: Path, key: str, splits: Splits) -> dict[str, Any]:
    """Builds a cache. If one side of a small dataset got no case (or image), it moves one there and builds again."""
    builder = _Builder(directory, key, splits)
    builder.read()
    if moved := builder.to_move():
        builder = _Builder(directory, key, splits, moved)
        builder.read()
    return builder.finish()


class _Read(NamedTuple):
    """A row that was read: its example without images and their keys in the table of images, or why it is rejected."""

    example_id: str
    example: Example | RejectedRow
    images: list[str]


@dataclass
class _Counts:
    """What became of the rows of one dataset."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    rejected: int = 0
    left_out: int = 0  # by `where`
    named: int = 0  # rows whose texts have the id of their case


class _Builder:
    """One build: what all splits share is the table of images, so that an image in several is stored once."""

    def __init__(self, directory: Path, key: str, splits: Splits, moved: Mapping[str, str] | None = None) -> None:
        self.directory, self.key, self.splits = directory, key, splits
        self.datasets = {part.name: part for part in splits.datasets}
        self.counts = {name: _Counts() for name in self.datasets}
        self.schema = CONVERSATION_SCHEMA.append(DATASET) if splits.more else CONVERSATION_SCHEMA
        self.division = Division(moved)
        self.workers = ImageWorkers()
        self.images = ImageTable(self.workers)
        self.cases: dict[str, str] = {}  # normal form of an id -> as it is shown
        self.rejects = Rejects()
        self.closed = ClosedQuestionCounter()

    def read(self) -> None:
        """Writes the images and rows of all sources."""
        with ExitStack() as stack:
            stack.callback(self.workers.close)
            images = stack.enter_context(_stream(self.directory / "images.arrow", IMAGE_SCHEMA))
            writers = {
                name: stack.enter_context(_stream(self.directory / f"{name}.arrow", self.schema)) for name in SPLITS
            }
            if any(part.split_by == IMAGE for part in self.splits.datasets):
                self._divide_by_image(images, writers)
            else:
                for records in self._read(images):
                    self._write(records, writers)

    def to_move(self) -> dict[str, str]:
        """Returns the cases or images to move to sides that got no row; see `Division.to_move`."""
        moved: dict[str, str] = {}
        for name, part in self.datasets.items():
            moved = self.division.to_move(part, self.counts[name].rows) | moved
        return moved

    def finish(self) -> dict[str, Any]:
        """Returns the manifest, after the statistics are written; raises ValueError if a side has no row."""
        self.rejects.locate(self._places)
        self._require_rows()
        manifest = {
            "fingerprint": self.key,
            "rows": {split: sum(counts.rows[split] for counts in self.counts.values()) for split in SPLITS},
            "images": len(self.images.digests),
            "cases": len(self.cases),
            "rejects": self.rejects.by_reason,
            "left_out": sum(counts.left_out for counts in self.counts.values()),
            "closed_questions": self.closed.closed_questions(),
        }
        if self.splits.more:
            manifest["datasets"] = {
                name: asdict(self.counts[name]) | {"trains": TRAIN in part.sources}
                for name, part in self.datasets.items()
            }
        write_json(
            self.directory / STATISTICS,
            describe(
                self.directory,
                manifest | {"rejects": self.rejects.counts},
                self.cases,
                sum(counts.named for counts in self.counts.values()),
            ),
        )
        return manifest

    def _divide_by_image(self, images: Any, writers: dict[str, Any]) -> None:
        """Writes the rows of both sides when all are read: only then it is known which images belong together."""
        aside, schema = self.directory / "rows.arrow", self.schema
        for name in DECIDING:
            schema = schema.append(pa.field(name, pa.string()))
        with _stream(aside, schema) as staged:
            for records in self._read(images):
                staged.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
        for batch in read_batches(aside):
            self._write(batch.to_pylist(), writers)
        aside.unlink()

    def _write(self, records: list[dict[str, Any]], writers: dict[str, Any]) -> None:
        """Writes rows to their sides."""
        kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for record in records:
            name = record.get(DATASET.name, "")
            side = self.division.side(self.datasets[name], record)
            kept[side].append(record)
            self.counts[name].rows[side] += 1
        for split, rows in kept.items():
            writers[split].write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))
        for record in kept[TRAIN]:
            self.closed.add(*last_question(record["conversation"]))

    def _read(self, images: Any) -> Iterator[list[dict[str, Any]]]:
        """Yields the rows of all sources, a batch at a time, when their images are written."""
        for part in self.splits.datasets:
            for split, source in part.sources.items():
                total = None if source.stop is None else source.stop - source.start
                with ProgressBar(total, f"preprocess {part.row_name(split)}", "row") as progress:
                    for rows in self._ahead(part, split, source):
                        records = [self._record(part, split, row, source) for row in rows]
                        images.write_batch(pa.RecordBatch.from_pylist(self.images.take_new(), schema=IMAGE_SCHEMA))
                        yield [record for record in records if record is not None]
                        progress.update(len(rows))

    def _ahead(self, part: Splits, split: str, source: SplitSource) -> Iterator[list[_Read]]:
        """Yields the rows of a source, a batch at a time, while the images of later batches are decoded."""
        waiting: deque[list[_Read]] = deque()
        for first, rows in source.rows.batches(source.columns.used, source.start, source.stop):
            kept = [(number, row) for number, row in enumerate(rows, first) if source.columns.where.keeps(row)]
            self.counts[part.name].left_out += len(rows) - len(kept)
            waiting.append([self._announced(f"{part.row_name(split)}-{number}", row, source) for number, row in kept])
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _announced(self, example_id: str, row: dict[str, Any], source: SplitSource) -> _Read:
        try:
            example = example_of(row, source.columns, source.images)
        except RejectedRow as reason:
            return _Read(example_id, reason, [])
        return _Read(example_id, replace(example, images=[]), [self.images.announce(image) for image in example.images])

    def _record(self, part: Splits, split: str, row: _Read, source: SplitSource) -> dict[str, Any] | None:
        """Returns what is stored of a row; counts why there is nothing of it."""
        example_id, example, keys = row
        counts = self.counts[part.name]
        try:
            if isinstance(example, RejectedRow):
                raise example
            indices = [self.images.index(key) for key in keys]
        except RejectedRow as reason:
            # The details of a row may have the id of a patient in them.
            counts.rejected += 1
            self.rejects.add(example_id, RejectedRow(str(reason)) if source.pseudonyms else reason)
            return None
        # Without a case column, the questions about an image are one case, and so is each row without an image.
        shown = [self.images.digests[index] for index in indices] or [example_id]
        self.division.connected.join(shown)
        case = shown[0][:16] if example.case is None else example.case
        visible = source.pseudonyms.of(case) if source.pseudonyms and example.case is not None else case
        if example.case is not None:
            counts.named += any(names_case(turn_text(turn), case) for turn in example.conversation)
        return {
            "example_id": example_id,
            "case_id": self.cases.setdefault(case_key(case), visible),
            "case_key": case_key(case),
            "mode": self._mode_of_none(source) if example.mode is None else example.mode,
            "conversation": map_images(example.conversation, indices.__getitem__),
            "published": split,
            "image": shown[0],
            DATASET.name: part.name,
        }

    def _mode_of_none(self, source: SplitSource) -> str:
        """Returns the mode of a row that has none: "all" if no row can have one, otherwise "none"."""
        return "all" if source.columns.mode is None and not self.splits.more else "none"

    def _places(self, example_ids: list[str]) -> dict[str, str]:
        """Returns `{example id: file and line}` of the rows that files are known for."""
        numbers: dict[str, list[int]] = {}
        for name, _, number in (example_id.rpartition("-") for example_id in example_ids):
            numbers.setdefault(name, []).append(int(number))
        sources = self.splits.named_sources
        return {
            f"{name}-{number}": place
            for name, wanted in numbers.items()
            for number, place in places_of(sources[name].rows, wanted, sources[name].folder.root).items()
        }

    def _require_rows(self) -> None:
        for part in self.splits.datasets:
            counts = self.counts[part.name]
            for split in part.sources if part.split_by == PUBLISHED else SPLITS:
                if not counts.rows[split]:
                    raise ValueError(self._no_row_left(part, split))

    def _no_row_left(self, part: Splits, split: str) -> str:
        names = ", ".join(repr(source.name) for source in part.sources.values())
        counts, key = self.counts[part.name], self.splits.key_of(part)
        left_out = f"{key}.where left out all {counts.left_out}" if counts.left_out else "none was drawn"
        why = f"rejected were {describe_rejects(self.rejects.by_reason)}" if counts.rejected else left_out
        return (
            f"dataset {names}: no row is left for {split} (split_by={part.split_by}): {why}; "
            f"correct the rows, or set another {key}.validation_share or split_seed"
        )


@contextmanager
def _stream(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer
