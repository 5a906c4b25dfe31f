"""Follows one row from its file to the model's input, so that a person can check how the data is read."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlm_core.data.case_ids import case_text
from vlm_core.data.cell_images import Picture
from vlm_core.data.cells import NoTextError, shown, text_of
from vlm_core.data.conversation import Conversation
from vlm_core.data.examples import Columns, RejectedRow, example_of
from vlm_core.data.image_table import ImageTable
from vlm_core.data.images import decode_image
from vlm_core.data.row_places import places_of
from vlm_core.data.row_rules import template_columns
from vlm_core.data.source import TRAIN, SplitSource
from vlm_core.data.splits import Splits

LONGEST = 400  # characters of a cell
ROW_NAME = re.compile(r"(?:(?P<split>(?:[\w-]+/)?\w+)-)?(?P<number>\d+)")
FIRST_ROWS = 1000  # the data report explains rows among these: text files can only be read from their start


@dataclass(frozen=True)
class ModelView:
    """The input of a model for a row. `problem` is the reason if there is no input, or no picture of it; else empty."""

    model: str
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # the prompt's text, and whether it is supervised
    tokens: int = 0
    supervised: int = 0  # tokens
    images: list[Image.Image] = field(default_factory=list)  # as the processor shows them; an image may become several
    problem: str = ""


@dataclass(frozen=True)
class ExplainedRow:
    """A row as it was read, and its example. `rejected` is the reason if the row has no example; else empty."""

    name: str  # as in reports: train-12
    place: str  # in its file, "" if unknown
    cells: dict[str, Any]  # column -> cell as read; the columns that are used come first
    uses: dict[str, str]  # column -> what it is used as: image, question, ...
    conversation: Conversation = field(default_factory=list)  # image parts hold indices into `images`
    images: list[Image.Image] = field(default_factory=list)  # decoded, upright, RGB
    facts: list[str] = field(default_factory=list)  # of each image as it is stored
    rejected: str = ""
    view: ModelView | None = None


def explain_row(splits: Splits, name: str) -> ExplainedRow:
    """Returns the row with a `name` as in reports and errors: `train-12`, or 12 for the same.

    Raises ValueError if no row has the name.
    """
    found, sources = ROW_NAME.fullmatch(name), splits.named_sources
    usual = next(iter(sources))  # the training split of the (main) dataset
    split = (found["split"] or usual) if found else ""
    if not found or split not in sources:
        names = " or ".join(f"{source}-12" for source in sources)
        raise ValueError(f"--explain {name!r} names no row: write {names}, or 12 for {usual}-12; the first row is 0")
    source, number = sources[split], int(found["number"])
    row = _row(source, number)
    if row is None:
        end = "" if source.stop is None else f"; it has {source.start} to {source.stop - 1}"
        raise ValueError(f"--explain {name!r}: {split} of {source.name!r} has no row {number}{end}")
    return _explained(source, f"{split}-{number}", number, row)


def explain_some(splits: Splits) -> list[ExplainedRow]:
    """Returns the rows that the data report explains: three of the training split, or one of each of several datasets.

    Returns none of a user's own function, which a report must not call.
    """
    if not splits.more:
        return _some_of(TRAIN, splits.sources[TRAIN])
    firsts = {part.row_name(split): part.sources[split] for part in splits.datasets for split in [*part.sources][:1]}
    return [row for name, source in firsts.items() for row in _some_of(name, source)[:1]]


def _some_of(split: str, source: SplitSource) -> list[ExplainedRow]:
    """Returns the first, the middle and the last of the first rows of a source."""
    if source.stop is None:
        return []
    kept = _first_kept(source, min(source.stop, source.start + FIRST_ROWS))
    numbers = sorted({kept[0], kept[(len(kept) - 1) // 2], kept[-1]}) if kept else []
    rows = ((number, _row(source, number)) for number in numbers)
    return [_explained(source, f"{split}-{number}", number, row) for number, row in rows if row is not None]


def _first_kept(source: SplitSource, stop: int) -> list[int]:
    """Returns the numbers of the rows before `stop` that `dataset.where` keeps."""
    where = source.columns.where
    if not where.columns:
        return [*range(source.start, stop)]
    batches = source.rows.batches(where.columns, source.start, stop)
    return [number for first, rows in batches for number, row in enumerate(rows, first) if where.keeps(row)]


def _row(source: SplitSource, number: int) -> dict[str, Any] | None:
    if number < source.start or (source.stop is not None and number >= source.stop):
        return None
    columns = [*dict.fromkeys([*source.columns.used, *source.rows.columns])]
    for first, rows in source.rows.batches(columns, number, number + 1):
        if first <= number < first + len(rows):
            return rows[number - first]
    return None


def _explained(source: SplitSource, name: str, number: int, row: dict[str, Any]) -> ExplainedRow:
    place = places_of(source.rows, [number], source.folder.root).get(number, "")
    uses, cells = _uses(source.columns), _cells(source, row)
    if not source.columns.where.keeps(row):
        return ExplainedRow(name, place, cells, uses, rejected=f"left out by dataset.where ({source.columns.where})")
    try:
        example = example_of(row, source.columns, source.images)
        table = ImageTable()
        indices = [table.index(table.announce(encoded)) for encoded in example.images]
    except RejectedRow as error:
        about = "" if source.pseudonyms else error.about()
        return ExplainedRow(name, place, cells, uses, rejected=f"{error} ({about})" if about else str(error))
    images, facts, stored = [], [], table.take_new()
    for encoded, index in zip(example.images, indices, strict=True):
        images.append(decode_image(encoded))
        found = stored[index]
        window = f", {encoded.facts['window']}" if isinstance(encoded, Picture) else ""
        facts.append(f"{found['width']} x {found['height']} pixels, {found['format']}, mode {found['mode']}{window}")
    return ExplainedRow(name, place, cells, uses, example.conversation, images, facts)


def _cells(source: SplitSource, row: dict[str, Any]) -> dict[str, Any]:
    """Returns the cells to show; with pseudonyms, the texts that are trained on, and the pseudonym of the case."""
    if source.pseudonyms is None:
        return row
    columns = source.columns
    texts = [columns.question, columns.answer, columns.mode, columns.modality, *template_columns(columns.template)]
    cells = {name: row[name] for name in texts if name is not None and name != columns.case}
    with suppress(NoTextError):
        if columns.case and (case := case_text(text_of(row[columns.case]))):
            cells[columns.case] = source.pseudonyms.of(case)
    return cells


def _uses(columns: Columns) -> dict[str, str]:
    """Returns what each column is used as."""
    asked, filtered = template_columns(columns.template), columns.where.columns
    rules = dict.fromkeys(filtered, "where") | dict.fromkeys(asked, "question")
    return rules | {column: setting.removesuffix("_column") for setting, column in columns.settings.items()}


def cell_text(cell: Any) -> str:
    """Returns a cell as a person reads it: texts in quotes, everything else with its type."""
    if cell is None:
        return "null"
    if isinstance(cell, str):
        cut = "" if len(cell) <= LONGEST else f" ... ({len(cell):,} characters)"
        return visible(json.dumps(cell[:LONGEST], ensure_ascii=False)) + cut
    if isinstance(cell, Image.Image):
        return f"a Pillow image of {cell.width} x {cell.height} pixels"
    kind = {dict: "object", bool: "true or false", int: "whole number", float: "number"}.get(
        type(cell), type(cell).__name__
    )
    return visible(shown(cell)) + ("" if isinstance(cell, bytes) else f" ({kind})")


def visible(text: str) -> str:
    """Returns a text with everything but line breaks visible: control, zero-width and other spaces become escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
