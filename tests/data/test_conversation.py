"""The walker over conversations: one rule for the text around an image, and one place for a new type of part."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.data.rows import conversations_of
from vlm_core.cache import read_manifest
from vlm_core.data import conversation
from vlm_core.data.conversation import (
    Conversation,
    answer_turn,
    arrow_type,
    fill,
    first_images,
    image_part,
    images_of,
    last_question,
    map_images,
    question_turn,
    questions_and_answers,
    shown_images,
    structure_of,
    text_part,
    turn_text,
    values,
    without_images,
)
from vlm_core.data.conversation_dataset import ConversationDataset
from vlm_core.data.statistics import STATISTICS
from vlm_core.evaluation.scores import question_of
from vlm_core.files import read_json
from vlm_core.pages.data_report import samples

SOURCE = Path(__file__).parents[2]


def user(*contents: str | int) -> Any:
    return {"role": "user", "content": [text_part(c) if isinstance(c, str) else image_part(c) for c in contents]}


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ((0, "Left or right?"), "Left or right?"),
        (("Left or right?", 0), "Left or right?"),
        ((0, 1, "Left or right?"), "Left or right?"),
        (("First scan ", 0, " and now: left or right?"), "First scan <image> and now: left or right?"),
        (("First scan", 0, "and now?"), "First scan<image>and now?"),
        ((0, "First ", 1, 2, " then ", 3), "First <image><image> then "),
        (("", 0, "Left or right?", 1, " "), "Left or right? "),
        ((0,), ""),
        ((), ""),
        ((" kept \n",), " kept \n"),
    ],
)
def test_an_image_is_named_between_texts_only(contents: tuple[str | int, ...], text: str) -> None:
    assert turn_text(user(*contents)) == text


def test_what_walks_over_a_conversation() -> None:
    turns: Conversation = [
        {"role": "system", "content": [text_part("Be brief.")]},
        question_turn("First?", [7, 5]),
        answer_turn("One."),
        user("Then ", 7, " again?"),
        answer_turn("Two."),
    ]
    assert images_of(turns) == [7, 5, 7]
    assert first_images(turns) == [7, 5]
    assert questions_and_answers(turns) == [("First?", "One."), ("Then <image> again?", "Two.")]
    assert last_question(turns) == ("Then <image> again?", "Two.")
    assert images_of(map_images(turns, lambda image: image * 2)) == [14, 10, 14]
    texts = ["Be brief.", "First?", "One.", "Then ", " again?", "Two."]
    assert structure_of(fill(structure_of(turns), iter(texts))) == structure_of(turns)
    assert images_of(turns) == [7, 5, 7]  # nothing changed in place


@pytest.mark.parametrize(
    ("contents", "text"),
    [(("a ", 0, " b"), "a  b"), (("a", 0, "b"), "a b"), ((0, "a", 1), "a"), (("a", 0, 1, "b"), "a b")],
)
def test_without_images_words_stay_apart(contents: tuple[str | int, ...], text: str) -> None:
    assert without_images([user(*contents)]) == [user(text)]


def test_an_arrow_row_is_walked_like_what_was_written() -> None:
    turns = [user("a ", 3, " b", 1), answer_turn("c")]
    (row,) = pa.array([turns], arrow_type()).to_pylist()
    assert map_images(row, lambda image: image) == turns
    assert shown_images(pa.chunked_array([[turns], [[user("d")]]], arrow_type())) == {1, 3}


def test_a_type_of_part_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conversation.KINDS, "video", pa.int32())
    turns: Any = [{"role": "user", "content": [text_part("See "), {"type": "video", "video": 4}, text_part(".")]}]
    (row,) = pa.array([turns], arrow_type()).to_pylist()
    assert [*values(row, "video")] == [("user", 4)]
    assert map_images(row, str) == turns
    assert structure_of(row) == (("user", ("text", "video", "text")),)
    assert turn_text(row[0]) == "See <video>."


def test_no_other_module_walks_over_parts() -> None:
    """Readers of a dataset's own rows build conversations; nothing else looks into a turn."""
    # Python code has double quotes; the chat templates of the tiny models have single ones.
    walk = re.compile(r'\["content"\]|\["type"\] [!=]= "(text|image)"')
    allowed = {f"vlm_core/data/{name}.py" for name in ("conversation", "examples", "chat_formats")}
    files = [path for top in ("vlm_core", "tasks", "pipelines", "benchmarks") for path in (SOURCE / top).rglob("*.py")]
    walking = {str(p.relative_to(SOURCE)) for p in files if walk.search(p.read_text(encoding="utf-8"))}
    assert walking <= allowed
    assert "vlm_core/data/conversation.py" in walking


def test_everything_reads_a_question_with_an_inline_image_alike(home: Path) -> None:
    asked = "First scan <image> and now: left or right?"
    rows = [
        {
            "messages": [{"from": "human", "value": asked}, {"from": "gpt", "value": ("Left", "Right.")[i % 2]}],
            "images": [f"images/{i % 6}.png"],
        }
        for i in range(46)
    ]
    cache, _ = conversations_of(home, rows)
    assert read_manifest(cache)["closed_questions"] == {asked: ["left", "right"]}
    assert read_json(cache / STATISTICS)["splits"]["train"]["question_words"]["max"] == len(asked.split())
    row = ConversationDataset(cache, "validation").conversations[0]
    question = question_of(row, [], read_manifest(cache)["closed_questions"], set(), set())
    assert (question.question, question.answers) == (asked, ("left", "right"))
    assert {sample["turns"][0] for sample in samples(cache)} == {("user", asked)}


def test_the_last_question_counts_as_closed_after_other_turns(home: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        answer = ("Left", "Right")[number % 2]
        texts = [
            ("system", "Be brief."),
            ("user", f"Case {number}?"),
            ("assistant", "A mass."),
            ("user", "Which side?"),
        ]
        turns = [*texts, ("assistant", answer)]
        return {"messages": [{"role": role, "content": text} for role, text in turns], "images": []}

    cache, _ = conversations_of(home, [row(number) for number in range(24)])
    assert read_manifest(cache)["closed_questions"] == {"Which side?": ["left", "right"]}
