"""A thought is kept beside the answer, and no score reads it."""

from typing import Any

import pytest

from tests.conftest import tiny_directory
from tests.other_models import directory_of
from vlm_core.data.thoughts import open_mark, split_thought
from vlm_core.generation.decode import stop_tokens, to_answer
from vlm_core.models.chat import GenericChat, load_chat

CASES = {
    "none": ("Mass.", "", "Mass."),
    "closed": ("<think>Round.</think>\n\nMass.", "<think>Round.</think>", "Mass."),
    "empty": ("<think>\n\n</think>\n\nMass.", "<think>\n\n</think>", "Mass."),
    "cut off": ("<think>Round, so", "<think>Round, so", ""),
    "two": ("<think>A</think>Mass<think>B</think>.", "<think>A</think><think>B</think>", "Mass."),
    "Mistral": ("[THINK]Round.[/THINK]Mass.", "[THINK]Round.[/THINK]", "Mass."),
    "Kimi": ("◁think▷Round.◁/think▷Mass.", "◁think▷Round.◁/think▷", "Mass."),
    "another's mark": ("<think>Round.[/THINK]</think>Mass.", "<think>Round.[/THINK]</think>", "Mass."),
    "compared with": ("T < 5 mm", "", "T < 5 mm"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_thought_is_cut_out_of_the_answer(kind: str) -> None:
    written, thought, answer = CASES[kind]
    found = split_thought(written)
    assert (found[0], found[1].strip()) == (thought, answer)


@pytest.mark.parametrize(
    ("written", "thought", "answer"),
    [
        ("Round.</think>Mass.", "Round.</think>", "Mass."),
        ("Round, so", "Round, so", ""),
        ("</think>M", "</think>", "M"),
    ],
)
def test_a_prompt_may_begin_the_thought(written: str, thought: str, answer: str) -> None:
    assert split_thought(written, "<think>") == (thought, answer)


def test_a_thought_is_open_until_it_ends() -> None:
    assert open_mark("assistant\n<think>\n") == "<think>"
    assert open_mark("<|turn>model\n<|channel>thought\n") == "<|channel>"
    assert open_mark("<|turn>model\n<|channel>thought\n<channel|>") == open_mark("assistant\n") == ""


@pytest.mark.parametrize("name", ["gemma4_26b", "idefics3"])
def test_marks_of_special_tokens_and_of_plain_text(name: str) -> None:
    chat = load_chat(tiny_directory(name) if name == "gemma4_26b" else directory_of(name))
    start, end = ("<|channel>", "<channel|>") if name == "gemma4_26b" else ("<think>", "</think>")
    ids: list[int] = chat.processor.tokenizer(f"{start}Round.{end}A mass.", add_special_tokens=False)["input_ids"]
    stop = min(stop_tokens(chat))
    answer = to_answer([*ids, stop], chat)
    assert (answer.text, answer.thought, answer.truncated) == ("A mass.", f"{start}Round.{end}", False)
    unfinished = to_answer(ids[:2], chat)
    assert unfinished.truncated
    assert to_answer([stop], chat).text == to_answer([stop], chat).thought == ""


def test_the_end_of_a_thought_that_the_prompt_began() -> None:
    chat = load_chat(directory_of("idefics3"))

    class Reasoning:
        tokenizer = chat.processor.tokenizer

        def apply_chat_template(self, *arguments: Any, **options: Any) -> str:
            return chat.processor.apply_chat_template(*arguments, **options) + "<think>\n"

    ids = chat.processor.tokenizer("Round.</think> A mass.", add_special_tokens=False)["input_ids"]
    answer = to_answer(ids, GenericChat(Reasoning(), chat.family))
    assert (answer.text, answer.thought) == ("A mass.", "Round.</think>")
