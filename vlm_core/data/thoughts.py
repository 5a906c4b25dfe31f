"""Thoughts: what a model writes for itself before its answer, between two marks of its chat template."""

import re
from functools import lru_cache
from typing import Any

from vlm_core.data.chat_template import render
from vlm_core.data.conversation import question_turn, structure_of

# The marks around a thought: Qwen, GLM and others; Gemma 4; Mistral; Kimi; Seed.
MARKS = (
    ("<think>", "</think>"),
    ("<|channel>", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
)
_THOUGHT = re.compile("|".join(f"{re.escape(start)}.*?(?:{re.escape(end)}|$)" for start, end in MARKS), re.DOTALL)


def open_mark(text: str) -> str:
    """Returns the mark of a thought that begins in `text` and does not end there; "" if there is none."""
    return next((start for start, end in MARKS if text.rfind(start) > text.rfind(end)), "")


def require_closed_thought(prompt: str) -> None:
    """Raises ValueError if a generation prompt begins a thought, and an answer of the template does not end it."""
    if mark := open_mark(prompt):
        raise ValueError(
            f"the generation prompt of the chat template begins a thought with {mark!r}, and an answer of the "
            "template does not end it; use a template whose prompt ends the thought"
        )


@lru_cache(maxsize=8)
def prompt_mark(processor: Any) -> str:
    """Returns the mark of the thought that a generation prompt begins for the model; "" if it begins none."""
    return open_mark(render(processor, structure_of([question_turn("x")]), iter("x"), for_generation=True))


def split_thought(text: str, mark: str = "") -> tuple[str, str]:
    """Returns the thought in a model's text, and the text without it. `mark` is the one that its prompt ended with.

    >>> split_thought("<think>Round.</think>Mass.")
    ('<think>Round.</think>', 'Mass.')
    """
    whole = mark + text
    return "".join(_THOUGHT.findall(whole)).removeprefix(mark), _THOUGHT.sub("", whole)
