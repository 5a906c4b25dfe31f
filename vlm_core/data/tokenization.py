"""Token ids of a conversation for the families of the table, and which of them are supervised.

Labels follow from how the ids are built, never from a search among them.

The chat template is rendered once with a marker in place of every text, which gives the template's own pieces; the
texts are put between them again. Special tokens are then taken from the template's pieces alone, so that a text
cannot inject one, and an answer begins a piece of its own, so that the prompt's ids in training are those of
generation. For the Gemma template and the answer `Mass.`:

    <bos><start_of_turn>user\\n ... What is it?<end_of_turn>\\n<start_of_turn>model\\n | Mass.<end_of_turn> | \\n
    not supervised                                                                  | supervised         | not
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice
from math import prod
from typing import Any

from PIL import Image

from vlm_core.data.chat_model import ChatModel, ImageGrid
from vlm_core.data.chat_template import (
    TokenizedConversation,
    apply_template,
    render_markers,
    special_tokens,
    texts_of,
)
from vlm_core.data.conversation import Conversation, Structure, answer_turn, images_of, question_turn, structure_of
from vlm_core.data.markers import MARKER, MARKER_PATTERN
from vlm_core.data.thoughts import require_closed_thought
from vlm_core.families import Family

TRIED = ((), ((56, 56),), ((640, 400),), ((56, 56), (300, 700)))  # sizes of the images that a processor is tried with


@dataclass(frozen=True)
class _Shown:
    """What the chat template makes of a conversation, with markers in place of its texts."""

    template: str
    trimmed: list[bool]  # of each text
    unasked: list[list[int]]  # the numbers of the texts of each answer that no generation prompt leads to


@dataclass(frozen=True)
class _Piece:
    text: str  # plain: no special token is recognised in it
    supervised: bool
    specials: tuple[str, ...] = ()  # a run of special tokens of the template, in place of a text


def tokenize_listed(
    conversation: Conversation, chat: ChatModel, grids: Sequence[ImageGrid], *, for_generation: bool
) -> TokenizedConversation:
    """Returns the ids of a conversation with a family of the table.

    Every assistant's turn and its end are supervised, unless no generation prompt leads to it.
    Of the images, only their places and `grids` matter. Raises ValueError if the template does not close an answer with
    the family's end-of-turn token.
    """
    shown = _shown(chat.processor, structure_of(conversation), for_generation)
    return _encode(list(_pieces(conversation, chat, grids, shown)), chat.processor.tokenizer, len(shown.unasked))


def grids_of_images(conversation: Conversation, chat: ChatModel) -> list[ImageGrid]:
    """Returns the grids of the Pillow images of a conversation."""
    return chat.image_grids([image.size for image in images_of(conversation)])


def image_text(processor: Any, family: Family, grid: ImageGrid | None = None) -> str:
    """Returns what the processor writes in place of an image; `grid` has its tokens if their number varies."""
    times = {"image_token": prod(grid)} if grid is not None else {}
    return "".join(getattr(processor, name) * times.get(name, 1) for name in family.image_text)


def require_template(chat: ChatModel) -> None:
    """Raises ValueError if the ids made here are not those that the processor itself makes.

    A tokenizer or template of another form than the family's would otherwise train on prompts that no one sends.
    """
    for sizes in TRIED:
        pictures = [Image.new("RGB", size) for size in sizes]
        conversation = [question_turn("What is shown?", pictures), answer_turn("A mass.")]
        prompt = _own_ids(chat.processor, conversation[:1], add_generation_prompt=True)
        shown, ids = _own_ids(chat.processor, conversation), chat.tokenize(conversation).input_ids
        # The prompt stays as it is, even if the template shows an answer differently.
        expected = shown if shown[: len(prompt)] == prompt else prompt + shown[len(shown) - len(ids) + len(prompt) :]
        if not chat.family.end_of_turn:  # The tokenizer's eos ends the answer if the template does not.
            expected[len(ids) - 1 :] = ids[-1:]
        for made, wanted in ((ids, expected), (ids[: len(prompt)], prompt)):
            if made != wanted:
                raise ValueError(
                    f"the processor of this {chat.family.model_type} model tokenizes its chat template differently "
                    f"than expected: {wanted} instead of {made}; use the processor files of the published checkpoint"
                )


def _own_ids(processor: Any, conversation: Conversation, **options: Any) -> list[int]:
    made = apply_template(processor, conversation, tokenize=True, return_dict=True, **options)
    return list(made["input_ids"][0])


@lru_cache(maxsize=256)
def _shown(processor: Any, structure: Structure, for_generation: bool) -> _Shown:
    """Returns a rendered conversation, in which the last answer follows its generation prompt.

    Some templates end that prompt with an empty thought, which they leave out once the answer is there.
    """
    template, trimmed = render_markers(processor, structure, for_generation)
    answers = [] if for_generation else _answers(structure)
    unasked = []
    for turn, texts in reversed(answers):
        prompt, _ = render_markers(processor, structure[:turn], True)
        start = template.index(MARKER.format(texts[0]))
        if template.startswith(prompt) and len(prompt) <= start:
            continue
        if (turn, texts) == answers[-1]:
            require_closed_thought(prompt)
            template = prompt + template[start:]
        else:
            unasked.append(texts)
    return _Shown(template, trimmed, unasked)


def _answers(structure: Structure) -> list[tuple[int, list[int]]]:
    """Returns of each assistant's turn its number, and the numbers of its texts among all texts."""
    turns = [turn for turn, (_, types) in enumerate(structure) for kind in types if kind == "text"]
    texts = {turn: [number for number, of in enumerate(turns) if of == turn] for turn in dict.fromkeys(turns)}
    return [(turn, numbers) for turn, numbers in texts.items() if structure[turn][0] == "assistant"]


def _pieces(conversation: Conversation, chat: ChatModel, grids: Sequence[ImageGrid], shown: _Shown) -> Iterator[_Piece]:
    texts, family = texts_of(conversation), chat.family
    rest, unasked = iter(grids), {*chain.from_iterable(shown.unasked)}
    supervised = False
    for number, fragment in enumerate(MARKER_PATTERN.split(shown.template)):
        if number % 2:
            role, text = texts[int(fragment)]
            supervised = role == "assistant" and int(fragment) not in unasked
            yield _Piece(text.strip() if shown.trimmed[int(fragment)] else text, supervised)
        else:
            expanded = _expand_images(fragment, chat.processor, family, rest)
            yield from _template_pieces(expanded, chat.processor.tokenizer, family.end_of_turn if supervised else None)
            supervised = False


def _expand_images(fragment: str, processor: Any, family: Family, grids: Iterator[ImageGrid]) -> str:
    first, *others = fragment.split(getattr(processor, family.image_placeholder))
    shown = [*islice(grids, len(others))] if family.image_grid else [None] * len(others)
    if len(shown) < len(others):
        raise ValueError("the chat template shows more images than the conversation has")
    texts = [image_text(processor, family, grid) for grid in shown]
    return first + "".join(text + other for text, other in zip(texts, others, strict=True))


@lru_cache(maxsize=4096)  # The 256 tokens of an image are split once, and not for every question.
def _template_pieces(fragment: str, tokenizer: Any, end_of_turn: str | None) -> tuple[_Piece, ...]:
    """Returns a template fragment as special tokens and plain text; `end_of_turn` is given after an answer."""
    pieces, special = [], special_tokens(tokenizer)
    if end_of_turn is not None:
        if not fragment.startswith(end_of_turn):
            raise ValueError(f"the chat template must close an answer with {end_of_turn!r}, found {fragment[:40]!r}")
        pieces.append(_Piece("", supervised=True, specials=(end_of_turn,)))
        fragment = fragment[len(end_of_turn) :]
    for is_special, matches in groupby(_split(fragment, special), key=lambda part: part[1]):
        parts = [text for text, _ in matches]
        pieces.append(_Piece("", False, tuple(parts)) if is_special else _Piece("".join(parts), False))
    return tuple(pieces)


def _split(fragment: str, special: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is a special token), without empty texts."""
    position = 0
    for match in special.finditer(fragment):
        if match.start() > position:
            yield fragment[position : match.start()], False
        yield match.group(), True
        position = match.end()
    if position < len(fragment):
        yield fragment[position:], False


def _encode(pieces: list[_Piece], tokenizer: Any, unasked: int) -> TokenizedConversation:
    ids: list[int] = []
    supervised: list[bool] = []
    # Plain neighbours are one text to the tokenizer, as they are when it sees the rendered string.
    for (is_special, is_target), group in groupby(pieces, key=lambda piece: (bool(piece.specials), piece.supervised)):
        if is_special:
            new = [i for piece in group for i in _special_ids(tokenizer, piece.specials)]
        else:
            new = _plain_ids(tokenizer, "".join(piece.text for piece in group))
        ids += new
        supervised += [is_target] * len(new)
    return TokenizedConversation(ids, supervised, unasked=unasked)


@lru_cache(maxsize=4096)
def _special_ids(tokenizer: Any, specials: tuple[str, ...]) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(specials))


@lru_cache(maxsize=4096)  # the template's own words, and questions that many images are asked
def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
