"""Token ids of a conversation for any processor with a chat template, and which of them are supervised.

The ids are those of the rendered conversation as one text, as the processor makes them. What leads to the last answer
is its generation prompt, even if the template renders an answer differently: Gemma 4 26B is asked after an empty
thought, which its template leaves out once the answer is there. The supervised part begins at the end of the generation
prompt and ends with the end of the turn. Both are places in that text; among the ids, a place comes after the ids of
the text up to it. The text is cut at a place that lies inside a token, so that the prompt has the same ids in training
and in generation.

    <|im_start|>User:<image>What is it?<end_of_utterance>\\nAssistant: | Mass.<end_of_utterance> | \\n
    not supervised                                           | supervised                 | not
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image

from vlm_core.data.chat_model import ChatModel, ImageGrid
from vlm_core.data.chat_template import (
    TokenizedConversation,
    render,
    render_markers,
    special_tokens,
    texts_of,
)
from vlm_core.data.conversation import Conversation, answer_turn, question_turn, structure_of
from vlm_core.data.markers import MARKER_PATTERN
from vlm_core.data.thoughts import require_closed_thought

OWN_ROW = "give the family a row in vlm_core/families.py, or name a dataloader.collate_fn._target_ of your own"


@dataclass
class _Rendered:
    """A rendered conversation, with places in it as numbers of characters."""

    text: str = ""
    images: list[int] = field(default_factory=list)  # places of the images
    typed: list[tuple[int, int]] = field(default_factory=list)  # what would be a special token, in a text
    answers: list[tuple[int, int]] = field(default_factory=list)  # each text of the assistant

    def continued(self, other: "_Rendered", start: int) -> "_Rendered":
        """Returns this text, then the `other` from its character `start` on."""
        shift = len(self.text) - start

        def moved(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
            return [(begin + shift, end + shift) for begin, end in spans if begin >= start]

        images = [place + shift for place in other.images if place >= start]
        return _Rendered(
            self.text + other.text[start:],
            self.images + images,
            self.typed + moved(other.typed),
            self.answers + moved(other.answers),
        )


def tokenize_rendered(
    conversation: Conversation, chat: ChatModel, sizes: Sequence[ImageGrid], *, for_generation: bool
) -> TokenizedConversation:
    """Returns the ids of a conversation and which of them are supervised; `sizes` are its images' (height, width).

    Raises ValueError if they cannot be made exact: the template changes texts by more than trimming them, or shows
    other images than the conversation has.
    """
    shown = _Shown(conversation, chat, sizes)
    rendered = shown.render(len(shown.structure), for_generation=for_generation)
    if not for_generation:
        rendered = shown.asked(rendered)
    if len(rendered.images) != len(sizes):
        raise ValueError(
            f"the chat template shows {len(rendered.images)} images as {chat.processor.image_token!r} and the "
            f"conversation has {len(sizes)}: {OWN_ROW}"
        )
    spans = [] if for_generation else shown.supervised_spans(rendered)
    unasked = 0 if for_generation else len(shown.answer_turns) - len(spans)
    ends_itself = not spans or chat.family.end_of_turn
    stop = len(rendered.text) if ends_itself else spans[-1][1]
    ids, places = _Encoder(shown, rendered).encode(stop, [place for span in spans for place in span])
    supervised = [False] * len(ids)
    for start, end in zip(places[::2], places[1::2], strict=True):
        supervised[start:end] = [True] * (end - start)
    if not ends_itself:
        ids, supervised = [*ids, chat.processor.tokenizer.eos_token_id], [*supervised, True]
    return TokenizedConversation(ids, supervised, unasked=unasked)


def end_of_turn(processor: Any) -> str:
    """Returns what the template writes after an answer, up to its first special token; "" if it has none."""
    conversation = [question_turn("x"), answer_turn("x")]
    template, _ = render_markers(processor, structure_of(conversation), False)
    tail = MARKER_PATTERN.split(template)[-1]
    special = special_tokens(processor.tokenizer).search(tail)
    return tail[: special.end()] if special else ""


@lru_cache(maxsize=4096)
def image_expansions(processor: Any, sizes: tuple[ImageGrid, ...]) -> list[str]:
    """Returns what the processor writes in place of each image of a conversation, whose pixels have these `sizes`.

    Raises ValueError for a processor that does not say.
    """
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    made = processor(text=[processor.image_token * len(images)], images=[images], return_text_replacement_offsets=True)
    if "text_replacement_offsets" not in made:
        raise ValueError(f"{type(processor).__name__} does not say what it writes for an image: {OWN_ROW}")
    return [replacement["replacement"] for replacement in made["text_replacement_offsets"][0]]


class _Shown:
    """A conversation as its processor shows it."""

    def __init__(self, conversation: Conversation, chat: ChatModel, sizes: Sequence[ImageGrid]) -> None:
        self.processor, self.family = chat.processor, chat.family
        processor = chat.processor
        self.structure, self.texts = structure_of(conversation), texts_of(conversation)
        self.answer_turns = [number for number, (role, _) in enumerate(self.structure) if role == "assistant"]
        self.expansions = image_expansions(processor, tuple(sizes)) if sizes else []
        self.image_ids = [_closed_ids(processor, expansion) for expansion in self.expansions]
        # Between tokens of its own, what stands for an image has the same ids in any text: it is put in as ids, later.
        self.shown = [processor.image_token] * len(sizes) if all(self.image_ids) else self.expansions

    def render(self, turns: int, *, for_generation: bool) -> _Rendered:
        """Returns the first `turns` turns; raises ValueError if the template changes their texts."""
        template, trimmed = render_markers(self.processor, self.structure[:turns], for_generation)
        rendered, texts, plain, shown = _Rendered(), [], "", iter(self.shown)
        for number, fragment in enumerate(MARKER_PATTERN.split(template)):
            if number % 2:
                role, text = self.texts[int(fragment)]
                texts.append(text.strip() if trimmed[int(fragment)] else text)
                self._add_text(rendered, texts[-1], role)
                plain += texts[-1]
            else:
                self._add_fragment(rendered, fragment, shown)
                plain += fragment
        if plain != render(self.processor, self.structure[:turns], iter(texts), for_generation):
            raise ValueError(f"the chat template changes texts by more than trimming them: {OWN_ROW}")
        return rendered

    def _add_text(self, rendered: _Rendered, text: str, role: str) -> None:
        start = len(rendered.text)
        found = _control_tokens(self.processor).finditer(text)
        rendered.typed += [(start + match.start(), start + match.end()) for match in found]
        rendered.text += text
        if role == "assistant":
            rendered.answers.append((start, len(rendered.text)))

    def _add_fragment(self, rendered: _Rendered, fragment: str, shown: Iterator[str]) -> None:
        first, *others = fragment.split(self.processor.image_token)
        rendered.text += first
        for other in others:
            rendered.images.append(len(rendered.text))
            rendered.text += next(shown, self.processor.image_token) + other

    def asked(self, rendered: _Rendered) -> _Rendered:
        """Returns the rendered conversation with the generation prompt of its last answer in front of that answer.

        Raises ValueError if the answer would become a part of the model's thought.
        """
        if not self.answer_turns:
            return rendered
        start, _ = rendered.answers[-1]
        prompt = self.render(self.answer_turns[-1], for_generation=True)
        if _leads_to(prompt.text, rendered, start):
            return rendered
        require_closed_thought(prompt.text)
        return prompt.continued(rendered, start)

    def supervised_spans(self, rendered: _Rendered) -> list[tuple[int, int]]:
        """Returns where each answer begins and where the end of its turn ends; an answer that no prompt asks has none.

        What the template writes between the generation prompt and the answer, the model has to write.
        """
        spans = []
        for turn, (start, end) in zip(self.answer_turns, rendered.answers, strict=True):
            if not rendered.text.startswith(self.family.end_of_turn, end):
                raise ValueError(
                    f"the chat template must close an answer with {self.family.end_of_turn!r}, "
                    f"found {rendered.text[end : end + 40]!r}: {OWN_ROW}"
                )
            prompt = self.render(turn, for_generation=True).text
            if _leads_to(prompt, rendered, start):
                spans.append((len(prompt), end + len(self.family.end_of_turn)))
        return spans


def _leads_to(prompt: str, rendered: _Rendered, start: int) -> bool:
    """Returns whether a conversation begins with `prompt`, and the answer at `start` lies after it."""
    return rendered.text.startswith(prompt) and len(prompt) <= start


@lru_cache(maxsize=8)
def _control_tokens(processor: Any) -> re.Pattern[str]:
    """Returns a pattern of what no text may write: special tokens, and the one that stands for an image."""
    return re.compile(f"{re.escape(processor.image_token)}|{special_tokens(processor.tokenizer).pattern}")


class _Encoder:
    """Encodes a rendered conversation as one text, or in parts if it has to be cut."""

    def __init__(self, shown: _Shown, rendered: _Rendered) -> None:
        self.rendered, self.processor, self.tokenizer = rendered, shown.processor, shown.processor.tokenizer
        self.image_ids = shown.image_ids if all(shown.image_ids) else []
        self.image_token = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)

    def encode(self, stop: int, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the ids up to character `stop`, and the number of ids before each of `places`."""
        done: list[int] = []
        start, numbers = 0, []
        ids = self._ids(0, stop)
        for place in places:
            head = self._ids(start, place)
            numbers.append(len(done) + len(head))
            if ids[: len(head)] != head:  # A token would reach over the place.
                done, start = done + head, place
                ids = self._ids(start, stop)
        return done + ids, numbers

    def _ids(self, start: int, stop: int) -> list[int]:
        """Returns the ids of a part of the text, with images as long as they are."""
        images = iter(self.image_ids[sum(place < start for place in self.rendered.images) :])
        ids = [i for is_plain, begin, end in self._parts(start, stop) for i in self._part_ids(begin, end, is_plain)]
        if not self.image_ids:
            return ids
        return [i for token in ids for i in (next(images) if token == self.image_token else (token,))]

    def _parts(self, start: int, stop: int) -> list[tuple[bool, int, int]]:
        """Returns (whether it is plain text, begin, end): special tokens that were typed are parts of their own."""
        parts, at = [], start
        for begin, end in self.rendered.typed:
            if start <= begin < stop:
                parts += [(False, at, begin), (True, begin, end)]
                at = end
        return [part for part in [*parts, (False, at, stop)] if part[1] < part[2]]

    def _part_ids(self, begin: int, end: int, is_plain: bool) -> list[int]:
        text = self.rendered.text[begin:end]
        if begin == 0 and not is_plain:
            return [*_leading_ids(self.tokenizer, text), *_plain_ids(self.tokenizer, text, False)]
        ids = _inner_ids(self.tokenizer, text, is_plain)
        if is_plain and self.tokenizer.convert_tokens_to_ids(text) in ids:  # not special, and found in any text
            return [i for half in (text[:1], text[1:]) for i in _inner_ids(self.tokenizer, half, True)]
        return ids


def _plain_ids(tokenizer: Any, text: str, is_plain: bool) -> list[int]:
    """Returns the ids of a text by itself; `is_plain`: no special token is recognised in it."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=is_plain)["input_ids"]


@lru_cache(maxsize=4096)
def _inner_ids(tokenizer: Any, text: str, is_plain: bool) -> list[int]:
    """Returns the ids of a text inside another: after a line break, SentencePiece adds no space in front of it."""
    newline, ids = (_plain_ids(tokenizer, part, is_plain) for part in ("\n", "\n" + text))
    return ids[len(newline) :] if ids[: len(newline)] == newline else _plain_ids(tokenizer, text, is_plain)


def _leading_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns what the tokenizer itself puts in front; as in processors, only if the template does not."""
    return [] if tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token) else _own_start(tokenizer)


@lru_cache(maxsize=8)
def _own_start(tokenizer: Any) -> list[int]:
    with_own, without = (tokenizer("x", add_special_tokens=own)["input_ids"] for own in (True, False))
    if with_own[len(with_own) - len(without) :] != without:
        raise ValueError(f"{type(tokenizer).__name__} puts tokens after every text: {OWN_ROW}")
    return with_own[: len(with_own) - len(without)]


@lru_cache(maxsize=4096)
def _closed_ids(processor: Any, expansion: str) -> list[int]:
    """Returns the ids of what the processor writes for an image; none if they depend on the text beside it."""
    ids, added = _plain_ids(processor.tokenizer, expansion, False), processor.tokenizer.added_tokens_decoder
    return ids if ids[0] in added and ids[-1] in added else []
