"""Renders a chat template with markers in place of the texts, to find its own pieces and the places of the texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vlm_core.data.conversation import Conversation, Structure, fill, role_texts
from vlm_core.data.markers import MARKER, MARKER_PATTERN


@dataclass(frozen=True)
class TokenizedConversation:
    """Ids of a conversation; `supervised[i]` says whether token i is a training target. Equal lengths.

    `unasked` is the number of answers that are not supervised, because no generation prompt leads to them: chat
    templates show some answers differently once another question follows.
    """

    input_ids: list[int]
    supervised: list[bool]
    unasked: int = field(default=0, kw_only=True)


def texts_of(conversation: Conversation) -> list[tuple[str, str]]:
    """Returns (role, text) of the texts of a conversation; raises ValueError for one with a marker's characters."""
    found = role_texts(conversation)
    if any(MARKER_PATTERN.search(text) for _, text in found):
        raise ValueError("a text holds the characters U+E000 and U+E001, which are reserved for internal use")
    return found


@lru_cache(maxsize=256)
def render_markers(processor: Any, structure: Structure, for_generation: bool) -> tuple[str, list[bool]]:
    """Returns the rendered template with markers in place of the texts, and of each text whether it is trimmed."""
    count = sum(types.count("text") for _, types in structure)
    markers = [MARKER.format(i) for i in range(count)]
    padded = [f" {marker} " for marker in markers]
    template, rendered = (render(processor, structure, iter(texts), for_generation) for texts in (markers, padded))
    return template, [text not in rendered for text in padded]


def render(processor: Any, structure: Structure, texts: Iterator[str], for_generation: bool) -> str:
    """Returns what the processor renders of a conversation of `structure` with `texts`."""
    conversation = fill(structure, texts)
    return processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=for_generation)


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Returns a pattern of every special token: the named ones, and those that are special in the vocabulary alone."""
    # Longest first, because the longer of two matching tokens counts. Published Gemma tokenizers name no turn markers.
    marked = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    tokens: list[str] = sorted({*marked, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in tokens) or "(?!)")
