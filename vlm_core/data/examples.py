"""How a row becomes an example: a conversation in the Hugging Face message format, its images, its case.

A row has an image, a question and an answer in columns of their own, as in MedPix-VQA, or a whole conversation in one
of the formats of `vlm_core.data.chat_formats`. A question and an answer may also be lists of turns, which TRL calls
prompt and completion.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vlm_core.data.case_ids import case_text
from vlm_core.data.cell_images import CellImages
from vlm_core.data.cells import NoTextError, text_of
from vlm_core.data.chat_formats import ChatFormatError, is_turns, require_as_many_places, turns_of, with_images
from vlm_core.data.conversation import (
    Conversation,
    Part,
    Turn,
    image_part,
    images_of,
    join_texts,
    map_parts,
    own_value,
    turn_text,
)
from vlm_core.data.image_cells import ImageError, cells_of, image_or_path, is_image_text
from vlm_core.data.markers import MARKER_PATTERN
from vlm_core.data.row_rules import Where, filled, template_columns


class RejectedRow(ValueError):
    """A row that cannot be trained on. Rejects are counted by the message; `about` describes this row."""

    def __init__(self, reason: str, about: Callable[[], str] = str) -> None:
        super().__init__(reason)
        self.about = about


@dataclass(frozen=True)
class Columns:
    """The names of a dataset's columns; None for a kind that it lacks."""

    image: str | None
    question: str | None
    answer: str | None
    case: str | None
    mode: str | None
    conversation: str | None
    modality: str | None = None
    slice: str | None = None
    template: str | None = None  # makes the question of several columns
    where: Where = field(default_factory=Where)  # which rows are kept

    @property
    def used(self) -> list[str]:
        """The columns to read, each once: one may have two meanings, as mode and modality."""
        return [*dict.fromkeys([*self.settings.values(), *template_columns(self.template), *self.where.columns])]

    @property
    def settings(self) -> dict[str, str]:
        """Returns `{config key: column}` of the columns with one meaning each."""
        rules = ("template", "where")
        return {f"{key}_column": name for key, name in vars(self).items() if name is not None and key not in rules}


# The columns of the rows that a user's function returns.
FUNCTION_COLUMNS = Columns(None, None, None, "case_id", "mode", "conversation")


@dataclass(frozen=True)
class Example:
    """A conversation whose image parts hold indices into `images`, and which case and mode it belongs to."""

    conversation: Conversation
    images: list[bytes]
    case: str | None
    mode: str | None


def example_of(row: dict[str, Any], columns: Columns, images: CellImages) -> Example:
    """Returns the example of a row; a volume in a cell is as many images as it shows slices.

    Raises RejectedRow for one without question or answer (an empty answer would train the model to say nothing), a
    missing image, a cell without a text, or a conversation that does not end with an answer.
    """
    try:
        conversation, shown = _placed(row, columns, images)
        _require_sound(conversation, columns)
        modality, slices = _text(row, columns, "modality"), _slices(row, columns)
        pictures = [images.pictures(cell, modality=modality, slices=slices) for cell in shown]
    except ImageError as error:
        raise RejectedRow(str(error), _about_image(error, columns)) from None
    except ChatFormatError as error:
        raise RejectedRow(str(error), _about_text(columns.conversation or columns.question, error.detail)) from None
    conversation, encoded = _unfolded(conversation, pictures)
    case, mode = (_text(row, columns, name) for name in ("case", "mode"))
    return Example(conversation, encoded, None if case is None else case_text(case), mode)


def _placed(row: dict[str, Any], columns: Columns, images: CellImages) -> tuple[Conversation, list[Any]]:
    """Returns the turns of a row with images numbered, and the cells of these images.

    A list of the slices of one DICOM series is one image, unless the text has a place for each.
    """
    cells = _image_cells(row, columns)
    series = images.series(cells)
    if series is not None:
        with suppress(ChatFormatError):
            return _numbered(_turns(row, columns, 1), [series])
    return _numbered(_turns(row, columns, len(cells)), cells)


def _unfolded(conversation: Conversation, pictures: list[list[bytes]]) -> tuple[Conversation, list[bytes]]:
    """Returns the conversation with a part for each picture of an image, and all pictures in their order."""
    if all(len(shown) == 1 for shown in pictures):
        return conversation, [shown[0] for shown in pictures]
    starts = [sum(map(len, pictures[:index])) for index in range(len(pictures))]

    def parts(part: Part) -> list[Part]:
        if part["type"] != "image":
            return [part]
        index = own_value(part)
        return [image_part(starts[index] + number) for number in range(len(pictures[index]))]

    turns: Conversation = [
        {"role": turn["role"], "content": [one for part in turn["content"] for one in parts(part)]}
        for turn in conversation
    ]
    return turns, [picture for shown in pictures for picture in shown]


def _slices(row: dict[str, Any], columns: Columns) -> list[str] | None:
    """Returns the names of the slices that a row shows: a number, a text with commas, or a list; None for no choice."""
    cell = row[columns.slice] if columns.slice else None
    cells = cell if isinstance(cell, list | tuple) else [_text(row, columns, "slice") or ""]
    names = [name.strip() for one in cells for name in re.split(r"[,;\s]+", text_of(one) or "") if name.strip()]
    return names or None


def image_paths(row: dict[str, Any], columns: Columns) -> list[str]:
    """Returns the paths (and addresses) of the images that a row refers to, in any form that `example_of` reads."""
    cells = [] if columns.image is None else cells_of(row[columns.image])
    try:
        holds_turns = columns.conversation or is_turns(row.get(columns.question or ""))
        turns = _turns(row, columns, None) if holds_turns else []
    except (ChatFormatError, RejectedRow):
        turns = []
    own = [part["image"] for turn in turns for part in turn["content"] if "image" in part]
    return [path for cell in (*cells, *own) if (path := _path_of(cell))]


def _path_of(cell: Any) -> str | None:
    """Returns the path that a cell names; None for one that holds an image or nothing."""
    try:
        found = None if isinstance(cell, str) and is_image_text(cell) else image_or_path(cell)
    except ImageError:
        return None
    return found if isinstance(found, str) else None


def _about_image(error: ImageError, columns: Columns) -> Callable[[], str]:
    where = f"dataset.image_column={columns.image}: " if columns.image else ""
    return lambda: f"{where}{error.detail}" if error.detail else ""


def _about_text(column: str | None, detail: str) -> Callable[[], str]:
    return lambda: f"column {column}: {detail}" if column and detail else ""


def _image_cells(row: dict[str, Any], columns: Columns) -> list[Any]:
    if columns.image is None:
        return []
    cell = row[columns.image]
    # A missing cell is a defect of the dataset; an empty list means that the row has no images.
    if cell is None and columns.conversation is None:
        raise RejectedRow("no image")
    return cells_of(cell)


def _text(row: dict[str, Any], columns: Columns, name: str) -> str | None:
    """Returns the text of a row in the column of a setting; None if there is none."""
    column = getattr(columns, name)
    return None if column is None else _cell_text(row, column, name, f"dataset.{name}_column={column}")


def _cell_text(row: dict[str, Any], column: str, name: str, setting: str) -> str | None:
    try:
        return text_of(row[column])
    except NoTextError as error:
        remedy = f"{setting} must hold one text a row"
        raise RejectedRow(f"{name} is {error}", _about_text(column, f"found {error.detail}; {remedy}")) from None


def _question(row: dict[str, Any], columns: Columns) -> str:
    """Returns the question of a row: the text of its column, or of the columns in the template."""
    if columns.template is None:
        return _text(row, columns, "question") or ""
    setting = "each column of dataset.question_template"
    return filled(columns.template, lambda column: _cell_text(row, column, "question", setting))


def _turns(row: dict[str, Any], columns: Columns, images: int | None) -> list[Turn]:
    """Returns the turns of a row with `images` images in its image column (None: unknown); see `turns_of`."""
    if columns.conversation:
        return turns_of(row[columns.conversation], images)
    cells = [row.get(name or "") for name in (columns.question, columns.answer)]
    if all(map(is_turns, cells)):
        return turns_of([turn for cell in cells for turn in cell or ()], images)
    question, answer = _question(row, columns), _text(row, columns, "answer") or ""
    if not question.strip():
        raise RejectedRow("empty question")
    parts = with_images(question)
    require_as_many_places(parts, images or 0)
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": with_images(answer)}]


def _numbered(turns: list[Turn], cells: list[Any]) -> tuple[Conversation, list[Any]]:
    """Returns the turns with images numbered, and the images in that order.

    Images without a place in the conversation precede the first question.
    """
    given, shown = iter(cells), []

    def numbered(part: Part) -> Part:
        if part["type"] == "text":
            return part
        shown.append(part["image"] if "image" in part else next(given))
        return image_part(len(shown) - 1)

    conversation = map_parts(
        [{"role": turn["role"], "content": join_texts(turn["content"])} for turn in turns], numbered
    )
    left = list(given)
    first = next((turn for turn in conversation if turn["role"] == "user"), conversation[0])
    first["content"] = [*(image_part(len(shown) + i) for i in range(len(left))), *first["content"]]
    return conversation, shown + left


def _require_sound(conversation: Conversation, columns: Columns) -> None:
    """Raises RejectedRow unless user and assistant take turns, each says something, and the assistant ends it."""
    roles = [turn["role"] for turn in conversation]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        about = _about_text(columns.conversation, f"the turns are {', '.join(roles)}")
        raise RejectedRow("turns that do not go from user to assistant, and end there", about)
    for number, turn in enumerate(conversation):
        if fault := _fault(turn):
            raise RejectedRow(fault, _about_text(columns.conversation, f"turn {number} ({turn['role']})"))


def _fault(turn: Turn) -> str:
    """Returns why a turn cannot be trained on, "" if it can."""
    text, has_image, is_answer = turn_text(turn), bool(images_of([turn])), turn["role"] == "assistant"
    if MARKER_PATTERN.search(text):
        return "reserved characters U+E000 and U+E001"
    if has_image and is_answer:
        return "an image in an answer"
    if not text.strip() and not has_image:
        return "empty answer" if is_answer else "empty question"
    return ""
