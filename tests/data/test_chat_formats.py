"""The chat formats in use give the same conversation; other forms are refused with what was found."""

import json
from typing import Any

import pytest

from vlm_core.data.chat_formats import ChatFormatError, turns_of
from vlm_core.data.examples import Columns, image_paths

ANSWER = {"role": "assistant", "content": "Left."}
TEXT = {"type": "text", "text": "Where?"}
IMAGE = {"type": "image"}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}, ANSWER]


# Each shows one image of the image column, then asks "Where?", and is answered "Left.".
PLACED = {
    "parts and a string (OpenAI, TRL)": user(IMAGE, TEXT),
    "parts alone": [user(IMAGE, TEXT)[0], {"role": "assistant", "content": [{"type": "text", "text": "Left."}]}],
    "keys of other rows": user({**IMAGE, "text": None, "image_url": {"url": None}}, {**TEXT, "image": None}),
    "parts without types": user(IMAGE, {"text": "Where?"}),
    "one part that is not in a list": [
        {"role": "user", "content": "<image>Where?"},
        ANSWER | {"content": {"text": "Left."}},
    ],
    "tags (LLaMA-Factory, ms-swift)": [{"role": "user", "content": "<image>Where?"}, ANSWER],
    "a tag in a text part": user({"type": "text", "text": "<image>\nWhere?"}),
    "ShareGPT and LLaVA": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "Left."}],
    "other speakers": [{"from": "User", "value": "<image>Where?"}, {"from": "model", "value": "Left."}],
    "The Cauldron": [{"user": "<image>Where?", "assistant": "Left.", "source": "x"}],
    "JSON text": json.dumps(user(IMAGE, TEXT)),
    "turns as JSON text": [json.dumps(turn) for turn in user(IMAGE, TEXT)],
    "contents as JSON text": [{"role": "user", "content": json.dumps([IMAGE, TEXT])}, ANSWER],
    "all contents as JSON text": [
        {"role": "user", "content": json.dumps([IMAGE, TEXT])},
        {"role": "assistant", "content": json.dumps("Left.")},
    ],
    "an object of lists (Arrow)": {"role": ["user", "assistant"], "content": ["<image>Where?", "Left."]},
    "parts of OpenAI's responses": user({"type": "image"}, {"type": "input_text", "text": "Where?"}),
}


@pytest.mark.parametrize("form", PLACED)
def test_the_same_conversation(form: str) -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Left."}]}
    assert turns_of(PLACED[form], 1) == [{"role": "user", "content": [IMAGE, TEXT]}, answer]


HELD = {
    "image": ({"type": "image", "image": "a.png"}, "a.png"),
    "image as an object": ({"type": "image", "image": {"path": "a.png"}}, {"path": "a.png"}),
    "image without a type": ({"image": "a.png"}, "a.png"),
    "path (axolotl)": ({"type": "image", "path": "a.png"}, "a.png"),
    "url (axolotl)": ({"type": "image", "url": "a.png"}, "a.png"),
    "base64 (axolotl)": ({"type": "image", "base64": "iVBORw0"}, "data:;base64,iVBORw0"),
    "image_url as an object (OpenAI)": ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "a.png"),
    "image_url as a text": ({"type": "image_url", "image_url": "a.png"}, "a.png"),
    "image_url, a data URL": ({"type": "image_url", "image_url": {"url": "data:;base64,iVBO"}}, "data:;base64,iVBO"),
    "input_image (OpenAI)": ({"type": "input_image", "image_url": "a.png"}, "a.png"),
    "bytes and path": ({"type": "image", "bytes": b"x", "path": "a.png"}, b"x"),
}  # fmt: skip


@pytest.mark.parametrize("form", HELD)
def test_an_image_that_a_part_holds(form: str) -> None:
    part, cell = HELD[form]
    question = turns_of(user(part, TEXT), 0)[0]
    assert question["content"] == [{"type": "image", "image": cell}, TEXT]
    columns = Columns(None, None, None, None, None, "messages")
    paths = ["a.png"] if "a.png" in (cell, *(cell.values() if isinstance(cell, dict) else ())) else []
    for written in (user(part, TEXT), [] if isinstance(cell, bytes) else json.dumps(user(part, TEXT))):
        assert image_paths({"messages": written}, columns) == (paths if written else [])


@pytest.mark.parametrize(
    ("cell", "images", "reason", "detail"),
    [
        ("Where is it?", 0, "a conversation as a text that is not JSON", "'Where is it?'; write the turns as JSON"),
        ("[{'role': 'user'}]", 0, "a conversation as a text that is not JSON", "json.dumps"),
        (7, 0, "a conversation that is not turns", "found 7"),
        (None, 0, "empty conversation", ""),
        ([], 0, "empty conversation", ""),
        ("", 0, "empty conversation", ""),
        (["Where?", "Left."], 0, "a conversation that is not turns", "turn 0: found 'Where?'"),
        ([["Where?", "Left."]], 0, "a conversation that is not turns", "turn 0: found ['Where?', 'Left.']"),
        ([{"speaker": "me", "text": "Where?"}], 0, "a conversation that is not turns", "an object with speaker, text"),
        ([{"role": "user", "value": "Where?"}], 0, "a conversation that is not turns", "an object with role, value"),
        ({"messages": [ANSWER]}, 0, "a conversation that is not turns", "found {messages: "),
        ([{"role": "tool", "content": "x"}], 0, "a role other than", "turn 0: found 'tool'"),
        ([ANSWER | {"weight": 0}], 0, "an answer that is not to be trained on", "turn 0: found weight: 0"),
        ([ANSWER | {"loss": False}], 0, "an answer that is not to be trained on", "train_on=last_answer"),
        ([ANSWER | {"images": ["a.png"]}], 0, "a turn that holds more than its content", "found images"),
        ([ANSWER | {"tool_calls": [{}]}], 0, "a turn that holds more than its content", "found tool_calls"),
        (user("Where?"), 0, "content that is not a text or parts", "found 'Where?'"),
        (user({"type": "video", "video": "a.mp4"}), 0, "content that is neither text nor image", "type: 'video'"),
        (user({"type": "text", "text": "x", "image": "a.png"}), 0, "content that is neither", "image: 'a.png'"),
        (user({"type": "text"}), 0, "a text part without a text", "type: 'text'"),
        (user({"type": "text", "text": ["x"]}), 0, "content that is a list", "found ['x']"),
        (user({"type": "image", "source": {"data": "x"}}), 1, "content that is neither", "source: {data: 'x'}"),
        (user(IMAGE, TEXT), 0, "more <image> than images", "1 places and 0 images"),
        (user({"type": "image_url", "image_url": {"detail": "low"}}), 0, "an image_url without a url", "detail"),
        (user(TEXT, {"type": "text", "text": "<image_1>?"}), 1, "an image tag other than <image>", "'<image_1>'"),
        (user(TEXT, {"type": "text", "text": "<img>a.png</img>"}), 0, "an image tag other than <image>", "<img>"),
        (user(IMAGE, TEXT), 2, "fewer <image> than images", "1 places and 2 images"),
        (user({"type": "image", "image": "a.png"}, TEXT), 1, "fewer <image> than images", "0 places and 1 images"),
    ],
)
def test_forms_that_are_refused(cell: Any, images: int, reason: str, detail: str) -> None:
    with pytest.raises(ChatFormatError) as error:
        turns_of(cell, images)
    assert str(error.value).startswith(reason)
    assert detail in error.value.detail
