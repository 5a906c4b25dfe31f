"""Reads the chat formats in use: each becomes turns `{"role", "content"}` whose content is a list of parts.

| format | a turn |
|---|---|
| OpenAI, TRL, ms-swift, LLaMA-Factory | `{"role": "user", "content": "text"}`, or content as a list of parts |
| ShareGPT, LLaVA | `{"from": "human", "value": "text"}` |
| The Cauldron | `{"user": "text", "assistant": "text"}` |

A part is a text, `{"type": "text", "text"}`, or an image. `{"type": "image"}` takes the next image of the image column;
an image part may also hold its image (`image`, `image_url`, `url`, `path`, `base64`). In a text, `<image>` marks the
place of the next image of the image column. Everything else is refused: a guess would end up in the training data.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_core.data.cells import NoTextError, shown, text_of
from vlm_core.data.conversation import Part, Turn, image_part, text_part

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
TURN_FORMS = (("role", "content"), ("from", "value"), ("user", "assistant"))
UNDERSTOOD = "turns {role, content}, {from, value} or {user, assistant}"
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
IMAGE_KEYS = ("image", "image_url", "url", "path", "base64", "bytes")  # keys of an image part that may hold its image
PARTS = "parts {type: text, text} and {type: image} with image, image_url, url, path or base64"
PLACEHOLDER = re.compile("\n?<image>\n?")  # with the line breaks around it
OTHER_TAGS = re.compile(
    r"<image[ _]?\d+>|<\|image(_\d+|_pad)?\|>|<ImageHere>|<img>.*?</img>|<video>|<audio>|<start_of_image>",
    re.IGNORECASE,
)
# Keys that exclude an answer from training, and the values that do so.
UNTRAINED = {"weight": 0, "train": False, "loss": False}
# Keys of a turn with content besides its text.
MORE = ("image", "images", "audio", "video", "tool_calls", "function_call", "reasoning_content", "thinking")


class ChatFormatError(ValueError):
    """A conversation in an unsupported form. The message is the reason; `detail` shows what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def turns_of(cell: Any, images: int | None) -> list[Turn]:
    """Returns the turns of a conversation; `images` is the number of images in the row's image column (None: unknown).

    An image part has its image under `image`, unless it takes the next image of the column.
    Raises ChatFormatError for an unsupported form, and if the numbers of `<image>` and images differ.
    """
    items = _listed(cell)
    turns = list(_turns(items))
    texts = [turn["content"] for turn in turns if isinstance(turn["content"], str)]
    if any(_is_parts_text(text) for text in texts):
        turns = [turn | {"content": _content_of_json(turn["content"], texts)} for turn in turns]
    conversation: list[Turn] = [{"role": turn["role"], "content": list(_parts(turn["content"]))} for turn in turns]
    if images is not None:
        parts = [part for turn in conversation for part in turn["content"]]
        require_as_many_places(parts, images, strict=_is_sharegpt(items))
    return conversation


def require_as_many_places(parts: list[Part], images: int, *, strict: bool = False) -> None:
    """Raises ChatFormatError if the parts have places for more or fewer images than there are.

    If there is no place at all, the images precede the text; with `strict` that is an error too.
    """
    places = sum(part["type"] == "image" and "image" not in part for part in parts)
    if places != images and (places or strict or any("image" in part for part in parts)):
        more = "more" if places > images else "fewer"
        raise ChatFormatError(f"{more} <image> than images", f"found {places} places and {images} images")


def is_turns(cell: Any) -> bool:
    """Returns whether a cell is a list of turns and not one text."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(t, dict) and _form_of(t) for t in cell)


def with_images(text: str) -> list[Part]:
    """Returns the parts of a text; each `<image>` becomes an image part."""
    if tag := OTHER_TAGS.search(text):
        raise ChatFormatError("an image tag other than <image>", f"found {shown(tag[0])}")
    first, *others = PLACEHOLDER.split(text)
    parts: list[Part] = [text_part(first)]
    for other in others:
        parts.extend(({"type": "image"}, text_part(other)))
    return [part for part in parts if part.get("text") != ""] if others else parts


def _is_sharegpt(items: list[Any]) -> bool:
    return any(isinstance(item, Mapping) and item.get("from") is not None for item in items)


def _listed(cell: Any) -> list[Any]:
    """Returns the list of turns in a cell, which may be a list, JSON text, or an object of lists (from Arrow)."""
    if isinstance(cell, str):
        cell = _decoded(cell)
    if isinstance(cell, Mapping):
        for keys in TURN_FORMS:
            columns = [cell.get(key) for key in keys]
            if all(isinstance(column, list) for column in columns):
                cell = [dict(zip(keys, pair, strict=False)) for pair in zip(*columns, strict=False)]
                break
    if isinstance(cell, Mapping) or not isinstance(cell, list | tuple):
        if cell is None:
            raise ChatFormatError("empty conversation")
        raise ChatFormatError(f"a conversation that is not {UNDERSTOOD}", f"found {shown(cell)}")
    if not cell:
        raise ChatFormatError("empty conversation")
    return list(cell)


def _decoded(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        remedy = "write the turns as JSON (json.dumps)"
        raise ChatFormatError("a conversation as a text that is not JSON", f"found {shown(text)}; {remedy}") from None


def _turns(items: list[Any]) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(items):
        place = f"turn {number}: "
        turn = _decoded_turn(item)
        if not isinstance(turn, Mapping):
            raise ChatFormatError(f"a conversation that is not {UNDERSTOOD}", f"{place}found {shown(item)}")
        turn = _filled(turn)
        form = _form_of(turn)
        if form is None:
            raise ChatFormatError(f"a conversation that is not {UNDERSTOOD}", f"{place}found {_names(turn)}")
        _require_text_alone(turn, place)
        if form == ("user", "assistant"):
            yield from ({"role": role, "content": turn[role]} for role in form)
        else:
            role = _role(turn[form[0]], place)
            if form[1] not in turn and len(turn) > 1:
                remedy = f"the text belongs under {form[1]!r}"
                raise ChatFormatError(f"a turn without {form[1]}", f"{place}found {_names(turn)}; {remedy}")
            if role == "assistant":
                _require_trained(turn, place)
            yield {"role": role, "content": turn.get(form[1])}


def _decoded_turn(item: Any) -> Any:
    """Returns a turn, decoded if it is JSON text: older versions of `datasets` store turns with mixed keys that way."""
    if not isinstance(item, str) or not item.lstrip().startswith("{"):
        return item
    try:
        return json.loads(item)
    except ValueError:
        return item


def _form_of(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the keys of a turn's speaker and content; the content may be missing: it is rejected later as empty."""
    for speaker, content in TURN_FORMS[:2]:
        if speaker in turn and not ({"content", "value"} - {content}) & turn.keys():
            return speaker, content
    return ("user", "assistant") if {"user", "assistant"} <= turn.keys() else None


def _role(speaker: Any, place: str) -> str:
    role = SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise ChatFormatError("a role other than system, user and assistant", f"{place}found {shown(speaker)}")
    return role


def _require_trained(turn: Mapping[str, Any], place: str) -> None:
    """Raises ChatFormatError for an answer that is marked as excluded from training."""
    for key, value in UNTRAINED.items():
        if key in turn and turn[key] == value:
            remedy = "to train on the last answer alone, set dataset.train_on=last_answer and delete the key"
            raise ChatFormatError("an answer that is not to be trained on", f"{place}found {key}: {value!r}; {remedy}")


def _require_text_alone(turn: Mapping[str, Any], place: str) -> None:
    """Raises ChatFormatError for a turn with images or thoughts outside its content."""
    if more := [key for key in MORE if turn.get(key)]:
        remedy = "write images as parts of the content"
        raise ChatFormatError("a turn that holds more than its content", f"{place}found {', '.join(more)}; {remedy}")


def _filled(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping without empty values: a table fills missing keys of a row with null."""

    def is_empty(value: Any) -> bool:
        return value is None or (isinstance(value, Mapping) and bool(value) and all(map(is_empty, value.values())))

    return {key: value for key, value in mapping.items() if not is_empty(value)}


def _is_parts_text(text: str) -> bool:
    """Returns whether a text is a list of parts as JSON."""
    if not text.lstrip().startswith("[{"):
        return False
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(p, dict) and ("type" in p or "text" in p) for p in found)


def _content_of_json(content: Any, texts: list[str]) -> Any:
    """Returns the decoded content of a turn, in a conversation that has parts as JSON text.

    If all contents are JSON, plain texts are JSON strings too: `datasets` writes a column of mixed types that way.
    """
    if not isinstance(content, str):
        return content
    if _is_parts_text(content) or (content[:1] == '"' and all(map(_is_json_content, texts))):
        return json.loads(content)
    return content


def _is_json_content(text: str) -> bool:
    try:
        return isinstance(json.loads(text), str | list)
    except ValueError:
        return False


def _parts(content: Any) -> Iterator[Part]:
    if isinstance(content, Mapping):
        content = [content]
    if content is None:
        content = ""
    if not isinstance(content, list | tuple):
        yield from with_images(_text(content))
        return
    for part in content:
        if not isinstance(part, Mapping):
            raise ChatFormatError(f"content that is not a text or {PARTS}", f"found {shown(part)}")
        yield from _part(_filled(part))


def _part(part: dict[str, Any]) -> Iterator[Part]:
    """Yields the normalised parts of one part, which has no empty keys."""
    kind = part.get("type") or ("text" if "text" in part else "image" if part.keys() & {*IMAGE_KEYS} else None)
    if {"bytes", "path"} <= part.keys():
        part = {key: value for key, value in part.items() if key != "path"}
    held = [key for key in IMAGE_KEYS if key in part]
    if kind in TEXT_TYPES and not held:
        if "text" not in part:
            raise ChatFormatError("a text part without a text", f"found {shown(part)}")
        yield from with_images(_text(part["text"]))
    elif kind in IMAGE_TYPES and "text" not in part and (len(held) == 1 or not (held or _holds_more(part))):
        yield image_part(_image(held[0], part[held[0]])) if held else {"type": "image"}
    else:
        raise ChatFormatError("content that is neither text nor image", f"found {shown(part)}; understood are {PARTS}")


def _holds_more(part: dict[str, Any]) -> bool:
    """Returns whether an image part without an image has content under an unknown key."""
    return any(isinstance(value, Mapping | list | bytes) for value in part.values())


def _image(key: str, value: Any) -> Any:
    """Returns the cell that an image part holds under a key: a path, an address, bytes, or `{bytes, path}`."""
    if key == "image_url" and isinstance(value, Mapping):
        if not value.get("url"):
            raise ChatFormatError("an image_url without a url", f"found {shown(value)}")
        value = value["url"]
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        value = f"data:;base64,{value}"
    return value


def _text(value: Any) -> str:
    try:
        return text_of(value) or ""
    except NoTextError as error:
        raise ChatFormatError(f"content that is {error}", f"found {error.detail}") from None


def _names(turn: Mapping[str, Any]) -> str:
    return f"an object with {', '.join(turn) or 'nothing'}"
