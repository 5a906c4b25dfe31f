"""Token ids of a conversation and which of them are supervised, from its construction and never from a search.

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
from typing import Any

from PIL import Image

from vlm_core.data.chat_template import (
    TokenizedConversation,
    apply_template,
    render_markers,
    special_tokens,
    texts_of,
)
from vlm_core.data.conversation import Conversation, answer_turn, images_of, question_turn, structure_of
from vlm_core.data.grids import Grid, grids_of
from vlm_core.data.markers import MARKER_PATTERN
from vlm_core.data.tokenization_generic import tokenize_rendered
from vlm_core.families import Family

SHOWN = (((56, 56),), ((640, 400),), ((56, 56), (300, 700)))  # pixels of the images that a processor is tried with


@dataclass(frozen=True)
class _Piece:
    text: str  # plain: no special token is recognised in it
    supervised: bool
    specials: tuple[str, ...] = ()  # a run of special tokens of the template, in place of a text


def tokenize_conversation(
    conversation: Conversation, processor: Any, family: Family, grids: Sequence[Grid] | None = None
) -> TokenizedConversation:
    """Returns the ids of a whole conversation; every assistant turn and its end-of-turn token are supervised.

    Of images, only their places are read, and where their number of tokens follows their size `grids`: those of its
    images, by default taken from the Pillow images that it holds.
    Raises ValueError where the template does not close an answer with the family's end-of-turn token.
    """
    return _tokenize(conversation, processor, family, grids, for_generation=False)


def tokenize_prompt(
    conversation: Conversation, processor: Any, family: Family, grids: Sequence[Grid] | None = None
) -> list[int]:
    """Returns the ids of a conversation that ends with a user turn, up to where the answer begins."""
    return _tokenize(conversation, processor, family, grids, for_generation=True).input_ids


def _tokenize(
    conversation: Conversation,
    processor: Any,
    family: Family,
    grids: Sequence[Grid] | None,
    *,
    for_generation: bool,
) -> TokenizedConversation:
    grids = image_grids(conversation, processor, family) if grids is None else grids
    if family.plain_only:
        return tokenize_rendered(conversation, processor, family, grids, for_generation=for_generation)
    pieces = list(_pieces(conversation, processor, family, grids, for_generation=for_generation))
    return _encode(pieces, processor.tokenizer)


def image_token_id(processor: Any, family: Family) -> int:
    """Returns the id that image features take the place of."""
    return processor.tokenizer.convert_tokens_to_ids(family.image_token)


def shared_image_token(processor: Any, family: Family) -> int | None:
    """Returns the image token up to which examples of an image may share their tokens; None where none are shared."""
    return None if family.plain_only else image_token_id(processor, family)


def image_grids(conversation: Conversation, processor: Any, family: Family) -> list[Grid]:
    """Returns the grids of the Pillow images of a conversation, where their number of tokens follows their size."""
    if not family.patches_a_token and not family.plain_only:
        return []
    return grids_of([image.size for image in images_of(conversation)], processor.image_processor, family)


def require_template(processor: Any, family: Family) -> None:
    """Raises ValueError where the ids made here are not those that the processor itself makes.

    A tokenizer or template of another form than the family's would otherwise train on prompts that no one sends.
    """
    for sizes in ((), *(SHOWN if family.plain_only else ())):
        pictures = [Image.new("RGB", size) for size in sizes]
        conversation = [question_turn("What is shown?", pictures), answer_turn("A mass.")]
        made = apply_template(processor, conversation, tokenize=True, return_dict=True)["input_ids"][0]
        expected, ids = list(made), tokenize_conversation(conversation, processor, family).input_ids
        if not family.end_of_turn:  # The tokenizer's own end stands where the template has none.
            expected[len(ids) - 1 :] = ids[-1:]
        if ids != expected:
            raise ValueError(
                f"the processor of this {family.model_type} model tokenizes its template otherwise than expected: "
                f"{expected} and not {ids}; use the processor files of the published checkpoint"
            )


def _pieces(
    conversation: Conversation,
    processor: Any,
    family: Family,
    grids: Sequence[Grid],
    *,
    for_generation: bool,
) -> Iterator[_Piece]:
    texts = texts_of(conversation)
    template, trimmed = render_markers(processor, structure_of(conversation), for_generation)
    counts = iter(grids)
    supervised = False
    for number, fragment in enumerate(MARKER_PATTERN.split(template)):
        if number % 2:
            role, text = texts[int(fragment)]
            supervised = role == "assistant"
            yield _Piece(text.strip() if trimmed[int(fragment)] else text, supervised)
        else:
            expanded = _expand_images(fragment, processor, family, counts)
            yield from _template_pieces(expanded, processor.tokenizer, family.end_of_turn if supervised else None)
            supervised = False


def _expand_images(fragment: str, processor: Any, family: Family, grids: Iterator[Grid]) -> str:
    placeholder = getattr(processor, family.image_placeholder)
    if family.image_expansion is not None:
        return fragment.replace(placeholder, getattr(processor, family.image_expansion))
    pieces = fragment.split(placeholder)
    expansions = [family.image_token * (down * across) for down, across in islice(grids, len(pieces) - 1)]
    return "".join(chain.from_iterable(zip(pieces, [*expansions, ""], strict=True)))


@lru_cache(maxsize=4096)  # an image of 256 tokens is taken apart once, and not for every question
def _template_pieces(fragment: str, tokenizer: Any, end_of_turn: str | None) -> tuple[_Piece, ...]:
    """Returns a template fragment as special tokens and plain text; `end_of_turn` is set behind an answer."""
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


def _encode(pieces: list[_Piece], tokenizer: Any) -> TokenizedConversation:
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
    return TokenizedConversation(ids, supervised)


@lru_cache(maxsize=4096)
def _special_ids(tokenizer: Any, specials: tuple[str, ...]) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(specials))


@lru_cache(maxsize=4096)  # the template's own words, and questions that many images are asked
def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
