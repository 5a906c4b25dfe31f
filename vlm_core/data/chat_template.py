"""Renders a chat template with markers in place of the texts, to find its own pieces and the places of the texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError

from vlm_core.data.conversation import Conversation, Structure, fill, role_texts
from vlm_core.data.limits import OutOfTimeError, memory_limit, time_limit
from vlm_core.data.markers import MARKER, MARKER_PATTERN

MOST_SECONDS = 10  # that a chat template may take
MOST_CHARACTERS = 1_000_000  # that it may make of one conversation
MOST_MEMORY = 1_000_000_000  # bytes that it may take


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
    """Returns what the processor renders of a conversation of `structure` with `texts`; errors as `apply_template`."""
    conversation = fill(structure, texts)
    text = apply_template(processor, conversation, tokenize=False, add_generation_prompt=for_generation)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"the model's chat template makes {len(text):,} characters of one conversation; at most "
            f"{MOST_CHARACTERS:,} are allowed; correct its loops"
        )
    return text


def apply_template(processor: Any, conversation: Conversation, **options: Any) -> Any:
    """Returns what the processor makes of a conversation by its chat template, which comes with the model.

    Raises ValueError if the template takes too long or too much memory, has a power operator, or fails; jinja2's
    TemplateError if it refuses the conversation.
    """
    _require_no_power(_template_of(processor))
    try:
        with memory_limit(MOST_MEMORY), time_limit(MOST_SECONDS):
            return processor.apply_chat_template(conversation, **options)
    except OutOfTimeError:
        raise ValueError(f"the model's chat template ran for more than {MOST_SECONDS} s; correct its loops") from None
    except MemoryError:
        raise ValueError(
            f"the model's chat template takes more than {MOST_MEMORY / 1e9:.0f} GB of memory; correct its loops"
        ) from None
    except (ValueError, TemplateError):
        raise
    except Exception as error:  # a template may fail as any program may
        raise ValueError(
            f"the model's chat template fails on a conversation ({type(error).__name__}: {str(error)[:200]}); correct "
            "it, or take that of another checkpoint of this model"
        ) from error


def _template_of(processor: Any) -> str:
    """Returns the source of a processor's chat templates."""
    owners = (processor, getattr(processor, "tokenizer", None))
    found = next((owner.chat_template for owner in owners if getattr(owner, "chat_template", None)), "")
    return found if isinstance(found, str) else "\n".join(map(str, dict(found).values()))


@lru_cache(maxsize=8)
def _require_no_power(template: str) -> None:
    """Raises ValueError if a template has the operator `**` between two values.

    A power of large numbers takes hours inside Python, where no time limit can interrupt it.
    """
    before = ""
    for _, kind, text in Environment().lex(template):
        if kind == "operator" and text == "**" and before not in ("(", ","):  # f(**options) is harmless
            raise ValueError(
                "the model's chat template has the power operator (**), which may run for hours: remove it"
            )
        before = before if kind == "whitespace" else text


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Returns a pattern of every special token: the named ones, and those that are special in the vocabulary alone."""
    # Longest first, because the longer of two matching tokens counts. Published Gemma tokenizers name no turn markers.
    marked = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    tokens: list[str] = sorted({*marked, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in tokens) or "(?!)")
