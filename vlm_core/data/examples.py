"""How a row becomes an example: a conversation in the Hugging Face message format, its images, its case.

A row has an image, a question and an answer in columns of their own, as in MedPix-VQA, or a whole conversation:
turns `{"role", "content"}` whose content is a text, or a list of `{"type": "text", "text"}` and `{"type": "image"}`.
An image part may hold its image; those that do not take the images of the image column, in their order. In turns of
ShareGPT's and LLaVA's form, `{"from": "human" | "gpt" | ..., "value"}`, each `<image>` in a text is such a part.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_core.data.conversation import (
    Conversation,
    Part,
    answer_turn,
    image_part,
    images_of,
    join_texts,
    map_parts,
    question_turn,
    text_part,
    turn_text,
)
from vlm_core.data.image_folder import ImageError, ImageFolder
from vlm_core.data.markers import MARKER_PATTERN

ROLES = ("system", "user", "assistant")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # of ShareGPT; those named as the roles are are themselves
PLACEHOLDER = re.compile("\n?<image>\n?")  # with the line break that sets it apart from the text


class RejectedRow(ValueError):
    """A row that cannot be trained on; the message is the reason it is counted under, `about` tells of this row."""

    def __init__(self, reason: str, about: Callable[[], str] = str) -> None:
        super().__init__(reason)
        self.about = about


@dataclass(frozen=True)
class Columns:
    """The names of a dataset's columns; None where it has none of that kind."""

    image: str | None
    question: str | None
    answer: str | None
    case: str | None
    mode: str | None
    conversation: str | None

    @property
    def settings(self) -> dict[str, str]:
        """Returns `{config key: column}` of those that are used."""
        return {f"{name}_column": column for name, column in vars(self).items() if column is not None}


# What a function of the user's returns.
FUNCTION_COLUMNS = Columns(None, None, None, "case_id", "mode", "conversation")


@dataclass(frozen=True)
class Example:
    """A conversation whose image parts hold indices into `images`, and which case and mode it belongs to."""

    conversation: Conversation
    images: list[bytes]
    case: str | None
    mode: str | None


def example_of(row: dict[str, Any], columns: Columns, folder: ImageFolder) -> Example:
    """Returns the example of a row.

    Raises RejectedRow for one without question or answer (an empty answer would train the model to say nothing), an
    image that is not there, or a conversation that does not end with an answer.
    """
    try:
        cells = _image_cells(row, columns)
        conversation, shown = (
            _whole(row[columns.conversation], cells) if columns.conversation else _single(row, columns, cells)
        )
        _require_sound(conversation)
        images = [folder.encoded(cell) for cell in shown]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):  # of turns and parts that are none
        raise RejectedRow("malformed conversation") from None
    except ImageError as error:
        raise RejectedRow(str(error), _about_image(error, columns)) from None
    except ValueError as reason:
        raise RejectedRow(str(reason)) from None
    case, mode = (None if name is None else row[name] for name in (columns.case, columns.mode))
    return Example(conversation, images, None if case is None else str(case), None if mode is None else str(mode))


def _about_image(error: ImageError, columns: Columns) -> Callable[[], str]:
    where = f"dataset.image_column={columns.image}: " if columns.image else ""
    return lambda: f"{where}{error.detail}" if error.detail else ""


def _image_cells(row: dict[str, Any], columns: Columns) -> list[Any]:
    if columns.image is None:
        return []
    cell = row[columns.image]
    # Nothing where an image belongs is a defect of the dataset; an empty list says that a row has none.
    if cell is None and columns.conversation is None:
        raise RejectedRow("no image")
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def _single(row: dict[str, Any], columns: Columns, cells: list[Any]) -> tuple[Conversation, list[Any]]:
    assert columns.question
    assert columns.answer
    # A table may have read the answer 2 as a number.
    question, answer = ("" if row[name] is None else str(row[name]) for name in (columns.question, columns.answer))
    if not question.strip():
        raise RejectedRow("empty question")
    return [question_turn(question, range(len(cells))), answer_turn(answer)], cells


def _whole(turns: Any, cells: list[Any]) -> tuple[Conversation, list[Any]]:
    """Returns the turns with images numbered, and the images in that order."""
    if not turns:
        raise RejectedRow("empty conversation")
    if isinstance(turns, list):  # `datasets` hands on turns of JSON as texts where they have not all the same keys
        turns = [json.loads(turn) if isinstance(turn, str) else turn for turn in turns]
    if any(turn.get("from") is not None for turn in turns):
        turns = _sharegpt_turns(turns, len(cells))
    given, shown = iter(cells), []

    def numbered(part: Part) -> Part:
        if part["type"] == "text":
            return text_part(part.get("text") or "")
        if part["type"] != "image":
            raise RejectedRow("content that is neither text nor image")
        own = part.get("image")
        shown.append(next(given, None) if own is None else own)
        return image_part(len(shown) - 1)

    conversation = map_parts([{"role": turn["role"], "content": _parts(turn["content"])} for turn in turns], numbered)
    left = list(given)
    if left and shown:
        raise RejectedRow("more images than the conversation shows")
    first = next((turn for turn in conversation if turn["role"] == "user"), conversation[0])
    first["content"] = [*map(image_part, range(len(left))), *first["content"]]
    return conversation, shown or left


def _sharegpt_turns(turns: Any, images: int) -> Conversation:
    """Returns turns `{"from", "value"}` as roles and parts; each `<image>` is the next one of the row's `images`."""
    placeholders = sum(len(PLACEHOLDER.findall(turn["value"] or "")) for turn in turns)
    if placeholders != images:
        raise RejectedRow(f"{'more' if placeholders > images else 'fewer'} <image> than images")

    def content(value: str) -> list[Part]:
        first, *others = PLACEHOLDER.split(value)
        parts: list[Part] = [text_part(first)]
        for text in others:
            parts.extend(({"type": "image"}, text_part(text)))
        return [part for part in parts if part.get("text") != ""]

    return [
        {"role": SPEAKERS.get(turn["from"], turn["from"]), "content": content(turn["value"] or "")} for turn in turns
    ]


def _parts(content: Any) -> list[Part]:
    """Returns the parts of a turn whose content is a text or a list of parts; neighbouring texts become one."""
    return [text_part(content)] if isinstance(content, str) else join_texts(content or [])


def _require_sound(conversation: Conversation) -> None:
    """Raises RejectedRow unless user and assistant take turns, each says something, and the assistant ends it."""
    roles = [turn["role"] for turn in conversation]
    if not set(roles) <= set(ROLES):
        raise RejectedRow("a role other than system, user and assistant")
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise RejectedRow("turns that do not go from user to assistant, and end there")
    for turn in conversation:
        text, has_image = turn_text(turn), bool(images_of([turn]))
        if MARKER_PATTERN.search(text):
            raise RejectedRow("reserved characters U+E000 and U+E001")
        if has_image and turn["role"] == "assistant":
            raise RejectedRow("an image in an answer")
        if not text.strip() and not has_image:
            raise RejectedRow("empty answer" if turn["role"] == "assistant" else "empty question")
