"""Rows that are conversations already: several turns, several images, ShareGPT's form, and what is rejected."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import small_config
from tests.data.rows import conversations_of, shape, turns
from vlm_core.cache import read_manifest
from vlm_core.data.prepare import prepare_conversations


def test_conversations_of_several_turns_and_images(home: Path) -> None:
    two = ["images/0.png", "images/3.png"]
    rows = [
        {"messages": turns("What?", "This.", "And there?", "That."), "images": two},
        {"messages": turns("Without?", "Yes."), "images": []},
        {"messages": turns("One?", "Yes."), "images": ["images/1.png"]},
    ]
    _, examples = conversations_of(home, rows)
    assert [shape(example) for example in examples] == [
        [["IMAGE", "IMAGE", "What?"], ["This."], ["And there?"], ["That."]],
        [["Without?"], ["Yes."]],
        [["IMAGE", "One?"], ["Yes."]],
    ]
    shown = [part["image"].getpixel((0, 0))[0] for part in examples[0]["conversation"][0]["content"][:2]]
    assert shown == [0, 120]
    # Without a column for it, a case is an image; a text stands for itself.
    assert len({example["case_id"] for example in examples}) == 3


def test_images_stand_where_the_conversation_puts_them(home: Path) -> None:
    def parts(*kinds: str) -> list[dict[str, Any]]:
        return [{"type": "image", "text": None} if k == "IMAGE" else {"type": "text", "text": k} for k in kinds]

    messages = [
        {"role": "system", "content": parts("Be brief.")},
        {"role": "user", "content": parts("First", "IMAGE", "then", "IMAGE")},
        {"role": "assistant", "content": parts("Fine.")},
    ]
    rows = [
        {"messages": messages, "images": ["images/2.png", "images/1.png"]},
        {"messages": messages, "images": ["images/2.png"]},
        {"messages": messages, "images": ["images/2.png", "images/1.png", "images/0.png"]},
    ]
    cache, (example,) = conversations_of(home, rows)
    assert shape(example) == [["Be brief."], ["First", "IMAGE", "then", "IMAGE"], ["Fine."]]
    assert [part["image"].getpixel((0, 0))[0] for part in example["conversation"][1]["content"][1::2]] == [80, 40]
    reasons = {reason: reject["rows"] for reason, reject in read_manifest(cache)["rejects"].items()}
    assert reasons == {"more <image> than images": 1, "fewer <image> than images": 1}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (turns("What?"), "turns that do not go"),
        (turns("What?", "This.", "And?"), "turns that do not go"),
        ([*turns("What?", "This."), *turns("", "Fine.")], "empty question"),
        (turns("What?", "  "), "empty answer"),
        ([], "empty conversation"),
        ([{"role": "doctor", "content": "Hm."}, *turns("What?", "This.")], "a role other than"),
        (turns("Wh\ue0003\ue001at?", "This."), "reserved characters"),
    ],
)
def test_conversations_that_are_rejected(messages: list[dict[str, Any]], reason: str, home: Path) -> None:
    good = {"messages": turns("One?", "Yes."), "images": ["images/1.png"]}
    cache, examples = conversations_of(home, [good, {"messages": messages, "images": []}])
    assert len(examples) == 1
    assert [found.startswith(reason) for found in read_manifest(cache)["rejects"]] == [True]


def sharegpt(*texts: str, speakers: tuple[str, str] = ("human", "gpt")) -> list[dict[str, Any]]:
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]


def test_sharegpt_rows_are_the_same_conversations(home: Path) -> None:
    rows = [
        {"messages": sharegpt("<image>\nWhat?", "This.", "And there?", "That."), "images": ["images/3.png"]},
        {"messages": sharegpt("First <image> then\n<image>", "Two.", speakers=("user", "assistant")),
         "images": ["images/2.png", "images/1.png"]},
        {"messages": [{"from": "system", "value": "Be brief."}, *sharegpt("Without?", "Yes.")], "images": []},
        {"messages": sharegpt("One\nline?\n", "\nYes.\n"), "images": []},
    ]  # fmt: skip
    cache, examples = conversations_of(home, rows)
    assert read_manifest(cache)["rejects"] == {}
    assert [shape(example) for example in examples] == [
        [["IMAGE", "What?"], ["This."], ["And there?"], ["That."]],
        [["First ", "IMAGE", " then", "IMAGE"], ["Two."]],
        [["Be brief."], ["Without?"], ["Yes."]],
        [["One\nline?\n"], ["\nYes.\n"]],
    ]
    shown = [part["image"].getpixel((0, 0))[0] for part in examples[1]["conversation"][0]["content"][1::2]]
    assert shown == [80, 40]


@pytest.mark.parametrize(
    ("messages", "images", "reason"),
    [
        (sharegpt("<image>\nWhat?", "This."), [], "more <image> than images"),
        (sharegpt("<image><image>What?", "This."), ["images/1.png"], "more <image> than images"),
        (sharegpt("What?", "This."), ["images/1.png"], "fewer <image> than images"),
        (sharegpt("<image>What?", "This."), None, "more <image> than images"),
        (sharegpt("What?", "This <image>."), ["images/1.png"], "an image in an answer"),
        (sharegpt("What?", "This.", speakers=("tool", "gpt")), [], "a role other than"),
        (sharegpt("", "This."), [], "empty question"),
        (
            [*sharegpt("What?", "This."), {"from": "human", "value": None}, {"from": "gpt", "value": "No."}],
            [],
            "empty question",
        ),
    ],
)
def test_sharegpt_rows_that_are_rejected(messages: Any, images: Any, reason: str, home: Path) -> None:
    good = {"messages": sharegpt("<image>One?", "Yes."), "images": ["images/1.png"]}
    cache, examples = conversations_of(home, [good, {"messages": messages, "images": images}])
    assert len(examples) == 1
    assert [found.startswith(reason) for found in read_manifest(cache)["rejects"]] == [True]


def test_a_share_of_rejects_stops_the_run_and_says_why(home: Path) -> None:
    rows = [{"messages": turns("One?", "Yes."), "images": []}] * 8 + [{"messages": turns("One?", ""), "images": []}]
    allowed = {"dataset.max_reject_share": 0.09}
    with pytest.raises(ValueError, match=r"1 rows \(10.00%\) were rejected.* allows 9.00%. empty answer: .*train-8"):
        conversations_of(home, rows, **allowed)
    # Also when the cache is there already.
    config = {"dataset.conversation_column": "messages", "dataset.image_column": "images", "dataset.mode_column": None}
    config |= {"dataset.path_or_dataset": str(home / "data-set"), "dataset.case_column": None}
    with pytest.raises(ValueError, match=r"allows 0.00%"):
        prepare_conversations(small_config(**config, **{"dataset.max_reject_share": 0.0}))
    prepare_conversations(small_config(**config, **{"dataset.max_reject_share": 0.1}))


def test_neighbouring_texts_are_one(home: Path) -> None:
    texts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    rows = [{"messages": [{"role": role, "content": texts} for role in ("system", "user", "assistant")], "images": []}]
    _, (example,) = conversations_of(home, rows)
    assert shape(example) == [["AB"], ["AB"], ["AB"]]
