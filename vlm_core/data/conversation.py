"""A conversation: the types of its turns and parts, and the functions that traverse them.

A conversation is a list of turns in the message format of Hugging Face:

    [{"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "Left or right?"}]},
     {"role": "assistant", "content": [{"type": "text", "text": "Left."}]}]

A part holds its value under the name of its type. `KINDS` lists the types. An image part holds an index into a table
of images (in the caches), a Pillow image (for a processor), or nothing (in a template).

Outside of prompts (statistics, closed questions, samples, reports, evaluation), the text of a turn is always what
`turn_text` returns: the texts joined with nothing between them. An image between two texts is written as `<image>`.
Images before the first text or after the last one are left out: "Left or right?" is the same question with its image
before or after it.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import Any, NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

# Part type -> the Arrow type that the caches store its value as. To add a type of part, add a line here.
KINDS: dict[str, pa.DataType] = {"text": pa.string(), "image": pa.int32()}


class Part(TypedDict):
    """One piece of a turn. A part read from an Arrow cache has every key; the keys of other types are None."""

    type: str
    text: NotRequired[str | None]
    image: NotRequired[Any]


class Turn(TypedDict):
    """A message of one speaker. Adjacent texts are merged into one part, as chat templates join them anyway."""

    role: str
    content: list[Part]


Conversation = list[Turn]

# The role of each turn and the types of its parts. A rendered chat template depends on this and on the values.
Structure = tuple[tuple[str, tuple[str, ...]], ...]


def arrow_type() -> pa.DataType:
    """Returns the Arrow type that a cache stores a conversation as."""
    part = pa.struct([("type", pa.string()), *KINDS.items()])
    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))


def text_part(text: str) -> Part:
    """Returns a part that holds a text."""
    return {"type": "text", "text": text}


def image_part(image: Any) -> Part:
    """Returns a part that holds an image, or its index."""
    return {"type": "image", "image": image}


def question_turn(text: str, images: Iterable[Any] = ()) -> Turn:
    """Returns a user turn that shows `images` and then asks `text`."""
    return {"role": "user", "content": [*map(image_part, images), text_part(text)]}


def answer_turn(text: str) -> Turn:
    """Returns an assistant turn."""
    return {"role": "assistant", "content": [text_part(text)]}


def values(turns: Iterable[Turn], kind: str) -> Iterator[tuple[str, Any]]:
    """Yields (role, value) of every part of type `kind`, in order."""
    for turn in turns:
        for part in turn["content"]:
            if part["type"] == kind:
                yield turn["role"], own_value(part)


def role_texts(turns: Iterable[Turn]) -> list[tuple[str, str]]:
    """Returns (role, text) of every text part, in order."""
    return list(values(turns, "text"))


def images_of(turns: Iterable[Turn]) -> list[Any]:
    """Returns what the image parts hold, in order."""
    return [image for _, image in values(turns, "image")]


def first_images(turns: Iterable[Turn]) -> list[Any]:
    """Returns what the image parts of the first question hold, in order."""
    return images_of(takewhile(lambda turn: turn["role"] != "assistant", turns))


def structure_of(turns: Iterable[Turn]) -> Structure:
    """Returns the role of each turn and the types of its parts."""
    return tuple((turn["role"], tuple(part["type"] for part in turn["content"])) for turn in turns)


def turn_text(turn: Turn) -> str:
    """Returns the text of a turn for people and scores; the module's docstring states the rule."""
    parts = turn["content"]
    written = [number for number, part in enumerate(parts) if (part.get("text") or "").strip()]
    inside = range(written[0], written[-1]) if written else range(0)
    return "".join(
        part["text"] or "" if part["type"] == "text" else f"<{part['type']}>"
        for number, part in enumerate(parts)
        if part["type"] == "text" or number in inside
    )


def numbered_text(turn: Turn) -> str:
    """Returns the text of a turn with every image as its number in place: `<image 1>` for index 0."""
    return "".join(
        part["text"] or "" if part["type"] == "text" else f"<{part['type']} {own_value(part) + 1}>"
        for part in turn["content"]
    )


def questions_and_answers(turns: Iterable[Turn]) -> list[tuple[str, str]]:
    """Returns (question, answer) texts in order; system turns and a question without an answer are left out."""
    asked, answered = ([turn_text(turn) for turn in turns if turn["role"] == role] for role in ("user", "assistant"))
    return list(zip(asked, answered, strict=False))


def last_question(turns: Iterable[Turn]) -> tuple[str, str]:
    """Returns the texts of the last question and its answer, which an evaluation asks and compares with."""
    return questions_and_answers(turns)[-1]


def add_to_question(turns: Iterable[Turn], text: str) -> Conversation:
    """Returns the conversation with `text` on a new line after its last question."""
    turns = list(turns)
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "user")
    added = [text_part(f"\n{text}")]
    return [
        {"role": turn["role"], "content": join_texts([*turn["content"], *(added if number == last else ())])}
        for number, turn in enumerate(turns)
    ]


def map_parts(turns: Iterable[Turn], change: Callable[[Part], Part]) -> Conversation:
    """Returns the conversation with `change` applied to every part, in order."""
    return [{"role": turn["role"], "content": [change(part) for part in turn["content"]]} for turn in turns]


def map_images(turns: Iterable[Turn], change: Callable[[Any], Any]) -> Conversation:
    """Returns the conversation with `change` applied to the value of every image part, in order.

    Removes the empty keys that come from Arrow rows: some chat templates test keys instead of types.
    """

    def changed(part: Part) -> Part:
        kind, value = part["type"], own_value(part)
        return cast(Part, {"type": kind, kind: change(value) if kind == "image" else value})

    return map_parts(turns, changed)


def own_value(part: Part) -> Any:
    """Returns the value that a part holds under the name of its type."""
    return cast(dict[str, Any], part)[part["type"]]


def fill(structure: Structure, texts: Iterator[str]) -> Conversation:
    """Returns a conversation of `structure` with `texts` in its text parts; its other parts are empty."""
    return [
        {"role": role, "content": [text_part(next(texts)) if kind == "text" else {"type": kind} for kind in kinds]}
        for role, kinds in structure
    ]


def without_images(turns: Iterable[Turn]) -> Conversation:
    """Returns the conversation without its images; texts that an image separated stay separate words."""
    return [
        {"role": turn["role"], "content": join_texts((p for p in turn["content"] if p["type"] != "image"), " ")}
        for turn in turns
    ]


def join_texts(parts: Iterable[Part], separator: str = "") -> list[Part]:
    """Returns parts with adjacent texts merged; `separator` is added unless one side already has a space there."""
    joined: list[Part] = []
    for part in parts:
        if not (joined and part["type"] == joined[-1]["type"] == "text"):
            joined.append(part)
            continue
        left, right = joined[-1]["text"] or "", part["text"] or ""
        is_separate = not left or not right or left[-1].isspace() or right[0].isspace()
        joined[-1] = text_part(left + ("" if is_separate else separator) + right)
    return joined


def shown_images(conversations: pa.ChunkedArray) -> set[int]:
    """Returns the indices of all images in a column of conversations of an Arrow cache."""
    column: Any = conversations
    for name in ("content", "image"):
        flat = pc.call_function("list_flatten", [column])
        column = pc.call_function("struct_field", [flat], pc.StructFieldOptions([name]))
    return set(column.drop_null().unique().to_pylist())
